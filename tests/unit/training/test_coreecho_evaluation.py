"""Numbers of the evaluation: bins, patients, intervals, the order of embeddings, and the two protocols."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from tests.doubles.echo_runs import TinyEncoder, discs, tiny_run
from training.coreecho.answers import answers_of
from training.coreecho.clips import all_starts, fixed_starts
from training.coreecho.evaluation import (
    Answers,
    Draws,
    bin_of,
    difference,
    measured,
    order_by_ef,
    order_difference,
    over_draws,
)
from training.coreecho.networks import EndToEndNet
from training.metrics import mean_absolute_error, patient_draws, r_squared


def _answers(count: int = 40, *, noise: float = 4.0, order: float = 1.0, seed: int = 0) -> Answers:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(20, 70, count)
    embeddings = np.stack([order * truth, rng.normal(0, 10, count)], axis=1)
    keys = tuple(f"video-{index}" for index in range(count))
    return Answers(
        keys=keys,
        patients=keys,
        truth_percent=truth,
        ef_percent=truth + rng.normal(0, noise, count),
        clip_sd_percent=np.ones(count),
        embeddings_NE=embeddings,
    )


def test_the_numbers_are_those_of_their_definitions() -> None:
    """MAE, RMSE, R2, slope, order and bins are what numpy and scipy say, each inside its interval."""
    answers = _answers()
    found = measured(answers, Draws(errors=300, order=50))
    error = answers.ef_percent - answers.truth_percent
    assert found["mae"]["value"] == pytest.approx(np.abs(error).mean(), abs=1e-4)
    assert found["rmse"]["value"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-4)
    assert found["r2"]["value"] == pytest.approx(1 - error.var() / answers.truth_percent.var(), abs=0.01)
    assert found["slope"]["value"] == pytest.approx(
        np.polyfit(answers.truth_percent, answers.ef_percent, 1)[0], abs=1e-4
    )
    pairs = pdist(answers.embeddings_NE), pdist(answers.truth_percent[:, None])
    assert found["order"]["value"] == pytest.approx(spearmanr(*pairs).statistic, abs=1e-4)
    for name in ("mae", "rmse", "r2", "slope", "order"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    low = answers.truth_percent < 35
    assert found["mae_by_bin"]["below 35"]["value"] == pytest.approx(np.abs(error[low]).mean(), abs=1e-4)
    assert sum(each["videos"] for each in found["mae_by_bin"].values()) == 40


def test_the_middle_bin_holds_its_borders() -> None:
    """35 and 50 percent lie in the middle."""
    assert bin_of(np.array([34.9, 35.0, 50.0, 50.1])).tolist() == [0, 1, 1, 2]


def test_an_empty_bin_says_so() -> None:
    """Hearts above 50 percent only: the other bins have no video and no number."""
    answers = replace(_answers(), truth_percent=np.linspace(51, 70, 40))
    assert measured(answers, Draws(errors=10, order=5))["mae_by_bin"]["below 35"] == {"videos": 0}


def test_the_videos_of_a_patient_are_drawn_together() -> None:
    """Every draw holds all videos of each drawn patient, as often as the patient was drawn."""
    patients = ["b", "a", "b", "c", "a", "b"]
    draws = patient_draws(patients, draws=200, seed=1)
    sizes = {name: patients.count(name) for name in "abc"}
    for rows in draws:
        counts = np.bincount(rows, minlength=len(patients))
        for name, size in sizes.items():
            of_patient = counts[[index for index, each in enumerate(patients) if each == name]]
            assert len(set(of_patient)) == 1, size
        assert sum(counts[patients.index(name)] for name in "abc") == 3
    assert len({tuple(rows) for rows in draws}) > 5


def test_more_videos_of_the_same_patients_do_not_narrow_the_interval() -> None:
    """The same answers four times over, under the same patients, have the same interval."""
    once = _answers(30)
    four = Answers(
        keys=tuple(f"{key}-{copy}" for copy in range(4) for key in once.keys),
        patients=once.patients * 4,
        truth_percent=np.tile(once.truth_percent, 4),
        ef_percent=np.tile(once.ef_percent, 4),
        clip_sd_percent=np.tile(once.clip_sd_percent, 4),
        embeddings_NE=np.tile(once.embeddings_NE, (4, 1)),
    )
    single, multiple = (measured(each, Draws(errors=500, order=5))["mae"] for each in (once, four))
    assert multiple == pytest.approx(single)


def test_a_draw_of_one_value_is_left_out_of_r2() -> None:
    """R2 is undefined for a constant truth: such draws do not end in an error."""
    truth, given = np.array([30.0, 60.0]), np.array([32.0, 55.0])
    found = over_draws(r_squared, truth, given, [np.array([0, 0]), np.array([0, 1]), np.array([1, 1])])
    assert found.low == found.high == pytest.approx(found.value)


def test_the_order_is_of_pairs_of_patients() -> None:
    """Two videos of one patient are no pair, so neither is a patient with himself in a draw."""
    answers = _answers(20)
    near = replace(answers, patients=(answers.patients[1], *answers.patients[1:]))
    distances = pdist(near.embeddings_NE), pdist(near.truth_percent[:, None])  # the first pair is of rows 0 and 1
    value = order_by_ef(near, draws=5).value
    assert value == pytest.approx(spearmanr(*(each[1:] for each in distances)).statistic)
    assert value != pytest.approx(spearmanr(*distances).statistic, abs=1e-9)


def test_ordered_embeddings_have_a_higher_order() -> None:
    """A line along the ejection fraction orders nearly perfectly, noise does not."""
    good, bad = _answers(order=50.0), _answers(order=0.0)
    assert order_by_ef(good, draws=20).value > 0.95
    assert abs(order_by_ef(bad, draws=20).value) < 0.25
    assert order_difference(good, bad, draws=20).low > 0.5


def test_constant_embeddings_have_no_order() -> None:
    """A collapsed network has no rank correlation, and no interval."""
    flat = replace(_answers(), embeddings_NE=np.ones((40, 2)))
    assert np.isnan(order_by_ef(flat, draws=5).value)


def test_differences_are_of_the_same_videos() -> None:
    """A better answer has a negative difference in MAE; other videos are refused."""
    good, bad = _answers(noise=1.0), _answers(noise=8.0)
    found = difference(mean_absolute_error, good, bad)
    assert found.low < found.value < found.high < 0
    with pytest.raises(ValueError, match="other videos"):
        difference(mean_absolute_error, good, replace(bad, keys=bad.keys[::-1]))


@pytest.mark.parametrize("wrong", ["nan", "short"])
def test_answers_that_no_number_can_be_made_from_are_refused(wrong: str) -> None:
    """A NaN and a missing answer are named."""
    answers = _answers()
    given = np.where(np.arange(40) == 3, np.nan, answers.ef_percent) if wrong == "nan" else answers.ef_percent[:-1]
    with pytest.raises(ValueError, match="finite" if wrong == "nan" else "lengths"):
        replace(answers, ef_percent=given)


def test_the_answer_of_a_video_is_the_mean_over_its_clips() -> None:
    """Fixed: three clips; all: one for each start; mean, spread and embedding are of those very clips."""
    import torch

    from training.coreecho.videos import all_clips, fixed_clips

    torch.manual_seed(0)
    run, videos = tiny_run(), discs(3, seed=7, frames=16)
    network = EndToEndNet(TinyEncoder()).eval()
    assert len(fixed_starts(videos.video(0), run.clips, 3)) == 3
    assert len(all_starts(videos.video(0), run.clips)) == len(all_clips(videos, 0, run)) == 10
    for clips, cut in (("fixed", fixed_clips), ("all", all_clips)):
        answers = answers_of(network, videos, run, clips=clips)
        with torch.inference_mode():
            each = network(torch.from_numpy(cut(videos, 1, run)))
        assert answers.ef_percent[1] == pytest.approx(float(each["ef"].mean()), abs=1e-4)
        assert answers.clip_sd_percent[1] == pytest.approx(float(each["ef"].std(correction=0)), abs=1e-4)
        assert answers.embeddings_NE[1] == pytest.approx(each["embedding"].mean(dim=0).numpy(), abs=1e-5)
