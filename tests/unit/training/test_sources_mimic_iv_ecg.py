"""MIMIC-IV-ECG in its own layout, and every way such a folder can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from tests.doubles.ecg_sets import edited, signal, write_record, write_table
from training.data.sources.mimic_iv_ecg import mimic_iv_ecg

MIMIC_NAMES = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")


@pytest.fixture
def mimic(tmp_path: Path) -> Path:
    """Three ECGs of two patients, aVF before aVL; the last one has a segment of NaN."""
    rows = []
    for number, (subject, study) in enumerate([(10000032, 40689238), (10000032, 44458630), (10000117, 42205327)]):
        path = f"files/p1000/p{subject}/s{study}/{study}"
        rows.append(
            {
                "subject_id": subject,
                "study_id": study,
                "file_name": study,
                "ecg_time": "2180-07-23 08:44:00",
                "path": path,
            }
        )
        found = signal(number)
        if number == 2:
            found[4, 10:20] = np.nan
        write_record(tmp_path / path, found, MIMIC_NAMES)
    write_table(tmp_path / "record_list.csv", rows)
    reports = [
        ("Sinus rhythm", "", 90, 186),
        ("Atrial-sensed ventricular-paced rhythm", "", 29999, 29999),
        ("Sinus rhythm.", "", 80, 29999),
    ]
    measured = [
        {
            "subject_id": row["subject_id"],
            "study_id": row["study_id"],
            "report_0": a,
            "report_1": b,
            "qrs_onset": c,
            "qrs_end": d,
        }
        for row, (a, b, c, d) in zip(rows, reports, strict=True)
    ]
    write_table(tmp_path / "machine_measurements.csv", measured)
    return tmp_path


def test_mimic_iv_ecg_is_read_by_lead_name(mimic: Path) -> None:
    """The file has aVF before aVL; the record has aVL first; pacing and QRS of the cart; NaN stays NaN."""
    found = mimic_iv_ecg(mimic)
    assert [entry.key for entry in found.entries] == ["40689238", "44458630", "42205327"]
    assert [entry.patient for entry in found.entries] == ["10000032", "10000032", "10000117"]
    assert found.entries[0].recorded == date(2180, 7, 23)
    assert [dict(entry.targets) for entry in found.entries] == [{"qrs_duration_ms": 96.0}, {}, {}]
    assert [entry.labels["paced"] for entry in found.entries] == [False, True, False]
    np.testing.assert_allclose(found.load("40689238").signal_mv, signal(0), atol=1e-6)
    assert np.isnan(found.load("42205327").signal_mv[4]).sum() == 10
    kept = mimic_iv_ecg(mimic, keep=lambda patient: patient == "10000117")
    assert [entry.key for entry in kept.entries] == ["42205327"]
    (mimic / "machine_measurements.csv").unlink()
    assert dict(mimic_iv_ecg(mimic).entries[0].labels) == {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "record_list.csv").unlink(),
            "no record_list.csv in the folder; expected the folder of MIMIC",
        ),
        (
            lambda root: edited(root / "record_list.csv", lambda text: text.replace("ecg_time", "time")),
            "no column ecg_time",
        ),
        (
            lambda root: edited(root / "record_list.csv", lambda text: text.replace("2180-07", "long ago")),
            "line 2: ecg_time is no date",
        ),
        (
            lambda root: edited(root / "record_list.csv", lambda text: text.replace("files/p1000/p10000032", "/etc")),
            "outside the folder",
        ),
        (
            lambda root: edited(root / "record_list.csv", lambda text: text.replace("files/", "record/")),
            "first record .* not in the folder",
        ),
        (
            lambda root: edited(root / "machine_measurements.csv", lambda text: text.replace("qrs_end", "end")),
            "no column qrs_end",
        ),
        (
            lambda root: edited(root / "machine_measurements.csv", lambda text: text.replace("186", "wide")),
            "qrs_end is no number",
        ),
    ],
)
def test_a_wrong_folder_of_mimic_iv_ecg_is_named(mimic: Path, spoil: Callable[[Path], object], message: str) -> None:
    """Files, columns, lines and cells, and a folder without its records."""
    spoil(mimic)
    with pytest.raises(ValueError, match=message):
        mimic_iv_ecg(mimic)


def test_nobody_kept_is_an_error(mimic: Path) -> None:
    """An empty data set is refused where it is opened."""
    with pytest.raises(ValueError, match="is of a patient that is kept"):
        mimic_iv_ecg(mimic, keep=lambda _patient: False)
