"""Golden records come back from the archive as they went in."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from engines.bundle.golden import GoldenCase, golden_bytes, golden_cases, npz_arrays, npz_bytes
from engines.errors import BundleCorrupt
from engines.records import CineLoop, EcgRecord, Modality, Record, SourceInstance
from tests.doubles.bundles import cine_loop, cine_stack, ecg_record, record

SOURCE = SourceInstance(
    sop_class_uid="1.2",
    sop_instance_uid="1.3",
    series_instance_uid="1.4",
    frame_numbers=(1, 5),
    waveform_channels=((1, 0), (1, 2)),
)


def _back(original: Record) -> Record:
    case = GoldenCase(record=original, prepared={"clip": np.zeros((1, 2))}, outputs={"ef": np.ones((1, 1))})
    (copy,) = golden_cases(golden_bytes([case]))
    np.testing.assert_array_equal(copy.prepared["clip"], case.prepared["clip"])
    np.testing.assert_array_equal(copy.outputs["ef"], case.outputs["ef"])
    return copy.record


def _assert_same(found: Record, expected: Record) -> None:
    assert type(found) is type(expected)
    for field in fields(expected):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(right, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        elif field.name != "frames":
            assert left == right, field.name


@pytest.mark.parametrize("modality", list(Modality))
def test_every_kind_of_record_survives(modality: Modality) -> None:
    """A record of each modality is rebuilt with every array and every other field equal."""
    original = record(modality)
    _assert_same(_back(original), original)


def test_frames_of_a_loop_survive() -> None:
    """The frames of a loop come back pixel by pixel."""
    original = cine_loop()
    found = _back(original)
    assert isinstance(found, CineLoop)
    pairs = zip(found.frames.luma(range(6)), original.frames.luma(range(6)), strict=True)
    assert all(np.array_equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("field", ["region_px", "spacing_mm", "heart_rate_bpm", "view"])
def test_absent_fields_stay_absent(field: str) -> None:
    """What a loop does not state is None after the round trip, not a default."""
    original = replace(cine_loop(), **{field: None}, source=SOURCE)
    _assert_same(_back(original), original)


def test_ecg_options_survive() -> None:
    """Derived leads, filters, warnings and padding of an ECG survive."""
    signal = ecg_record().signal_mv.copy()
    signal[3, -10:] = np.nan
    original = replace(
        ecg_record(),
        signal_mv=signal,
        source=SOURCE,
        derived_leads=frozenset({"III", "aVR"}),
        highpass_hz=0.05,
        lowpass_hz=150.0,
        warnings=("One.", "Two."),
    )
    _assert_same(_back(original), original)


@given(
    signal=stn.arrays(np.float32, st.tuples(st.just(12), st.integers(1, 20)), elements={"allow_nan": True}),
    rate_hz=st.floats(0.1, 4000),
)
def test_any_signal_survives(signal: np.ndarray, rate_hz: float) -> None:
    """Every float32 signal and every rate comes back bit for bit."""
    original = EcgRecord(signal_mv=signal, sampling_rate_hz=rate_hz, source=SOURCE)
    _assert_same(_back(original), original)


def test_equal_cases_give_equal_bytes() -> None:
    """The archive depends on its content, not on the time it was written."""
    case = GoldenCase(record=cine_stack(), prepared={"image": np.zeros(3)}, outputs={"logit": np.zeros(1)})
    first, second = golden_bytes([case]), golden_bytes([case])
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_cases_keep_their_order() -> None:
    """Twelve cases come back in the order they were given."""
    cases = [
        GoldenCase(record=ecg_record(seed), prepared={}, outputs={"value": np.array([seed])}) for seed in range(12)
    ]
    assert [int(case.outputs["value"][0]) for case in golden_cases(golden_bytes(cases))] == list(range(12))


def test_pickles_are_refused() -> None:
    """An archive with a pickled array inside is corrupt, and nothing in it runs."""
    buffer = io.BytesIO()
    np.savez(buffer, danger=np.array([object()], dtype=object))
    with pytest.raises(BundleCorrupt, match="without pickle"):
        npz_arrays(buffer.getvalue())


@pytest.mark.parametrize("junk", [b"", b"junk", pickle.dumps([1]), npz_bytes({"a": np.zeros(99)})[:-40]])
def test_junk_is_refused(junk: bytes) -> None:
    """Bytes that are no archive are corrupt, whatever they are."""
    with pytest.raises(BundleCorrupt):
        golden_cases(junk)


@pytest.mark.parametrize(
    "changes", [{"record": "Unknown"}, {"sampling_rate_hz": -1.0}, {"source": {"sop_class_uid": "1"}}, {"source": None}]
)
def test_impossible_records_are_refused(changes: dict[str, object]) -> None:
    """An archive whose fields do not make a valid record is corrupt."""
    arrays = npz_arrays(golden_bytes([GoldenCase(record=ecg_record(), prepared={}, outputs={})]))
    stated = json.loads(arrays["000/record.json"].tobytes())
    text = json.dumps({**stated, **changes}).encode()
    arrays["000/record.json"] = np.frombuffer(text, dtype=np.uint8)
    with pytest.raises(BundleCorrupt, match="cannot be read back"):
        golden_cases(npz_bytes(arrays))
