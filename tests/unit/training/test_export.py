"""Graphs agree with torch, calibration becomes valid manifest sections, metrics are read off predictions."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engines.errors import RefusalCode
from engines.predictions import Abstention, Estimate, Interval, ModelIdentity, Prediction
from engines.predictors.distance import EmbeddingStatistics
from engines.records import Modality
from training.config import RunConfig, load_run
from training.data.heart_arrays import HeartArrays
from training.data.splits import split_hearts
from training.data.targets import COLUMNS, LVEF_CONDITIONS
from training.evaluate import metrics_of
from training.onnx_graph import ParityError, check_direction, check_parity, export_graph, run_graph
from training.outputs import HeartOutputs, heart_outputs
from training.postprocess import cmr_postprocess, distance_limit, ecg_postprocess, echo_postprocess
from training.signature import input_spec, output_specs

RECIPES = ("echo_ef_small", "ecg_cmr_small")
EMBEDDING = {"embedding": (32,)}


def _network(name: str) -> tuple[RunConfig, nn.Module]:
    torch.manual_seed(0)
    config = load_run(name)
    return config, config.model().eval()


@functools.cache
def _graph(name: str) -> bytes:
    """The graph of ``_network``; exporting takes seconds, so the tests share it."""
    config, network = _network(name)
    outputs = output_specs(config.data.modality, EMBEDDING)
    return export_graph(network, input_spec(config.data.preprocess), [output.name for output in outputs])


def _inputs(config: RunConfig, batch: int) -> np.ndarray:
    spec = input_spec(config.data.preprocess)
    rng = np.random.default_rng(0)
    shape = (batch, *spec.shape[1:])
    return rng.integers(0, 256, shape, dtype=np.uint8) if spec.dtype == "uint8" else rng.random(shape, np.float32)


@pytest.mark.parametrize("name", RECIPES)
def test_a_graph_agrees_with_its_network_at_any_batch(name: str) -> None:
    """Batches of one and three agree with torch to 1e-4, and only the batch axis is free."""
    config, network = _network(name)
    spec = input_spec(config.data.preprocess)
    names = [output.name for output in output_specs(config.data.modality, EMBEDDING)]
    graph = _graph(name)
    for batch in (1, 3):
        assert check_parity(graph, network, spec.name, _inputs(config, batch)) <= 1e-4
    model = onnx.load_model_from_string(graph)
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in axes[1:]] == list(spec.shape[1:])
    assert axes[0].dim_param
    assert [output.name for output in model.graph.output] == names
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]


def test_a_graph_says_nothing_of_the_machine_it_was_made_on() -> None:
    """No folder, file or stack trace stands in the graph, and equal networks give equal bytes."""
    config, network = _network("echo_ef_small")
    spec = input_spec(config.data.preprocess)
    graph = export_graph(network, spec, ["ef", "embedding"])
    assert b".py" not in graph
    assert str(Path.cwd()).encode() not in graph
    assert graph == _graph("echo_ef_small")


def test_a_graph_of_other_weights_is_refused() -> None:
    """Parity is measured, not assumed."""
    config, network = _network("echo_ef_small")
    spec = input_spec(config.data.preprocess)
    graph = _graph("echo_ef_small")
    with torch.no_grad():
        list(network.parameters())[-1].add_(0.01)
    with pytest.raises(ParityError, match="differ by"):
        check_parity(graph, network, spec.name, _inputs(config, 2))


def test_an_embedding_that_points_elsewhere_is_refused() -> None:
    """The embedding of an ECG keeps its direction to a cosine above 0.9999, whatever the tolerance of the other outputs."""
    config, network = _network("ecg_cmr_small")
    spec = input_spec(config.data.preprocess)
    graph, inputs = _graph("ecg_cmr_small"), _inputs(config, 3)
    assert check_direction(graph, network, spec.name, inputs) > 0.999999
    hook = network.register_forward_hook(
        lambda _module, _given, found: {**found, "embedding": found["embedding"] + 0.5}
    )
    with pytest.raises(ParityError, match="a cosine of"):
        check_direction(graph, network, spec.name, inputs)
    hook.remove()


def test_outputs_are_grouped_by_heart(tiny_config: RunConfig, tiny_arrays: HeartArrays) -> None:
    """Each heart gets its own clips back; a refused heart is left out."""
    inputs = np.concatenate([tiny_arrays.inputs, tiny_arrays.inputs + 1.0], axis=1)
    clips = np.full(len(inputs), 2, dtype=np.uint8)
    clips[3], clips[7] = 1, 255
    arrays = dataclasses.replace(tiny_arrays, inputs=inputs, clips=clips)
    network = tiny_config.model().eval()
    outputs = heart_outputs(network, arrays, np.array([2, 3, 7, 9]), batch_size=2)
    assert [len(rows) for rows in outputs.clips["embedding"]] == [2, 1, 2]
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs[9]))["embedding"].numpy()
    np.testing.assert_allclose(outputs.clips["embedding"][2], expected, atol=1e-6)
    np.testing.assert_allclose(outputs.targets["lvef"], arrays.targets[[2, 3, 9], 0])


def _outputs(hearts: int, clips: int, seed: int = 0) -> HeartOutputs:
    rng = np.random.default_rng(seed)
    targets = {name: (rng.random(hearts) < 0.4).astype(float) for name in COLUMNS}
    targets["lvef"] = rng.uniform(20, 70, hearts)
    targets |= {name: (targets["lvef"] <= percent).astype(float) for name, percent in LVEF_CONDITIONS.items()}
    noisy = [one + rng.normal(0, 3, (clips, 1)) for one in targets["lvef"]]
    return HeartOutputs(
        clips={
            "ef": noisy,
            "logit": [(40 - one) / 4 for one in noisy],
            "estimates": [np.tile(one[:1], (1, 3)) for one in noisy],
            "disease_logits": list(rng.normal(size=(hearts, 1, 6))),
            "embedding": list(rng.normal(size=(hearts, clips, 5))),
        },
        targets=targets,
    )


def test_echo_interval_counts_the_mean_over_clips() -> None:
    """Nine clips with a spread of 3 points give a 90 % half width near 1.64 points, not 4.9."""
    section = echo_postprocess(_outputs(400, 9), 90.0)
    assert section.lvef.conformal_quantile == pytest.approx(1.645, rel=0.15)
    assert 3.0 < section.clip_sd_limit_percent < 7.0


def _uneven(hearts: int, seed: int = 0) -> HeartOutputs:
    """Hearts whose clips differ by 1 or by 6 points, and whose mean is wrong in proportion."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(20, 70, hearts)
    spread = np.where(rng.random(hearts) < 0.6, 1.0, 6.0)
    centre = truth + spread * rng.normal(size=hearts)
    clips = [
        (middle + width * np.array([-1.0, 0.0, 1.0]))[:, None] for middle, width in zip(centre, spread, strict=True)
    ]
    return HeartOutputs(clips={"ef": clips}, targets={"lvef": truth})


