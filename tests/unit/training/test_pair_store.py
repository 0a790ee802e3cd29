"""The store of pairs: rows stay with their patient, builds resume, splits go by patient, and foreign content is refused.

Tests named after a defect check that the one of this number in the published code is not ours.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from training.data.patient_split import CALIBRATED_SHARES, PUBLISHED_SHARES, part_of
from training.ecg_cmr import store_build
from training.ecg_cmr.pair_source import PairEntry, PhantomPairs, pair_key
from training.ecg_cmr.preparation import cmr_volume_small, ecg_of_pairs, phantom_pairs
from training.ecg_cmr.store import MANIFEST, PairStore, PairStoreError, array_sha256, shard_file
from training.ecg_cmr.store_build import build_pair_store


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Pairs whose arrays are their patient's number; some are refused, every fifth lacks a target."""

    count: int = 20
    refuse: tuple[int, ...] = (3, 9)
    spec: Mapping[str, Any] = field(default_factory=lambda: {"version": 1})
    salt: str = "salt"
    shares: Mapping[str, int] = field(default_factory=lambda: PUBLISHED_SHARES)
    visits: int = 1

    name = "numbers"

    def entries(self) -> Sequence[PairEntry]:
        return [self._entry(number) for number in range(self.count)]

    def _entry(self, number: int) -> PairEntry:
        patient, cmr_on = f"patient-{number // self.visits}", date(2020, 1, 1) + timedelta(days=number)
        ecg_on = cmr_on - timedelta(days=2)
        return PairEntry(
            key=pair_key(patient, ecg_on, cmr_on),
            patient=patient,
            ecg_on=ecg_on,
            cmr_on=cmr_on,
            targets={"lvef": float("nan") if number % 5 == 4 else 10.0 * number, "lvedv": 1.0 * number},
            diseases={"heart_failure": number % 2 == 0},
            diagnosed_on={"heart_failure": cmr_on} if number % 2 == 0 else {},
            demographics={"age_years": 40.0 + number},
        )

    def read(self, number: int) -> Mapping[str, NDArray[Any]]:
        if number in self.refuse:
            raise InputRefused(RefusalCode.HEART_NOT_FOUND, "No heart.")
        return {"ecg": np.full((2, 3), number, np.float32), "slice_mask": np.arange(4) < number}


def built(folder: Path, **changes: Any) -> PairStore:
    """A store of the numbers, four pairs a shard."""
    return build_pair_store(Numbers(**changes), folder, rows=4)


def number_of(store: PairStore, row: int) -> int:
    """The number that a row's patient was made with."""
    return int(store.patients[row].removeprefix("patient-"))


def test_defect_15_every_row_is_its_patients(tmp_path: Path) -> None:
    """Behind refused pairs, too, each array, truth and day is of the patient that the row names."""
    store = built(tmp_path)
    assert len(store) == 18
    ecg, mask, lvef = store.read("ecg"), store.read("slice_mask"), store.targets(["lvef", "lvedv"])
    for row in range(len(store)):
        number = number_of(store, row)
        assert np.all(ecg[row] == number)
        assert mask[row].sum() == min(number, 4)
        assert lvef[row, 1] == number
        assert store.pairs[row].cmr_on == date(2020, 1, 1) + timedelta(days=number)
        assert store.keys[row].startswith(f"patient-{number}/ecg-")
    assert [each["code"] for each in store.refused] == ["heart_not_found"] * 2
    assert store.arrays == {"ecg": ("<f4", (2, 3)), "slice_mask": ("|b1", (4,))}


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """Any order across shards, repeated or not; a part keeps its own places; a foreign place is refused."""
    store = built(tmp_path)
    assert store.read("ecg", [17, 0, 5, 0])[:, 0, 0].tolist() == [number_of(store, row) for row in (17, 0, 5, 0)]
    assert store.read("ecg", [2, 1, 0])[:, 0, 0].tolist() == [number_of(store, row) for row in (2, 1, 0)]
    part = store.only([7, 2])
    assert part.read("ecg")[:, 0, 0].tolist() == [number_of(store, row) for row in (7, 2)]
    assert pickle.loads(pickle.dumps(part)).read("ecg").tolist() == part.read("ecg").tolist()
    for row in (-1, 2):
        with pytest.raises(IndexError, match="expected 0 to 1"):
            part.read("ecg", [row])
    with pytest.raises(ValueError, match="no array 'echo'; the store has ecg, slice_mask"):
        store.read("echo")


