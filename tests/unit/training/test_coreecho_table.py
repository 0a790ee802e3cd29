"""From outcomes to numbers, page and requirements, and the file between them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.coreecho.evaluation import Answers, Draws
from training.coreecho.measurements import Comparison, Outcome, document
from training.coreecho.outcome import made_from_of, read_outcome, write_outcome
from training.coreecho.requirements import requirements
from training.coreecho.table import PUBLISHED, markdown

COMPARISON = Comparison(data_set="discs", caution="no hearts", sizes=(8, 4, 6), command="make it", settings=("a | b",))


def _answers(seed: int, *, noise: float, order: float) -> Answers:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(20, 70, 25)
    keys = tuple(f"video-{index}" for index in range(25))
    return Answers(
        keys=keys,
        patients=keys,
        truth_percent=truth,
        ef_percent=truth + noise * rng.standard_normal(25),
        clip_sd_percent=np.ones(25),
        embeddings_NE=np.stack([order * truth, 20 * rng.standard_normal(25)], axis=1),
    )


def _outcome(model: str, seed: int, *, noise: float, order: float) -> Outcome:
    domains = {
        domain: _answers(seed + offset, noise=noise, order=order)
        for offset, domain in enumerate(("in_domain", "out_of_domain"))
    }
    return Outcome(model=model, seed=seed, domains=domains, seconds=60.0, notes=("said once",))


def _measured(ours: tuple[float, float], theirs: tuple[float, float]) -> dict[str, Any]:
    outcomes = [
        _outcome(name, seed, noise=noise, order=order)
        for seed in (0, 1)
        for name, (noise, order) in (("CoReEcho", ours), ("L1", theirs))
    ]
    return document(outcomes, COMPARISON, Draws(errors=100, order=10))


@pytest.mark.parametrize(
    ("ours", "theirs", "met"),
    [
        ((3.0, 5.0), (6.0, 0.5), [True, True, True]),
        ((6.0, 5.0), (3.0, 0.5), [True, True, False]),
        ((3.0, 0.5), (6.0, 5.0), [False, False, True]),
    ],
)
def test_what_must_hold_is_held_against_what_was_measured(
    ours: tuple[float, float], theirs: tuple[float, float], met: list[bool]
) -> None:
    """A better order in both domains and an error out of domain that is no larger; of patients nothing is required."""
    measured = _measured(ours, theirs)
    assert [each.met for each in requirements(measured, phantoms=True)] == met
    assert requirements(measured, phantoms=False) == []


def test_the_page_shows_the_numbers_of_the_document() -> None:
    """Means, spreads, intervals, differences, the published rows beside ours, and the command."""
    measured = _measured((3.0, 5.0), (6.0, 0.5))
    page = markdown(json.loads(json.dumps(measured)))
    mae = measured["models"][0]["domains"]["in_domain"]["mae"]
    assert f"{mae['mean']:.2f} ± {mae['sd']:.2f}" in page
    for row in PUBLISHED:
        assert f"| {row.method} | {row.clips} | {row.mae} | {row.rmse} | {row.r2} |" in page
    assert "**ours: CoReEcho**" in page
    assert "`make it`" in page
    assert page.count("said once") == 2
    shown = measured["differences"][0]["mae"]
    assert f"{shown['value']:.2f} [{shown['low']:.2f}, {shown['high']:.2f}]" in page
    assert shown["high"] < 0 < measured["differences"][0]["order"]["low"]


def test_the_mean_and_spread_are_over_seeds() -> None:
    """Sample standard deviation of the values of each seed."""
    measured = _measured((3.0, 5.0), (6.0, 0.5))
    domain = measured["models"][1]["domains"]["out_of_domain"]
    values = [each["rmse"]["value"] for each in domain["of_each_seed"]]
    assert domain["rmse"] == {"mean": pytest.approx(np.mean(values)), "sd": pytest.approx(np.std(values, ddof=1))}


def test_outcomes_that_cannot_be_compared_are_refused() -> None:
    """None at all, one seed twice, and other videos than the model before."""
    ours = _outcome("CoReEcho", 0, noise=1.0, order=1.0)
    with pytest.raises(ValueError, match="no outcome"):
        document([], COMPARISON)
    with pytest.raises(ValueError, match="seed 0 twice"):
        document([ours, ours], COMPARISON)
    other = {name: replace(each, keys=each.keys[::-1]) for name, each in ours.domains.items()}
    with pytest.raises(ValueError, match="other in_domain videos"):
        document([ours, replace(ours, model="L1", domains=other)], COMPARISON)


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Numbers bit for bit, words and digest."""
    outcome = _outcome("CoReEcho", 4, noise=2.0, order=1.0)
    write_outcome(tmp_path / "one.npz", outcome, "digest")
    found = read_outcome(tmp_path / "one.npz")
    assert made_from_of(tmp_path / "one.npz") == "digest"
    assert (found.model, found.seed, found.seconds, found.notes) == ("CoReEcho", 4, 60.0, ("said once",))
    for domain, answers in outcome.domains.items():
        for name, value in vars(answers).items():
            assert np.array_equal(getattr(found.domains[domain], name), value), name