def test_echo_interval_by_spread_covers_both_kinds_of_hearts() -> None:
    """Normalised by the spread, more of the noisy hearts are inside, and the interval of quiet ones is far narrower."""
    calibration, others = _uneven(800), _uneven(800, seed=1)
    fixed = echo_postprocess(calibration, 90.0).lvef
    scaled = echo_postprocess(calibration, 90.0, by_spread=True).lvef
    assert fixed.sd_offset is None
    assert scaled.sd_offset is not None
    spread = np.array([clips.std(ddof=1) for clips in others.clips["ef"]])
    residuals = np.abs(others.heart_means("ef")[:, 0] - others.targets["lvef"])
    noisy = spread > 3
    inside = residuals <= scaled.conformal_quantile * (spread + scaled.sd_offset)
    assert inside.mean() == pytest.approx(0.9, abs=0.03)
    assert inside[noisy].mean() > (residuals <= fixed.conformal_quantile)[noisy].mean() + 0.02
    half_width = scaled.conformal_quantile * (1.0 + scaled.sd_offset)
    assert half_width < 0.8 * fixed.conformal_quantile


def test_cmr_table_separates_reduced_from_preserved() -> None:
    """Far below 40 % the whole interval lies above one half, far above below."""
    risk = cmr_postprocess(_outputs(400, 1), "lvef_at_most_40").risk
    assert risk.low[-1] > 0.8
    assert risk.high[0] < 0.2


