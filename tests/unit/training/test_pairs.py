"""Pairs by patient and day, rows that are held to them, and splits by patient."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import date, timedelta

import numpy as np
import pytest

from training.data.pairs import Pair, Visit, pair_visits, require_rows
from training.data.patient_split import CALIBRATED_SHARES, part_of, site_held_out, split_by_patient

DAY = date(2020, 1, 1)


def visit(key: str, patient: str, day: int = 0) -> Visit:
    """A visit so many days after the first."""
    return Visit(key=key, patient=patient, day=DAY + timedelta(days=day))


def keys(pairs: list[Pair]) -> list[tuple[str, str]]:
    """ECG and images of each pair."""
    return [(pair.ecg.key, pair.cmr.key) for pair in pairs]


def test_defect_15_a_dropped_patient_moves_nobody() -> None:
    """Lists of other orders and lengths pair by patient: whoever lacks images in the middle shifts no one after them."""
    ecgs = [visit(f"e{n}", f"p{n}") for n in range(6)]
    cmrs = [visit(f"c{n}", f"p{n}") for n in (5, 3, 1, 0, 4, 9)]
    assert keys(pair_visits(ecgs, cmrs)) == [("e0", "c0"), ("e1", "c1"), ("e3", "c3"), ("e4", "c4"), ("e5", "c5")]


def test_defect_15_stored_rows_are_held_to_their_pairs() -> None:
    """A store with one row out of step is refused when it is opened, and the first wrong row is named."""
    pairs = pair_visits([visit(f"e{n}", f"p{n}") for n in range(4)], [visit(f"c{n}", f"p{n}") for n in range(4)])
    ecg_keys, cmr_keys = [f"e{n}" for n in range(4)], [f"c{n}" for n in range(4)]
    require_rows(pairs, ecg_keys, cmr_keys)
    with pytest.raises(ValueError, match="row 1 holds another heart"):
        require_rows(pairs, ecg_keys, ["c0", "c2", "c1", "c3"])
    with pytest.raises(ValueError, match="row 0 holds another ECG"):
        require_rows(pairs, ecg_keys[::-1], cmr_keys)
    with pytest.raises(ValueError, match="4 pairs, 4 ECGs and 3 images"):
        require_rows(pairs, ecg_keys, cmr_keys[:3])


def test_the_nearest_pair_within_the_window_is_taken() -> None:
    """Nearer days first; of equally near ones the earlier; beyond the window none."""
    ecgs = [visit("early", "p", -6), visit("near", "p", 2), visit("far", "q", 30), visit("other", "r", 7)]
    cmrs = [visit("c", "p", 0), visit("d", "q", 0), visit("f", "r", 0)]
    assert keys(pair_visits(ecgs, cmrs)) == [("near", "c"), ("other", "f")]
    assert keys(pair_visits([visit("b", "p", 1), visit("a", "p", -1)], cmrs[:1])) == [("a", "c")]
    assert [pair.days for pair in pair_visits([visit("a", "p", -3)], cmrs[:1])] == [3]
    for days in (8, -8):
        with pytest.raises(ValueError, match="no pair within 7 days"):
            pair_visits([visit("a", "p", days)], cmrs[:1])
    with pytest.raises(ValueError, match="no pair within 0 days"):
        pair_visits(ecgs[:2], cmrs, window_days=0)


def test_one_pair_a_patient_unless_all_visits_are_wanted() -> None:
    """Repeat visits are no negatives of each other; wanted, each ECG and each set of images is used once."""
    ecgs = [visit("e1", "p", 0), visit("e2", "p", 100), visit("e3", "p", 101)]
    cmrs = [visit("c1", "p", 1), visit("c2", "p", 101)]
    assert keys(pair_visits(ecgs, cmrs)) == [("e3", "c2")]
    assert keys(pair_visits(ecgs, cmrs, one_per_patient=False)) == [("e1", "c1"), ("e3", "c2")]


def test_a_procedure_between_the_two_makes_no_pair() -> None:
    """The heart that was imaged is not the heart of the ECG; the day itself counts."""
    ecgs, cmrs = [visit("e1", "p", -2), visit("e2", "p", 4)], [visit("c", "p", 0)]
    between = {"p": [DAY + timedelta(days=-1)]}
    assert keys(pair_visits(ecgs, cmrs, procedures=between)) == [("e2", "c")]
    assert keys(pair_visits(ecgs, cmrs, procedures={"q": between["p"]})) == [("e1", "c")]


def test_what_cannot_be_paired_is_refused() -> None:
    """Two patients, a key twice, a negative window; a pair does not print its patient."""
    with pytest.raises(ValueError, match="two patients"):
        Pair(ecg=visit("e", "p"), cmr=visit("c", "q"))
    with pytest.raises(ValueError, match="key of the images is there twice"):
        pair_visits([visit("e", "p")], [visit("c", "p"), visit("c", "q")])
    with pytest.raises(ValueError, match="expected 0 or more"):
        pair_visits([visit("e", "p")], [visit("c", "p")], window_days=-1)
    assert "p1234" not in repr(visit("e", "p1234"))


def test_defect_14_a_patient_has_one_part_in_every_file_and_stage() -> None:
    """ECGs, images and tables in any order, with anybody missing, put a patient in the same part."""
    patients = [f"p{n}" for n in range(400)]
    ecg_parts = {patients[row]: name for name, rows in split_by_patient(patients, "salt").items() for row in rows}
    images = [patient for patient in reversed(patients) if not patient.endswith("7")]
    image_parts = {images[row]: name for name, rows in split_by_patient(images, "salt").items() for row in rows}
    assert all(ecg_parts[patient] == part for patient, part in image_parts.items())
    assert any(part_of(patient, "other") != part for patient, part in ecg_parts.items())


def test_shares_are_as_asked_and_visits_of_a_patient_stay_together() -> None:
    """70, 15 and 15 percent within sampling error; no patient in two parts; every row in one."""
    patients = [f"patient-{n // 2}" for n in range(20_000)]
    rows = split_by_patient(patients, "a")
    counts = Counter({name: len(each) for name, each in rows.items()})
    assert counts.total() == 20_000
    assert counts["training"] / 20_000 == pytest.approx(0.70, abs=0.015)
    assert counts["test"] / 20_000 == pytest.approx(0.15, abs=0.012)
    members = [{patients[row] for row in each} for each in rows.values()]
    assert sum(map(len, members)) == 10_000
    four = split_by_patient(patients, "a", CALIBRATED_SHARES)
    assert len(four["calibration"]) / 20_000 == pytest.approx(0.15, abs=0.012)


def test_the_split_is_the_published_formula() -> None:
    """sha256(salt|patient) mod 100 below 70 trains, below 85 validates: other implementations agree."""
    for patient in map(str, range(50)):
        place = int.from_bytes(hashlib.sha256(f"s|{patient}".encode()).digest(), "big") % 100
        expected = "training" if place < 70 else "validation" if place < 85 else "test"
        assert part_of(patient, "s") == expected


def test_a_split_that_cannot_be_is_refused() -> None:
    """Shares that are not 100, a patient without a key, a part without patients."""
    with pytest.raises(ValueError, match="together 100"):
        part_of("p", "s", {"training": 70, "test": 20})
    with pytest.raises(ValueError, match="without a key"):
        part_of("", "s")
    with pytest.raises(ValueError, match="leave no one for"):
        split_by_patient(["p"], "s")


def test_a_site_is_held_out_whole() -> None:
    """Its rows are the second part, all others the first; a site that is not there is refused."""
    outside, inside = site_held_out(["a", "b", "a", "c"], "a")
    assert np.array_equal(inside, [0, 2])
    assert np.array_equal(outside, [1, 3])
    with pytest.raises(ValueError, match="0 rows are of site 'z'"):
        site_held_out(["a", "b"], "z")
    with pytest.raises(ValueError, match="0 of others"):
        site_held_out(["a", "a"], "a")
