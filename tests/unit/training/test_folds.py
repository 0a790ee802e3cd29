"""Folds: consecutive runs of sorted keys, and classes in equal shares with the videos of a patient together."""

from __future__ import annotations

import pytest

from training.data.folds import sorted_folds, stratified_folds


def test_sorted_folds_hold_out_fifty_of_five_hundred() -> None:
    """The published folds of CAMUS: sorted names, ten runs of fifty, each key held out once."""
    keys = [f"patient{number:04d}_4CH" for number in range(500, 0, -1)]
    folds = sorted_folds(keys)
    assert [len(held_out) for _, held_out in folds] == [50] * 10
    assert folds[1][1][0] == "patient0051_4CH"
    assert [key for _, held_out in folds for key in held_out] == sorted(keys)
    assert all(not set(train) & set(held_out) and len(train) == 450 for train, held_out in folds)


def test_stratified_folds_share_classes_and_keep_patients_together() -> None:
    """Each of five folds has the share of infarctions of all, no patient is on both sides, and the seed decides."""
    labels = {f"v{number:03d}": int(number % 3 != 0) for number in range(90)}
    patients = {key: f"p{int(key[1:]) // 6}" if int(key[1:]) < 12 else key for key in labels}
    folds = stratified_folds(labels, patients, seed=1)
    for train, held_out in folds:
        assert not {patients[key] for key in train} & {patients[key] for key in held_out}
        assert sum(labels[key] for key in held_out) / len(held_out) == pytest.approx(2 / 3, abs=0.08)
    assert sorted(key for _, held_out in folds for key in held_out) == sorted(labels)
    assert folds == stratified_folds(dict(reversed(labels.items())), patients, seed=1)
    assert folds != stratified_folds(labels, patients, seed=2)


def test_too_few_videos_for_the_folds() -> None:
    """Fewer videos than folds, or fewer patients of a class, are refused with their number."""
    with pytest.raises(ValueError, match="3 videos are too few for 10 folds"):
        sorted_folds(["a", "b", "c"])
    labels = {f"v{number}": int(number < 4) for number in range(20)}
    with pytest.raises(ValueError, match="class 1 has 4 patients, too few for 5 folds"):
        stratified_folds(labels, {key: key for key in labels})