def test_ecg_section_follows_the_order_of_the_columns() -> None:
    """Three estimates and six conditions, in the order of the network's outputs."""
    section = ecg_postprocess(_outputs(200, 1), 80.0)
    assert [item.quantity for item in section.estimates] == ["lvef", "rvef", "cardiac_output"]
    assert [item.unit for item in section.estimates] == ["%", "%", "l/min"]
    assert len(section.conditions) == 6


def test_the_distance_limit_leaves_half_a_percent_outside() -> None:
    """Of a thousand held-out hearts five lie above the limit."""
    training, held_out = _outputs(1000, 1), _outputs(1000, 1, seed=1)
    statistics = EmbeddingStatistics.fit(training.all_rows("embedding"))
    limit = distance_limit(statistics, held_out)
    assert sum(statistics.distance(rows) > limit for rows in held_out.clips["embedding"]) == 5


_IDENTITY = ModelIdentity(**dict.fromkeys((item.name for item in dataclasses.fields(ModelIdentity)), "x"))


def _prediction(value: float | None) -> Prediction:
    if value is None:
        abstention = Abstention(code=RefusalCode.OUT_OF_DISTRIBUTION, reason="Unlike.")
        return Prediction(modality=Modality.ECHO, model=_IDENTITY, sources=(), abstention=abstention)
    interval = Interval(low=value - 5, high=value + 5, coverage_percent=90)
    estimate = Estimate(quantity="lvef", value=value, unit="%", interval=interval)
    return Prediction(modality=Modality.ECHO, model=_IDENTITY, sources=(), estimates=(estimate,))


def test_metrics_count_errors_coverage_and_refusals() -> None:
    """Four answers, one abstention, one refusal: error, coverage and refused share come out by hand."""
    predictions = [_prediction(value) for value in (50.0, 60.0, 40.0, 30.0, None)]
    truths = [{"lvef": truth} for truth in (52.0, 60.0, 46.0, 30.0, 10.0)]
    metrics = metrics_of(predictions, truths, refused_by_preprocessing=1)
    assert metrics["test_hearts"] == 6
    assert metrics["refused_or_abstained_share"] == pytest.approx(2 / 6, abs=1e-4)
    assert metrics["lvef_mean_absolute_error_percent"] == 2.0
    assert metrics["lvef_inside_90_percent_interval_share"] == 0.75
    assert metrics["lvef_median_interval_width_percent"] == 10.0


def test_a_bundle_that_answers_nothing_has_no_error_metrics() -> None:
    """All abstained: the share is 1 and no accuracy is claimed."""
    metrics = metrics_of([_prediction(None)], [{"lvef": 1.0}], refused_by_preprocessing=0)
    assert metrics["refused_or_abstained_share"] == 1.0
    assert not any("error" in name for name in metrics)


def test_the_graph_runs_without_torch_names() -> None:
    """``run_graph`` returns float32 by output name."""
    config, _ = _network("ecg_cmr_small")
    outputs = run_graph(_graph("ecg_cmr_small"), "ecg", _inputs(config, 1))
    assert {name: (values.dtype.name, values.shape[1]) for name, values in outputs.items()} == {
        "estimates": ("float32", 3),
        "disease_logits": ("float32", 6),
        "embedding": ("float32", 32 + 2 * 24),
    }


def test_a_split_is_a_partition_by_heart(tiny_config: RunConfig) -> None:
    """Every heart serves exactly one purpose, and the same seed gives the same split."""
    first, again = (split_hearts(200, tiny_config.data.split, 7) for _ in range(2))
    parts = [first.train, first.validation, first.calibration, first.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    np.testing.assert_array_equal(first.test, again.test)
    with pytest.raises(ValueError, match="too few"):
        split_hearts(4, tiny_config.data.split, 7)
