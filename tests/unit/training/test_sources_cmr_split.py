"""The balanced split: disjoint, half and half, the same for the same patients in any order and company."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.splits import balanced_split

SIZES = (20, 8, 7)


def patients(low: int, high: int) -> tuple[list[str], np.ndarray]:
    """Keys and LVEF; 40 % is of the low class."""
    return [f"p{n}" for n in range(low + high)], np.r_[np.linspace(12, 40, low), np.linspace(40.5, 75, high)]


def parts_by_key(
    keys: list[str], lvef: np.ndarray, seed: int = 1, sizes: tuple[int, int, int] = SIZES
) -> dict[str, int]:
    """The part of each patient who is in one."""
    parts = balanced_split(keys, lvef, threshold_percent=40.0, sizes=sizes, seed=seed)
    return {keys[row]: part for part, rows in enumerate(parts) for row in rows}


@settings(max_examples=50, deadline=None)
@given(low=st.integers(17, 60), high=st.integers(18, 60), seed=st.integers(0, 10**6))
def test_parts_are_disjoint_and_half_and_half(low: int, high: int, seed: int) -> None:
    """Every part has its size and half of it at most at the threshold; of an odd size the other half has one more."""
    keys, lvef = patients(low, high)
    parts = balanced_split(keys, lvef, threshold_percent=40.0, sizes=SIZES, seed=seed)
    assert tuple(map(len, parts)) == SIZES
    assert len(set(np.concatenate(parts).tolist())) == sum(SIZES)
    assert [int((lvef[rows] <= 40).sum()) for rows in parts] == [10, 4, 3]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(seed: int, order: object) -> None:
    """A permutation of the patients gives the same patients in the same parts, in the same order."""
    keys, lvef = patients(25, 40)
    rows = list(range(len(keys)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    first = balanced_split(keys, lvef, threshold_percent=40.0, sizes=SIZES, seed=seed)
    second = balanced_split([keys[r] for r in rows], lvef[rows], threshold_percent=40.0, sizes=SIZES, seed=seed)
    for one, other in zip(first, second, strict=True):
        assert [keys[row] for row in one] == [keys[rows[row]] for row in other]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_more_patients_never_move_one_between_parts(seed: int) -> None:
    """Where no part lacks patients, who is in both splits is in the same part of both."""
    keys, lvef = patients(500, 500)
    few = [*range(200), *range(500, 700)]
    small, large = parts_by_key([keys[r] for r in few], lvef[few], seed), parts_by_key(keys, lvef, seed)
    both = small.keys() & large.keys()
    assert {key: small[key] for key in both} == {key: large[key] for key in both}


def test_the_published_sizes_fit_395_patients_exactly() -> None:
    """275, 60 and 60 of 197 and 198 patients: everybody is used, in about half and half."""
    keys, lvef = patients(197, 198)
    parts = balanced_split(keys, lvef, threshold_percent=40.0, seed=42)
    assert tuple(map(len, parts)) == (275, 60, 60)
    assert len(set(np.concatenate(parts).tolist())) == 395
    assert parts_by_key(keys, lvef, 42, (275, 60, 60)) != parts_by_key(keys, lvef, 43, (275, 60, 60))


def test_home_parts_follow_the_sizes() -> None:
    """Of many patients who are not needed elsewhere, each part draws in proportion: nobody has to borrow."""
    keys, lvef = patients(2000, 2000)
    before = parts_by_key(keys, lvef)
    dropped = {key for key, part in before.items() if part == 0}
    kept = [row for row, key in enumerate(keys) if key not in dropped]
    after = parts_by_key([keys[r] for r in kept], lvef[kept])
    assert {key: part for key, part in before.items() if part} == {key: part for key, part in after.items() if part}


def test_too_few_of_a_class_says_how_many_are_missing() -> None:
    """Both classes are counted, with what is needed."""
    keys, lvef = patients(10, 16)
    with pytest.raises(
        ValueError, match=r"10 patients with LVEF <= 40 %, 17 needed: 7 missing; 16 .* 18 needed: 2 missing"
    ):
        balanced_split(keys, lvef, threshold_percent=40.0, sizes=SIZES, seed=1)


def test_what_is_no_set_of_patients_is_refused() -> None:
    """A key twice, an unknown LVEF, another length and empty parts are mistakes of the caller."""
    keys, lvef = patients(30, 30)
    with pytest.raises(ValueError, match="1 keys are there more than once"):
        balanced_split([*keys[:-1], keys[0]], lvef, threshold_percent=40.0, sizes=SIZES, seed=1)
    with pytest.raises(ValueError, match="expected a number for each of 60 keys"):
        balanced_split(keys, np.r_[lvef[:-1], np.nan], threshold_percent=40.0, sizes=SIZES, seed=1)
    with pytest.raises(ValueError, match=r"LVEF has the shape \(59,\)"):
        balanced_split(keys, lvef[:-1], threshold_percent=40.0, sizes=SIZES, seed=1)
    with pytest.raises(ValueError, match="expected at least 2 patients"):
        balanced_split(keys, lvef, threshold_percent=40.0, sizes=(20, 0, 4), seed=1)
