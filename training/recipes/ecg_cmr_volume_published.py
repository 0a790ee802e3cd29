"""The ECG beside the volume at end-diastole: the published sizes, for a GPU."""

from __future__ import annotations

from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.variants import published


def recipe() -> EcgCmrRun:
    """Return the run."""
    return published("volume")
