"""The ECG gate of version 2: every injected fault is found, clean records pass, doubts are flags; profiles do what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import sparse
from scipy.sparse.linalg import spsolve

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.ecg_profiles import PROFILES, als_baseline, apply_profile
from engines.preprocess.ecg_quality import EcgFlag, gated
from engines.preprocess.ecg_window import first_clean_window
from engines.preprocess.registry import prepare
from engines.preprocess.spec import EcgCleanSpec, PreprocessSpec
from tests.benchmarks.measure_ecg_quality import measured, of_real_records
from tests.doubles.ecg_faults import FAULTS
from tests.doubles.hearts import clean_ecg

DOCUMENT = json.loads(Path(__file__).with_name("test_preprocess_specs.json").read_text())["ecg_clean"]
SPEC = EcgCleanSpec(**DOCUMENT)


def test_every_fault_is_found_and_clean_records_pass() -> None:
    """Eight phantoms with each of the faults: all are found but at most one; no clean one is refused.

    The full table is that of ``tests.benchmarks.measure_ecg_quality``.
    """
    result = measured(range(8))
    assert set(result["sensitivity"]) == set(FAULTS)
    assert min(result["sensitivity"].values()) >= 7 / 8
    assert not set(result["clean"]) & {code.value for code in RefusalCode}


def test_no_real_record_is_refused(sample_data: Path) -> None:
    """Nine real twelve-lead records pass; none is called paced."""
    given = of_real_records(sample_data / "ecg")
    assert len(given) == 9
    assert not {code for codes in given.values() for code in codes} & {*map(str, RefusalCode), EcgFlag.PACED.value}


def test_a_lost_limb_lead_is_computed_and_said() -> None:
    """III follows from I and II where its signal is gone; the quality and the notes say so."""
    record = clean_ecg(1)
    signal = record.signal_mv.copy()
    signal[2] = np.nan
    lost = replace(record, signal_mv=signal)
    _, (window, quality) = first_clean_window(lost, SPEC, lambda each: gated(each, lost, SPEC))
    assert window[2] == pytest.approx(record.signal_mv[2, : window.shape[1]], abs=1e-5)
    assert quality.derived_mask.tolist() == [row == 2 for row in range(12)]
    assert any("Leads III were lost" in note for note in prepare(lost, SPEC).notes)


def test_precordial_leads_are_masked_only_where_the_network_knows_it() -> None:
    """One lost precordial lead is zeros where the spec allows it, else a refusal; lead I is never done without."""
    record = clean_ecg(1)
    signal = record.signal_mv.copy()
    signal[8] = 0.0
    lost = replace(record, signal_mv=signal)
    with pytest.raises(InputRefused, match="V3"):
        prepare(lost, SPEC)
    lenient = SPEC.model_copy(update={"masked_precordial_max": 1})
    ecg = prepare(lost, lenient).arrays["ecg"]
    assert not ecg[0, 8].any()
    assert ecg[0, 7].any()
    signal[0] = 0.0
    with pytest.raises(InputRefused, match="Leads I"):
        prepare(replace(record, signal_mv=signal), lenient)


def test_the_array_of_every_profile() -> None:
    """float32 [1, 12, 5000], finite, at any native rate, whichever the profile."""
    for seed in (0, 1, 2):
        for name in PROFILES:
            ecg = prepare(clean_ecg(seed), SPEC.model_copy(update={"profile": name})).arrays["ecg"]
            assert (ecg.shape, ecg.dtype) == ((1, 12, 5000), np.float32)
            assert np.isfinite(ecg).all()


def test_als_is_the_published_formula() -> None:
    """The banded solution equals the sparse one that the method is published with, to 1e-5 of a millivolt."""
    lead = clean_ecg(1).signal_mv[1, :2500].astype(float)
    count = len(lead)
    difference = sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(count - 2, count))
    penalty, weights = 1e7 * difference.T @ difference, np.ones(count)
    for _ in range(5):
        baseline = spsolve((sparse.diags(weights) + penalty).tocsc(), weights * lead)
        weights = np.where(lead > baseline, 0.3, 0.7)
    assert np.abs(als_baseline(lead[None])[0] - baseline).max() < 1e-5


def test_the_profiles_normalise_as_they_say() -> None:
    """ams2025: mean 0, deviation 1 over all; turgut2025: over each group of leads; ecg_clean_2026 keeps the amplitude."""
    window = clean_ecg(1).signal_mv[:, :5000].astype(float)
    by = {name: apply_profile(window, SPEC.model_copy(update={"profile": name})) for name in PROFILES}
    assert (by["ams2025"].mean(), by["ams2025"].std()) == pytest.approx((0, 1), abs=1e-3)
    for group in (slice(0, 3), slice(3, 6), slice(6, 12)):
        assert (by["turgut2025"][group].mean(), by["turgut2025"][group].std()) == pytest.approx((0, 1), abs=1e-6)
    double = apply_profile(2 * window, SPEC)
    assert double == pytest.approx(2 * by["ecg_clean_2026"], abs=1e-9)


def test_the_version_decides() -> None:
    """The manifest's version picks the class; a missing field or an unknown profile is refused."""
    adapter: TypeAdapter[object] = TypeAdapter(PreprocessSpec)
    assert type(adapter.validate_python(DOCUMENT)) is EcgCleanSpec
    for wrong in ({k: v for k, v in DOCUMENT.items() if k != "pace_ratio"}, DOCUMENT | {"profile": "ecg_spine_v1"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
