"""The ECG beside the volumes at end-diastole and end-systole, three pairs in one loss: the published sizes, for a GPU."""

from __future__ import annotations

from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.variants import published


def recipe() -> EcgCmrRun:
    """Return the run."""
    return published("triplet")
