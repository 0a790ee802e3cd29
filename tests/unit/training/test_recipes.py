"""Recipes describe themselves; the command line stays light."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from training.cli import main
from training.config import config_digest, describe, load_recipe, load_run, recipe_names, with_size
from training.signature import input_spec, output_specs

NAMES = ("ecg_cmr_small", "echo_ef_small")


FIELDS = ("enf_published", "enf_small")


def test_every_modality_has_a_recipe() -> None:
    """Two networks trained end to end, and two sizes of the field."""
    assert {*NAMES, *FIELDS} <= set(recipe_names())


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_describes_itself(name: str) -> None:
    """The description is JSON and holds shape, fit, outer loop, classifier and preprocessing."""
    config = load_recipe(name)
    described = json.loads(json.dumps(describe(config)))
    assert described["recipe"] == name
    assert described["shape"]["latents"] == 64
    assert described["fit"]["steps"] == 3
    assert described["data"]["preprocess"] == config.data.preprocess.model_dump(mode="json")


@pytest.mark.parametrize("percent", [30, 35, 50])
def test_another_threshold_is_another_recipe(percent: int) -> None:
    """It differs from the released one in task, names and words, and in nothing else."""
    name = f"enf_small_lvef_at_most_{percent}"
    config, released = load_recipe(name), load_recipe("enf_small")
    assert (config.recipe, config.task.threshold_percent) == (name, percent)
    assert f"at most {percent} %" in config.bundle.method
    assert config.bundle.name != released.bundle.name
    same = dataclasses.replace(config, recipe=released.recipe, task=released.task, bundle=released.bundle)
    assert same == released


def test_a_field_is_no_run_of_one_network() -> None:
    """Asked for as one, it is refused by name."""
    with pytest.raises(TypeError, match="EnfRun"):
        load_run("enf_small")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_describes_itself(name: str) -> None:
    """The description is JSON, names its callables and repeats every preprocess parameter."""
    config = load_recipe(name)
    described = json.loads(json.dumps(describe(config)))
    assert described["recipe"] == name
    assert described["loss"].startswith("training.losses.")
    assert described["data"]["preprocess"] == config.data.preprocess.model_dump(mode="json")


@pytest.mark.parametrize("name", NAMES)
def test_a_network_gives_the_outputs_of_its_bundle(name: str) -> None:
    """Two inputs of the declared shape give the declared outputs."""
    import torch

    config = load_run(name)
    spec = input_spec(config.data.preprocess)
    network = config.model().eval()
    outputs = network(torch.zeros((2, *spec.shape[1:]), dtype=getattr(torch, spec.dtype)))
    shapes = {name: tuple(value.shape[1:]) for name, value in outputs.items()}
    for output in output_specs(config.data.modality, shapes):
        assert tuple(outputs[output.name].shape) == (2, *output.shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_keeps_shape_and_type_and_follows_its_generator(name: str) -> None:
    """The same generator state gives the same batch; another gives another."""
    import torch

    config = load_run(name)
    spec = input_spec(config.data.preprocess)
    batch = torch.rand((2, *spec.shape[1:]))
    batch = (255 * batch).to(torch.uint8) if spec.dtype == "uint8" else batch
    first, again, other = (config.augment(batch, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert first.shape == batch.shape
    assert first.dtype == batch.dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_field_of_a_run_changes_its_digest() -> None:
    """Two runs that differ anywhere never share a checkpoint."""
    config = load_run("echo_ef_small")
    other_rate = dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=1.0))
    digests = {config_digest(one) for one in (config, other_rate, with_size(config, hearts=40, epochs=None))}
    assert len(digests) == 3


def test_an_unknown_recipe_is_named_with_the_known_ones() -> None:
    """The message lists what there is."""
    result = CliRunner().invoke(main, ["describe", "nope"])
    assert result.exit_code != 0
    assert "echo_ef_small" in result.output


def test_describe_prints_json() -> None:
    """``purkinje-train describe`` is machine-readable."""
    result = CliRunner().invoke(main, ["describe", "enf_small"])
    assert json.loads(result.output)["data"]["modality"] == "cmr"


def test_the_phantoms_branch_never_imports_torch() -> None:
    """``purkinje-train phantoms make --help`` works where torch is not installed."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from training.cli import main\n"
        "main(['phantoms', 'make', '--help'], standalone_mode=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--seed" in done.stdout
