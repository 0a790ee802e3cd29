"""WFDB records of data sets: leads by name, amplitudes by stated unit, damage refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import InputRefused, RefusalCode
from engines.records import LEAD_NAMES
from tests.doubles.ecg_sets import edited, signal, write_record
from training.data.sources.wfdb_ecg import read_wfdb


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
