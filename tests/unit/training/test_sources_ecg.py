"""PTB-XL, MIMIC-IV-ECG and EchoNext in their own layouts, and every way such a folder can be wrong."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb
from structlog.testing import capture_logs

from engines.errors import InputRefused, RefusalCode
from engines.records import LEAD_NAMES
from training.data.sources.ecg_sets import EcgEntry, EcgSet, usable_cases
from training.data.sources.echonext import FLAGS, echonext
from training.data.sources.mimic_iv_ecg import mimic_iv_ecg
from training.data.sources.ptb_xl import QUALITY_FLAGS, ptb_xl
from training.data.sources.wfdb_ecg import read_wfdb

PTB_NAMES = tuple(name.upper() for name in LEAD_NAMES)
MIMIC_NAMES = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")


def signal(seed: int, samples: int = 60) -> np.ndarray:
    """Twelve different leads in the canonical order, [12, samples] in whole microvolts as mV."""
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(0, 0.3, (12, samples)), 3)


def write_record(
    path: Path, signal_mv: np.ndarray, names: Sequence[str], *, rate_hz: int = 500, unit: str = "mV", scale: float = 1.0
) -> None:
    """A record as the releases hold it: 16 bits, a thousandth of a millivolt a step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = [[lead.upper() for lead in LEAD_NAMES].index(name.upper()) for name in names]
    wfdb.wrsamp(
        path.name,
        fs=rate_hz,
        units=[unit] * len(names),
        sig_name=list(names),
        p_signal=(signal_mv[order] * scale).T,
        fmt=["16"] * len(names),
        adc_gain=[1000.0 / scale] * len(names),
        baseline=[0] * len(names),
        write_dir=str(path.parent),
    )


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def edited(path: Path, change: Callable[[str], str]) -> None:
    """Change the text of a file."""
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def ptb_row(number: int, **cells: object) -> dict[str, object]:
    """A line of ptbxl_database.csv."""
    name = f"00000/{number:05d}"
    row: dict[str, object] = {
        "ecg_id": number,
        "patient_id": f"{15700 + number // 2}.0",
        "age": "56.0",
        "sex": 1,
        "height": "",
        "weight": "63.0",
        "recording_date": "1984-11-09 09:17:34",
        "report": "sinusrhythmus, normales ekg",
        "scp_codes": "{'NORM': 100.0, 'SR': 0.0}",
        **dict.fromkeys(QUALITY_FLAGS, ""),
        "strat_fold": 3,
        "filename_lr": f"records100/{name}_lr",
        "filename_hr": f"records500/{name}_hr",
    }
    return row | cells


@pytest.fixture
def ptb(tmp_path: Path) -> Path:
    """Four ECGs of three patients."""
    rows = [
        ptb_row(1),
        ptb_row(
            2, sex=0, age="300.0", baseline_drift=" , I-AVR,  ", strat_fold=9, scp_codes="{'AMI': 15.0, 'AFIB': 0.0}"
        ),
        ptb_row(3, pacemaker="ja, pacemaker", strat_fold=10),
        ptb_row(4, age="", sex="", weight=""),
    ]
    write_table(tmp_path / "ptbxl_database.csv", rows)
    statements = (
        ",description,diagnostic,diagnostic_class\nNORM,normal,1.0,NORM\nAMI,anterior,1.0,MI\nSR,sinus,,\nAFIB,af,,\n"
    )
    (tmp_path / "scp_statements.csv").write_text(statements, encoding="utf-8")
    for number in range(1, 5):
        write_record(tmp_path / f"records500/00000/{number:05d}_hr", signal(number), PTB_NAMES)
        write_record(tmp_path / f"records100/00000/{number:05d}_lr", signal(number, 12), PTB_NAMES, rate_hz=100)
    return tmp_path


