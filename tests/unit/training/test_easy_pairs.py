"""Hearts without nuisance: what two records differ in is the heart, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.data.sources.paired_subjects import draw_patient
from training.data.targets import DISEASES
from training.ecg_cmr import easy_pairs
from training.ecg_cmr.easy_pairs import FIBRILLATION, RATE_BPM, EasyPairs
from training.ecg_cmr.pair_source import PhantomPairs


@pytest.fixture(scope="module")
def pairs() -> EasyPairs:
    """A few patients, of whom some fibrillate in the cohort they come from."""
    return easy_pairs.easy_pairs(seed=7, patients=60)


def test_the_same_heart_gives_the_same_records_whoever_it_is(pairs: EasyPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two patients with one heart have one ECG and one set of images: no random number is the patient's own."""
    first = draw_patient(pairs.seed, 0, "easy")
    monkeypatch.setattr(easy_pairs, "draw_patient", lambda _seed, _index, _cohort: first)
    one, two = pairs.read(0), pairs.read(1)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_another_heart_gives_other_records(pairs: EasyPairs) -> None:
    """ECG and images both change with the heart."""
    one, two = pairs.read(0), pairs.read(1)
    assert np.abs(one["ecg"] - two["ecg"]).max() > 0.05
    assert np.abs(one["volumes"].astype(float) - two["volumes"].astype(float)).max() > 0.5


def test_all_have_one_rate_and_rhythm(pairs: EasyPairs) -> None:
    """Nobody fibrillates, and the cardiac output is that of the common rate; other diseases stay as they were drawn."""
    entries, drawn = pairs.entries(), [draw_patient(pairs.seed, index, "easy") for index in range(60)]
    assert any(each.heart.diseases[FIBRILLATION] for each in drawn)
    assert not any(entry.diseases[FIBRILLATION] or FIBRILLATION in entry.diagnosed_on for entry in entries)
    for entry, patient in zip(entries, drawn, strict=True):
        assert entry.targets["cardiac_output"] == pytest.approx(entry.targets["lvsv"] * RATE_BPM / 1000)
        assert {name: entry.diseases[name] for name in DISEASES if name != FIBRILLATION} == {
            name: patient.heart.diseases[name] for name in DISEASES if name != FIBRILLATION
        }


def test_its_store_is_no_store_of_the_cohort(pairs: EasyPairs) -> None:
    """Name and digest differ from those of the easy cohort with nuisance, so neither is taken for the other."""
    with_nuisance = PhantomPairs(seed=7, patients=60, cohort="easy", ecg=pairs.ecg, cmr=pairs.cmr)
    assert pairs.name != with_nuisance.name
    assert pairs.spec["code_sha256"] != with_nuisance.spec["code_sha256"]


def test_it_needs_the_coarse_scanner(pairs: EasyPairs) -> None:
    """Without settings of the scanner each stack would have its own."""
    with pytest.raises(ValueError, match="scanner"):
        replace(pairs, scan=None)
