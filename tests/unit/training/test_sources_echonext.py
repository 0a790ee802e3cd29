"""EchoNext in its own layout, and every way such a folder can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.doubles.ecg_sets import edited, signal, write_table
from training.data.sources.echonext import FLAGS, echonext


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
