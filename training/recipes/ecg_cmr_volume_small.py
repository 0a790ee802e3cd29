"""The ECG beside the volume at end-diastole: the size two CPU cores train."""

from __future__ import annotations

from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.variants import small


def recipe() -> EcgCmrRun:
    """Return the run."""
    return small("volume")
