"""PTB-XL in its own layout, every way such a folder can be wrong, and what becomes of a refused ECG."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from engines.records import LEAD_NAMES
from tests.doubles.ecg_sets import edited, signal, write_record, write_table
from training.data.sources.ecg_sets import EcgEntry, EcgSet, usable_cases
from training.data.sources.ptb_xl import QUALITY_FLAGS, ptb_xl

PTB_NAMES = tuple(name.upper() for name in LEAD_NAMES)


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