def test_missing_values_stay_missing_and_misspelt_names_are_refused(tmp_path: Path) -> None:
    """What was not measured is NaN in its own place only; a name nobody has is a mistake."""
    store = built(tmp_path)
    lvef = store.targets(["lvef", "lvedv"])
    lacking = [number_of(store, row) % 5 == 4 for row in range(len(store))]
    assert np.isnan(lvef[:, 0]).tolist() == lacking
    assert not np.isnan(lvef[:, 1]).any()
    assert store.labels(["heart_failure"])[:, 0].tolist() == [
        float(number_of(store, row) % 2 == 0) for row in range(18)
    ]
    assert store.demographics(["age_years"])[0, 0] == 40
    assert np.isnan(store.only([row for row in range(18) if lacking[row]]).targets(["lvef"])).all()
    with pytest.raises(ValueError, match="no pair has lvfe among its targets; there are lvedv, lvef"):
        store.targets(["lvfe"])


def test_defect_11_each_target_is_its_own(tmp_path: Path) -> None:
    """Columns follow the names asked for, in any order, and a label made of one target is not made of another."""
    store = built(tmp_path)
    both, swapped = store.targets(["lvef", "lvedv"]), store.targets(["lvedv", "lvef"])
    assert np.array_equal(both, swapped[:, ::-1], equal_nan=True)
    above = store.targets(["lvef"])[:, 0] > 45
    expected = [number_of(store, row) > 4 and number_of(store, row) % 5 != 4 for row in range(len(store))]
    assert above.tolist() == expected


@pytest.mark.parametrize("array", ["ecg", "slice_mask"])
def test_defect_15_rows_out_of_step_are_refused(array: str, tmp_path: Path) -> None:
    """Two patients' rows of one array exchanged: digests are of key and array, so the store does not open."""
    store = built(tmp_path)
    path = shard_file(store.folder, 0, array)
    rows = np.load(path)
    np.save(path, rows[::-1])
    with pytest.raises(PairStoreError, match="stand in the row of another pair"):
        PairStore.open(store.folder)
    assert len(PairStore.open(store.folder, check_arrays=False)) == 18
    assert array_sha256("one", rows[0]) != array_sha256("other", rows[0])


def test_a_killed_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in a shard, the next build reads what is missing only, and the store is the one of a build in one go."""
    seen: list[int] = []
    read = Numbers.read

    def dying(self: Numbers, number: int) -> Mapping[str, NDArray[Any]]:
        seen.append(number)
        if number == 10 and len(seen) < 12:
            raise KeyboardInterrupt
        return read(self, number)

    monkeypatch.setattr(Numbers, "read", dying)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "killed")
    with pytest.raises(PairStoreError, match="whose build is not finished"):
        PairStore.open(tmp_path / "killed")
    resumed = built(tmp_path / "killed")
    assert seen == [*range(11), *range(8, 20)]
    assert resumed.sha256 == built(tmp_path / "whole").sha256
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_processes_make_the_same_store(tmp_path: Path) -> None:
    """Two processes and one give the same digest."""
    together = build_pair_store(Numbers(count=8), tmp_path / "two", rows=2, workers=2)
    assert together.sha256 == build_pair_store(Numbers(count=8), tmp_path / "one", rows=2).sha256


def test_a_finished_store_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for again it opens; asked for with other settings it is refused, unfinished ones too."""
    first = built(tmp_path)
    monkeypatch.setattr(store_build, "_build", None)
    assert built(tmp_path).sha256 == first.sha256
    for changes, what in ({"spec": {"version": 2}}, "spec"), ({"salt": "other"}, "salt"), ({"count": 21}, "entries"):
        with pytest.raises(PairStoreError, match=f"other settings .*{what}"):
            built(tmp_path, **changes)
    monkeypatch.undo()
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(PairStoreError, match="unfinished store of another data set"):
        built(tmp_path, spec={"version": 2})


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    """A moved patient, another store than asked for, or no store: each is named."""
    store = built(tmp_path)
    with pytest.raises(PairStoreError, match="use the store of that run"):
        PairStore.open(tmp_path, sha256="0" * 64)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["pairs"][0]["split"] = "validation" if manifest["pairs"][0]["split"] == "test" else "test"
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PairStoreError, match="its digest is foreign"):
        PairStore.open(tmp_path)
    shard_file(store.folder, 1, "ecg").unlink()
    with pytest.raises(PairStoreError, match="build it again"):
        PairStore(store.folder, store.manifest)._require_arrays()