def test_ptb_xl_is_read_as_published(ptb: Path) -> None:
    """Leads by their capital names in millivolt, patients, days, flags, superclasses, rhythm, demographics, folds."""
    found = ptb_xl(ptb)
    first, second, third, fourth = found.entries
    assert [entry.patient for entry in found.entries] == ["15700", "15701", "15701", "15702"]
    assert [entry.home for entry in found.entries] == ["training", "validation", "test", "training"]
    assert first.recorded == date(1984, 11, 9)
    assert first.demographics == {"age_years": 56.0, "male": 0.0, "weight_kg": 63.0}
    assert first.labels["superclass_NORM"]
    assert not first.labels["baseline_drift"]
    assert (second.labels["baseline_drift"], second.labels["superclass_MI"]) == (True, True)
    assert (second.labels["superclass_NORM"], second.labels["rhythm_atrial_fibrillation"]) == (False, True)
    assert second.demographics["male"] == 1.0
    assert "age_years" not in second.demographics
    assert third.labels["pacemaker"]
    assert fourth.demographics == {}
    record = found.load("2")
    assert record.sampling_rate_hz == 500.0
    np.testing.assert_allclose(record.signal_mv, signal(2), atol=1e-6)
    assert ptb_xl(ptb, rate_hz=100).load("2").sampling_rate_hz == 100.0
    assert pickle.loads(pickle.dumps(found.load))("2").signal_mv.shape == (12, 60)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "ptbxl_database.csv").unlink(),
            "no ptbxl_database.csv in the folder; expected the folder of PTB-XL",
        ),
        (lambda root: (root / "scp_statements.csv").unlink(), "no scp_statements.csv"),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace("strat_fold", "fold")),
            "has no column strat_fold",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.splitlines()[0] + "\n"),
            "a header and no ECG",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text + "5,1.0\n"),
            "line 6 has another number of cells",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace("15700.0", "")),
            "line 2: patient_id is empty",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace("15700.0", "a b")),
            "patient_id is no whole",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace("56.0", "old")),
            "line 2: age is no number",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace("1984-11-09", "9.11.84")),
            "is no date",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace("{'AMI'", "['AMI'")),
            "line 3: scp_codes is no",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace(",10,records", ",11,records")),
            "expected 1 to 10",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace("\n2,", "\n1,")),
            "1 keys are there twice",
        ),
        (
            lambda root: edited(root / "ptbxl_database.csv", lambda text: text.replace("records500/", "../")),
            "lies outside the folder",
        ),
        (
            lambda root: (root / "records500/00000/00003_hr.hea").unlink(),
            "1 of 4 records .* at 500 Hz are not in the folder",
        ),
        (lambda root: (root / "ptbxl_database.csv").write_bytes(b"ecg_id\xff"), "not readable as CSV"),
    ],
)
def test_a_wrong_folder_of_ptb_xl_is_named(ptb: Path, spoil: Callable[[Path], object], message: str) -> None:
    """Files, columns, lines and cells: what was found, where, and what was expected."""
    spoil(ptb)
    with pytest.raises(ValueError, match=message):
        ptb_xl(ptb)


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


@pytest.mark.parametrize(
    ("names", "options", "code"),
    [
        (LEAD_NAMES[:11], {}, RefusalCode.LEADS_MISSING),
        (LEAD_NAMES, {"unit": "mmHg"}, RefusalCode.UNIT_UNKNOWN),
    ],
)
def test_an_unusable_record_is_refused(
    tmp_path: Path, names: Sequence[str], options: dict[str, Any], code: RefusalCode
) -> None:
    """A lead that is missing and a unit that is no voltage; no lead is imputed, no unit assumed."""
    write_record(tmp_path / "r", signal(0), names, **options)
    with pytest.raises(InputRefused) as refusal:
        read_wfdb(tmp_path / "r")
    assert refusal.value.code is code


