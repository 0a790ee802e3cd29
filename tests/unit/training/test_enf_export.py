"""The exported field and classifier: the numbers of torch at every level of optimisation, and the images of the reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

from engines.bundle.parts import TensorSpec
from training import onnx_graph
from training.export import output_tolerances
from training.models.enf import Enf, EnfShape
from training.models.enf_fit import FitConfig, fit
from training.models.enf_frozen import FrozenField
from training.models.enf_orbits import pair_tables
from training.models.enf_risk_net import EnfRiskNet
from training.models.invariant_transformer import InvariantTransformer, TransformerShape
from training.models.latent_cloud import LatentCloud, initial_cloud, pixel_grid
from training.onnx_graph import PARITY_TOLERANCE, ParityError, check_parity, export_graph

SIZE, STEPS, RATE = 16, 3, 5.0
SHAPE = dataclasses.replace(EnfShape.small(), latents=16, context_width=4, hidden=8, heads=2, key_width=4)
SPEC = TensorSpec(name="image", dtype="float32", shape=(-1, 2, SIZE, SIZE))
LEVELS = onnxruntime.GraphOptimizationLevel
PSNR_LOSS_MAX_DB = 0.05


@pytest.fixture(scope="module")
def enf() -> Enf:
    """An untrained decoder whose biases are not zero."""
    torch.manual_seed(3)
    decoder = Enf(SHAPE)
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.3)
    return decoder


@pytest.fixture(scope="module")
def cloud() -> LatentCloud:
    """The start of every fit."""
    return initial_cloud(SHAPE.latents, SHAPE.context_width)


@pytest.fixture(scope="module")
def network(enf: Enf, cloud: LatentCloud) -> EnfRiskNet:
    """The released network, tiny, whose classifier looks at the contexts."""
    torch.manual_seed(4)
    tables = pair_tables(SIZE, SHAPE.latents, SHAPE.neighbours)
    field = FrozenField(
        enf, tables, window=float(cloud.window[0]), start=cloud.contexts[0], steps=STEPS, learning_rate=RATE
    )
    width = SHAPE.context_width
    shape = TransformerShape(width=16, layers=2, heads=2, dropout=0.1)
    classifier = InvariantTransformer(shape, cloud.poses, torch.zeros(width), torch.full((width,), 0.01))
    return EnfRiskNet(field, classifier, cloud.poses).eval()


@pytest.fixture(scope="module")
def graph(network: EnfRiskNet) -> bytes:
    """The network as it is released."""
    return export_graph(network, SPEC, EnfRiskNet.OUTPUTS)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Four pairs of smooth random images, [4, 2, S, S]."""
    coarse = torch.from_numpy(np.random.default_rng(0).random((4, 2, 4, 4), np.float32))
    return np.asarray(nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear").numpy())


def run(graph: bytes, images: np.ndarray, level: onnxruntime.GraphOptimizationLevel) -> dict[str, np.ndarray]:
    """What ONNX Runtime makes of the images."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return dict(zip(EnfRiskNet.OUTPUTS, session.run(list(EnfRiskNet.OUTPUTS), {"image": images}), strict=True))


@pytest.mark.parametrize(
    "level", [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL]
)
def test_the_graph_answers_as_torch(
    network: EnfRiskNet, graph: bytes, images: np.ndarray, level: onnxruntime.GraphOptimizationLevel
) -> None:
    """At every level of optimisation the logits of different images differ, and agree with torch to 1e-4."""
    with torch.inference_mode():
        expected = network(torch.from_numpy(images))
    found = run(graph, images, level)
    assert np.ptp(found["logit"]) > 10 * PARITY_TOLERANCE
    for name in ("logit", "contexts", "relevance"):
        assert np.abs(found[name] - expected[name].numpy()).max() <= PARITY_TOLERANCE, name


def test_the_graph_rebuilds_the_images_as_the_reference_fit(
    enf: Enf, cloud: LatentCloud, graph: bytes, images: np.ndarray
) -> None:
    """The PSNR of the float32 graph lies within 0.05 dB of the float64 fit by automatic differentiation, frame by frame."""
    double = Enf(SHAPE).double()
    double.load_state_dict({name: value.double() for name, value in enf.state_dict().items()})
    frames: Tensor = torch.from_numpy(images).double().flatten(0, 1).flatten(1)[..., None]
    config = FitConfig(steps=STEPS, lr_context=RATE)
    errors = fit(double, frames, pixel_grid(SIZE), cloud, config, create_graph=False).mse_B
    reference_db = (-10.0 * torch.log10(errors)).reshape(-1, 2).numpy()
    found_db = run(graph, images, LEVELS.ORT_ENABLE_ALL)["psnr_db"]
    assert np.ptp(reference_db) > PSNR_LOSS_MAX_DB
    np.testing.assert_allclose(found_db, reference_db, rtol=0, atol=PSNR_LOSS_MAX_DB)


def test_a_wide_field_is_read_right_by_openvino(cloud: LatentCloud, images: np.ndarray) -> None:
    """Hidden layers as wide as the published ones come out of the exporter with transpositions; OpenVINO computes the same."""
    torch.manual_seed(5)
    wide = Enf(dataclasses.replace(SHAPE, hidden=128))
    tables = pair_tables(SIZE, SHAPE.latents, SHAPE.neighbours)
    start = cloud.contexts[0]
    field = FrozenField(wide, tables, window=float(cloud.window[0]), start=start, steps=STEPS, learning_rate=RATE)
    graph = export_graph(_Fitted(field), SPEC, ["contexts"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled.create_infer_request().infer({"image": images})["contexts"]
    with torch.inference_mode():
        expected = _Fitted(field)(torch.from_numpy(images))["contexts"].numpy()
    assert np.abs(expected - start.numpy()).max() > 1e-2
    assert np.abs(found - expected).max() <= 1e-5


class _Fitted(nn.Module):
    """The field's contexts by name."""

    def __init__(self, field: FrozenField) -> None:
        super().__init__()
        self.field = field

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"contexts": self.field(image.flatten(0, 1)).contexts.unflatten(0, (-1, 2))}


class _Constant(nn.Module):
    """Two outputs of zeros."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        zeros = torch.zeros(len(image), 1)
        return {"logit": zeros, "embedding": zeros}


@pytest.mark.parametrize("bad", ["logit", "embedding"])
def test_parity_does_not_lose_a_nan(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    """A NaN in any output, the second one too, is no agreement."""
    zeros = np.zeros((1, 1), np.float32)
    found = {"logit": zeros, "embedding": zeros, bad: np.full_like(zeros, np.nan)}
    monkeypatch.setattr(onnx_graph, "run_graph", lambda *_: found)
    with pytest.raises(ParityError, match="differ by nan"):
        check_parity(b"", _Constant(), "image", np.zeros((1, 2, 4, 4), np.float32))


def test_a_field_is_held_to_the_parity_that_is_promised() -> None:
    """At every start the logit of a network with a field must lie within 1e-4; other networks keep their tolerances."""
    tolerances = output_tolerances(EnfRiskNet.OUTPUTS)
    assert list(tolerances) == list(EnfRiskNet.OUTPUTS)
    assert tolerances["logit"] == tolerances["relevance"] == tolerances["contexts"] == PARITY_TOLERANCE
    assert output_tolerances(["ef", "embedding"]) == {"ef": 0.05, "embedding": 5e-3}