def test_keys_are_unique_and_arrays_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key twice, or arrays of another shape in between, are refused."""
    entries = Numbers().entries()
    monkeypatch.setattr(Numbers, "entries", lambda _self: [*entries, entries[0]])
    with pytest.raises(ValueError, match="1 of 21 keys are there twice"):
        built(tmp_path / "twice")
    monkeypatch.undo()
    read = Numbers.read
    monkeypatch.setattr(Numbers, "read", lambda self, n: {**read(self, n), **({"ecg": np.zeros(n)} if n == 6 else {})})
    with pytest.raises(ValueError, match="different arrays"):
        built(tmp_path / "shape")


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    """A data set of which every pair is refused says so with the first reason."""
    with pytest.raises(ValueError, match="all 4 pairs were refused, the first because No heart"):
        built(tmp_path, count=4, refuse=(0, 1, 2, 3))


def test_the_split_is_a_hash_of_the_patient() -> None:
    """70, 15 and 15 % of patients; nothing else moves anybody; another salt is another split; known values stay."""
    parts = [part_of(f"patient-{number}", "salt") for number in range(4000)]
    for part, share in PUBLISHED_SHARES.items():
        assert parts.count(part) / 40 == pytest.approx(share, abs=2)
    assert parts != [part_of(f"patient-{number}", "other") for number in range(4000)]
    places = [int(hashlib.sha256(f"purkinje|{number}".encode()).hexdigest(), 16) % 100 for number in range(50)]
    expected = ["training" if place < 70 else "validation" if place < 85 else "test" for place in places]
    assert [part_of(str(number), "purkinje") for number in range(50)] == expected
    calibrated = [part_of(f"patient-{number}", "salt", CALIBRATED_SHARES) for number in range(4000)]
    assert calibrated.count("calibration") / 40 == pytest.approx(15, abs=2)
    assert [part == "test" for part in calibrated] == [part == "test" for part in parts]
    with pytest.raises(ValueError, match="without a key"):
        part_of("", "salt")
    with pytest.raises(ValueError, match="together 100"):
        part_of("patient", "salt", {"training": 70, "test": 20})


def test_visits_of_a_patient_stay_together(tmp_path: Path) -> None:
    """Three visits of one patient are in one part, whatever array or stage reads them."""
    store = built(tmp_path, count=60, refuse=(), visits=3)
    parts = {part: set(store.subset(part).patients) for part in PUBLISHED_SHARES}
    assert sum(len(patients) for patients in parts.values()) == 20
    assert all(parts.values())
    with pytest.raises(ValueError, match="no pair is of the part 'holdout'"):
        store.subset("holdout")


@pytest.fixture(scope="module")
def phantoms() -> PhantomPairs:
    """Three patients of the easy cohort, in coarse pixels."""
    source = phantom_pairs(seed=1, patients=3, cohort="easy")
    cmr = cmr_volume_small()
    heart = cmr.heart.model_copy(update={"size_px": 24, "pixel_spacing_mm": 7.0})
    return replace(source, cmr=cmr.model_copy(update={"heart": heart, "phases": 8}))


def test_digital_hearts_become_a_store(phantoms: PhantomPairs, tmp_path: Path) -> None:
    """ECG, both volumes, mask and cine of each patient, with the truths of the same heart."""
    store = build_pair_store(phantoms, tmp_path)
    assert store.arrays == {
        "ecg": ("<f4", (12, ecg_of_pairs().window_samples)),
        "volumes": ("<f2", (2, 12, 24, 24)),
        "slice_mask": ("|b1", (12,)),
        "cine": ("<f2", (8, 24, 24)),
    }
    assert len(store) + len(store.refused) == 3
    assert len(store) >= 2
    targets = store.targets(["lvef", "lvedv", "lvesv"])
    assert targets[:, 0] == pytest.approx(100 * (1 - targets[:, 2] / targets[:, 1]))
    volumes, mask = store.read("volumes").astype(float), store.read("slice_mask")
    assert np.isfinite(volumes).all()
    assert volumes[np.broadcast_to(mask[:, None], volumes.shape[:3])].std() == pytest.approx(1, abs=0.01)


def test_phantoms_are_described_by_what_decides_them(phantoms: PhantomPairs) -> None:
    """Seed, cohort and preparation each make another data set; the number of patients only another list."""
    others = [replace(phantoms, seed=2), replace(phantoms, cohort="standard"), replace(phantoms, scan=None)]
    described = [(each.name, json.dumps(dict(each.spec))) for each in (phantoms, *others)]
    assert len(set(described)) == 4
    assert phantoms.spec == replace(phantoms, patients=9).spec