def test_microvolts_are_read_as_stated(tmp_path: Path) -> None:
    """The unit of the header, not of the format, gives the amplitude."""
    write_record(tmp_path / "r", signal(0), LEAD_NAMES, unit="uV", scale=1000.0)
    np.testing.assert_allclose(read_wfdb(tmp_path / "r").signal_mv, signal(0), atol=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / "r.dat").unlink(),
        lambda root: (root / "r.hea").unlink(),
        lambda root: (root / "r.hea").write_text("nonsense"),
        lambda root: (root / "r.hea").write_bytes(b"\xff\xfe\x00"),
        lambda root: edited(root / "r.hea", lambda text: text.replace(" 60\n", " 9999999\n")),
    ],
)
def test_a_damaged_record_is_refused_not_crashed_on(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """Missing or damaged headers and signals, and lengths that lie."""
    write_record(tmp_path / "r", signal(0), LEAD_NAMES)
    spoil(tmp_path)
    with pytest.raises(InputRefused):
        read_wfdb(tmp_path / "r")


def test_a_length_beyond_bounds_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """What the header promises is held to a limit, so that no file makes room for a day of samples."""
    write_record(tmp_path / "r", signal(0), LEAD_NAMES)
    edited(tmp_path / "r.hea", lambda text: text.replace(" 60\n", " 9999999\n"))
    with pytest.raises(InputRefused) as refusal:
        read_wfdb(tmp_path / "r")
    assert refusal.value.code is RefusalCode.LIMITS_EXCEEDED


def test_a_lead_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Which of two would be meant cannot be told."""
    write_record(tmp_path / "r", signal(0), (*LEAD_NAMES, "v1"))
    with pytest.raises(InputRefused, match="twice"):
        read_wfdb(tmp_path / "r")


def test_real_records_with_other_spellings_are_read(sample_data: Path) -> None:
    """PTB's small letters with Frank leads beside, and PTB-XL's capitals; a monitor strip lacks leads."""
    wfdb_folder = sample_data / "ecg" / "wfdb"
    for name, rate_hz in (("ptbdb_s0010_re/s0010_re", 1000.0), ("ptbxl_04827_lr/04827_lr", 100.0)):
        record = read_wfdb(wfdb_folder / name)
        assert record.sampling_rate_hz == rate_hz
        limb = record.signal_mv[1] - record.signal_mv[0] - record.signal_mv[2]
        assert np.nanmax(np.abs(limb)) < 0.01
    with pytest.raises(InputRefused, match="missing leads"):
        read_wfdb(wfdb_folder / "mimic_041s_multiseg" / "041s01")


def echo_row(number: int, split: str, **cells: object) -> dict[str, object]:
    """A line of the metadata."""
    row: dict[str, object] = {
        "ecg_key": f"e{number}",
        "patient_key": f"p{number}",
        "split": split,
        "age_at_ecg": 60 + number,
        "sex": "male",
        "lvef_value": 55.0,
        **dict.fromkeys(FLAGS, 0),
    }
    return row | cells


SPLITS = ("train", "no_split", "val", "train", "test")


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """Five ECGs in four splits, in no order; the last but one has no measured ejection fraction."""
    extra = {
        1: {"patient_key": "p4"},
        3: {"lvef_value": ""},
        4: {"lvef_value": 30, "lvef_lte_45_flag": 1, "sex": "female"},
    }
    rows = [echo_row(number, split, **extra.get(number, {})) for number, split in enumerate(SPLITS)]
    write_table(tmp_path / "echonext_metadata_100k.csv", rows)
    for split in set(SPLITS):
        members = [number for number, each in enumerate(SPLITS) if each == split]
        waves = np.stack([signal(number, 2500).T[None] for number in members])
        np.save(tmp_path / f"EchoNext_{split}_waveforms.npy", waves)
    return tmp_path


def test_echonext_rows_are_those_of_their_split(echo: Path) -> None:
    """The n-th row of a split's array is the n-th line with that split; patients of validation and test do not train."""
    found = echonext(echo, millivolt_per_unit=0.5)
    assert [(entry.key, entry.home) for entry in found.entries] == [
        ("e0", "training"),
        ("e3", "training"),
        ("e2", "validation"),
        ("e4", "test"),
    ]
    for number in (0, 2, 3, 4):
        record = found.load(f"e{number}")
        np.testing.assert_allclose(record.signal_mv, 0.5 * signal(number, 2500), rtol=1e-6)
    assert record.sampling_rate_hz == 250.0
    assert "stated guess" in record.warnings[0]
    assert found.entry("e4").demographics == {"age_years": 64.0, "male": 0.0}
    assert found.entry("e4").targets == {"lvef": 30.0}


def test_a_flag_of_zero_without_a_measurement_is_not_known(echo: Path) -> None:
    """Nobody measured the ejection fraction: the label is absent, neither present nor healthy."""
    found = echonext(echo, millivolt_per_unit=1.0)
    assert found.entry("e4").labels["lvef_lte_45_flag"] is True
    assert found.entry("e0").labels["lvef_lte_45_flag"] is False
    assert "lvef_lte_45_flag" not in found.entry("e3").labels
    assert found.entry("e3").targets == {}


def test_standardised_waveforms_have_no_amplitude_by_default(echo: Path) -> None:
    """Without a stated worth of a unit there is no millivolt and so no record."""
    with pytest.raises(ValueError, match="standardised and a record is in millivolt"):
        echonext(echo, millivolt_per_unit=None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "echonext_metadata_100k.csv").unlink(),
            "no echonext_metadata_100k.csv in the folder; expected",
        ),
        (lambda root: (root / "EchoNext_val_waveforms.npy").unlink(), "no EchoNext_val_waveforms.npy"),
        (lambda root: (root / "EchoNext_val_waveforms.npy").write_bytes(b"no array"), "not readable as an array"),
        (
            lambda root: np.save(root / "EchoNext_train_waveforms.npy", np.zeros((1, 1, 2500, 12))),
            "the table has 2 ECGs of that split",
        ),
        (
            lambda root: np.save(root / "EchoNext_val_waveforms.npy", np.zeros((1, 12, 2500))),
            "expected .1, 1, 2500, 12.",
        ),
        (
            lambda root: edited(root / "echonext_metadata_100k.csv", lambda text: text.replace("no_split", "later")),
            "splits .'later'.",
        ),
        (
            lambda root: edited(root / "echonext_metadata_100k.csv", lambda text: text.replace("p2", "p0")),
            "1 patients are in two splits",
        ),
        (
            lambda root: edited(
                root / "echonext_metadata_100k.csv", lambda text: text.replace("pasp_gte_45_flag", "p")
            ),
            "pasp_gte_45_flag",
        ),
        (
            lambda root: edited(root / "echonext_metadata_100k.csv", lambda text: text.replace("female", "2")),
            "line 6: sex is '2'",
        ),
        (
            lambda root: edited(root / "echonext_metadata_100k.csv", lambda text: text.replace("30,1", "30,7")),
            "flag is '7'; expected 0 or 1",
        ),
    ],
)
def test_a_wrong_folder_of_echonext_is_named(echo: Path, spoil: Callable[[Path], object], message: str) -> None:
    """Table, arrays, their shapes and rows, splits, columns and cells."""
    spoil(echo)
    with pytest.raises(ValueError, match=message):
        echonext(echo, millivolt_per_unit=1.0)


