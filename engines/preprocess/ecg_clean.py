"""Version 2 of the ECG preprocessing: the gate of ``ecg_quality``, then a named profile.

Called by ``ecg``.
"""

from __future__ import annotations

import numpy as np

from engines.preprocess.ecg_profiles import apply_profile
from engines.preprocess.ecg_quality import gated
from engines.preprocess.ecg_window import first_clean_window, resampled, window_notes
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import EcgCleanSpec
from engines.records import EcgRecord


def prepare_ecg_clean(record: EcgRecord, spec: EcgCleanSpec) -> Prepared:
    """First window that passes the gate, resampled, through the profile; masked leads are zeros.

    Returns:
        ``ecg`` float32 [1, 12, window_samples]; every flag is a note.

    Raises:
        InputRefused: rate or length is out of bounds, or no window passes; the first reason found.
    """
    start, (window, quality) = first_clean_window(record, spec, lambda window: gated(window, record, spec))
    fitted = resampled(window, record.sampling_rate_hz, spec.sampling_rate_hz)[:, : spec.window_samples]
    missing = spec.window_samples - fitted.shape[1]
    ecg = np.pad(apply_profile(fitted, spec), ((0, 0), (0, missing)))
    ecg[~quality.lead_mask] = 0.0
    flags = tuple(flag.sentence for flag in quality.flags)
    notes = (*record.warnings, *flags, *window_notes(start / record.sampling_rate_hz, missing, spec))
    return Prepared(
        arrays={"ecg": ecg[None].astype(np.float32)},
        sources=(record.source,),
        region_px=None,
        notes=tuple(dict.fromkeys(notes)),
    )
