"""What lies in the repository is what the recipes say: small, measured, and described in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.bundle.reader import RELEASED, load_bundle
from training.config import load_recipe
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.release_plan import release_plan
from training.signature import input_spec

REPOSITORY = Path(__file__).parents[3]
RELEASES = {"echo_ef": "coreecho_small", "cmr_risk": "enf_small", "ecg_cmr": "ecg_cmr_triplet_small"}
LARGEST_BYTES = {"echo_ef": 6_000_000, "cmr_risk": 12_000_000, "ecg_cmr": 8_000_000}


@pytest.mark.parametrize(("folder", "recipe"), RELEASES.items())
def test_a_released_bundle_is_the_product_of_its_recipe(folder: str, recipe: str) -> None:
    """Name, version, modality, preprocessing and input are those of the recipe."""
    manifest, config = load_bundle(RELEASED / folder).manifest, load_recipe(recipe)
    released = release_plan(config) if isinstance(config, EcgCmrRun) else config
    assert (manifest.name, manifest.version) == (released.bundle.name, released.bundle.version)
    assert manifest.preprocess == released.data.preprocess
    assert manifest.inputs == (input_spec(released.data.preprocess),)


def test_the_released_ecg_says_all_that_its_plan_asks() -> None:
    """Quantities with two intervals each, six probabilities, and R2 of the ECG above that of demographics alone."""
    plan, manifest = release_plan(load_recipe(RELEASES["ecg_cmr"])), load_bundle(RELEASED / "ecg_cmr").manifest
    assert tuple(each.quantity for each in manifest.postprocess.estimates) == plan.quantities
    assert tuple(each.condition for each in manifest.postprocess.conditions) == plan.diseases
    assert manifest.wide_intervals is not None
    assert manifest.wide_intervals.coverage_percent == plan.wide_coverage_percent
    assert manifest.metrics["lvef_r_squared"] > manifest.metrics["lvef_demographics_only_r_squared"]


@pytest.mark.parametrize("folder", RELEASES)
def test_a_released_bundle_is_small(folder: str) -> None:
    """All files together stay under six million bytes; eight for the ECG with its check, twelve for the field."""
    assert sum(file.stat().st_size for file in (RELEASED / folder).iterdir()) < LARGEST_BYTES[folder]


@pytest.mark.parametrize("folder", RELEASES)
def test_a_released_bundle_was_measured(folder: str) -> None:
    """At least a hundred hearts that the network never saw, of which it answered at least nine in ten."""
    metrics = load_bundle(RELEASED / folder).manifest.metrics
    assert metrics["test_hearts"] >= 100
    assert metrics["refused_or_abstained_share"] <= 0.1


@pytest.mark.parametrize("folder", RELEASES)
def test_a_released_bundle_says_that_it_is_not_for_patients(folder: str) -> None:
    """Manifest and card say phantoms and not for clinical use."""
    bundle = load_bundle(RELEASED / folder)
    assert "phantoms" in bundle.manifest.training_data
    assert "not for clinical use" in bundle.manifest.intended_use.lower()


@pytest.mark.parametrize("folder", RELEASES)
def test_the_card_in_the_documentation_is_that_of_the_bundle(folder: str) -> None:
    """``docs/models`` holds a copy of every released card, byte for byte."""
    card = (REPOSITORY / "docs" / "models" / f"{folder}.md").read_bytes()
    assert card == load_bundle(RELEASED / folder).read("MODEL_CARD.md")


@pytest.mark.parametrize("folder", RELEASES)
def test_a_released_bundle_says_nothing_of_the_machine_it_was_made_on(folder: str) -> None:
    """No path of a machine stands in any file."""
    for file in (RELEASED / folder).iterdir():
        content = file.read_bytes()
        assert b"/home/" not in content
        assert str(REPOSITORY).encode() not in content