def test_a_refused_ecg_moves_nobody(ptb: Path) -> None:
    """Cases carry their keys; a damaged record in the middle is left out and counted, without naming it."""
    (ptb / "records500/00000/00002_hr.dat").unlink()
    found = ptb_xl(ptb)
    with capture_logs() as logs:
        cases = list(usable_cases(found))
    assert [case.entry.key for case in cases] == ["1", "3", "4"]
    for case in cases:
        np.testing.assert_allclose(case.record.signal_mv, signal(int(case.entry.key)), atol=1e-6)
    assert logs == [
        {
            "event": "ecgs.read",
            "log_level": "info",
            "data_set": "PTB-XL at 500 Hz",
            "read": 3,
            "pixel_data_inconsistent": 1,
        }
    ]
    assert [case.entry.key for case in usable_cases(found, ["4", "1"])] == ["4", "1"]
    with pytest.raises(ValueError, match="every ECG was refused"):
        list(usable_cases(found, ["2"]))
    with pytest.raises(ValueError, match="no ECG has this key"):
        found.entry("7")


def test_an_entry_does_not_print_its_patient() -> None:
    """Neither key nor patient is in the text of an entry or a set."""
    found = EcgSet(
        name="set", entries=(EcgEntry(key="k1234", patient="p5678"),), load=lambda _key: pytest.fail("loaded")
    )
    assert "k1234" not in repr(found) + repr(found.entries[0])
    assert "p5678" not in repr(found) + repr(found.entries[0])
    with pytest.raises(ValueError, match="set: no ECG"):
        EcgSet(name="set", entries=(), load=found.load)
