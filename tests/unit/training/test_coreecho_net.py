"""The served network normalises as training does, and folding it, exporting it and compiling it change nothing."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from engines.build.compile import BatchRange
from engines.bundle.parts import TensorSpec
from tests.doubles.plans import compiled, needs_rtx
from training.models.coreecho_net import CoReEchoNet, FoldedCoReEchoNet, folded, normalised
from training.models.ef_regressor import EfRegressor
from training.models.r2plus1d import R2Plus1d
from training.models.uniformer import UniFormer, UniFormerShape
from training.onnx_graph import check_parity, export_graph

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
CLIPS = BatchRange(minimum=1, optimum=3, maximum=8)
TINY = UniFormerShape(frames=6, size_px=32, widths=(4, 6, 8, 12), depths=(1, 2, 1, 1), head_width=4, dropout=0.1)
OUTPUTS = ["ef", "embedding"]
UNEVEN = {"mean": (0.10, 0.25, 0.40), "sd": (0.15, 0.20, 0.30)}
"""Channels that differ much, so that a channel taken for another shows."""


def _net(shape: UniFormerShape, seed: int = 0, **statistics: tuple[float, float, float]) -> CoReEchoNet:
    """A network in evaluation with the statistics of a trained one, and an answer that follows the clip."""
    torch.manual_seed(seed)
    net = CoReEchoNet(UniFormer(shape), EfRegressor(shape.widths[-1]), **statistics).eval()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm3d)):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    nn.init.normal_(net.regressor.answer.weight)
    return net


def _clips(shape: UniFormerShape, clips: int = 3, seed: int = 0) -> Tensor:
    """Noise, a still frame, and a clip whose frames grow brighter."""
    rng = np.random.default_rng(seed)
    size = (clips, 1, shape.frames, shape.size_px, shape.size_px)
    drawn = rng.integers(0, 256, size)
    drawn[1] = drawn[1, :, :1]
    drawn[2] = drawn[2] * np.linspace(0.2, 1.0, shape.frames)[:, None, None]
    return torch.from_numpy(drawn.astype(np.uint8))


def _spec(shape: UniFormerShape) -> TensorSpec:
    return TensorSpec(name="clip", dtype="uint8", shape=(-1, 1, shape.frames, shape.size_px, shape.size_px))


@functools.cache
def _graph(name: str) -> tuple[CoReEchoNet, FoldedCoReEchoNet, bytes]:
    shape = {"tiny": TINY, "small": UniFormerShape.small(), "published": UniFormerShape.published()}[name]
    net = _net(shape)
    return net, folded(net), export_graph(folded(net), _spec(shape), OUTPUTS)


def _largest(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, float]:
    assert list(first) == list(second) == OUTPUTS
    return {name: (first[name] - second[name]).abs().max().item() for name in OUTPUTS}


def test_black_is_the_published_padding() -> None:
    """A pixel of zero becomes (-0.6515, -0.6540, -0.6568), and white (4.4617, 4.4579, 4.4299)."""
    clip = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1, 1)
    black, white = normalised(clip).reshape(2, 3)
    torch.testing.assert_close(black, torch.tensor([-0.6515, -0.6540, -0.6568]), atol=5e-5, rtol=0)
    torch.testing.assert_close(white, torch.tensor([4.4617, 4.4579, 4.4299]), atol=5e-4, rtol=0)


def test_three_channels_are_normalised_each_by_its_own() -> None:
    """A grey clip and the same clip in three channels become the same numbers, a coloured one does not."""
    clip = _clips(TINY)
    grey, colour = clip.expand(-1, 3, -1, -1, -1), torch.cat([clip, clip, 255 - clip], dim=1)
    assert torch.equal(normalised(clip), normalised(grey))
    assert normalised(clip).dtype == torch.float32
    assert torch.equal(normalised(clip)[:, :2], normalised(colour)[:, :2])
    assert not torch.equal(normalised(clip)[:, 2], normalised(colour)[:, 2])


@torch.no_grad()
def test_the_network_is_encoder_and_regressor_on_three_channels() -> None:
    """The outputs are the regressor's answer in percent and the encoder's embedding, [B, 1] and [B, D]."""
    net, clip = _net(TINY), _clips(TINY)
    outputs = net(clip)
    embedding = net.encoder(normalised(clip.expand(-1, 3, -1, -1, -1))).embedding
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {"ef": (3, 1), "embedding": (3, 12)}
    assert torch.equal(outputs["embedding"], embedding)
    assert torch.equal(outputs["ef"], net.regressor(embedding))
    assert outputs["ef"].std() > 0.1


@pytest.mark.parametrize("frames", [6, 7, 1])
@pytest.mark.parametrize("statistics", [{}, UNEVEN])
@torch.no_grad()
def test_folding_changes_nothing(statistics: dict[str, tuple[float, float, float]], frames: int) -> None:
    """With one channel and no batch norm the answer is the same to 1e-4 points, for even and odd counts of frames."""
    shape = replace(TINY, frames=frames)
    net, clip = _net(shape, **statistics), _clips(shape)
    lean = folded(net)
    differences = _largest(net(clip), lean(clip))
    assert max(differences.values()) <= 1e-4
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm3d)) for module in lean.modules())
    assert lean.encoder.patch_embed1.proj.weight.shape == (4, 1, 3, 4, 4)


@torch.no_grad()
def test_the_padding_in_time_is_not_normalised() -> None:
    """The first frame's constant differs from the next one's, as its first tap lies on padding; with odd T the last's too."""
    for frames, ends in ((6, {0}), (7, {0, 3})):
        shape = replace(TINY, frames=frames)
        constant = folded(_net(shape, **UNEVEN)).encoder.patch_embed1.constant[0, :, :, 0, 0].T  # [T / 2, C]
        middle = constant[1]
        apart = {index for index, row in enumerate(constant) if not torch.allclose(row, middle)}
        assert apart == ends


@torch.no_grad()
def test_the_small_network_folds() -> None:
    """With random statistics the folded network of two cores answers as the three-channel form does."""
    net, lean, _ = _graph("small")
    clip = _clips(UniFormerShape.small())
    outputs = net(clip)
    assert outputs["ef"].std() > 0.1
    assert max(_largest(outputs, lean(clip)).values()) <= 1e-4


@torch.no_grad()
def test_folding_leaves_the_network_alone() -> None:
    """The network that was folded has the same tensors afterwards and goes on training; the folded one shares none."""
    net = _net(TINY)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    lean = folded(net)
    for parameter in lean.parameters():
        parameter.zero_()
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@torch.no_grad()
def test_a_network_in_training_is_folded_in_evaluation() -> None:
    """The folded network drops nothing, whatever the mode of its source, and leaves that mode."""
    net, clip = _net(TINY), _clips(TINY)
    expected = net(clip)
    lean = folded(net.train())
    assert max(_largest(expected, lean(clip)).values()) <= 1e-4
    assert net.training


def test_only_a_uniformer_and_its_regressor_fold() -> None:
    """Another encoder is refused by name."""
    with pytest.raises(TypeError, match="found R2Plus1d and EfRegressor; expected UniFormer"):
        folded(CoReEchoNet(R2Plus1d.small(), EfRegressor(64)))
    with pytest.raises(TypeError, match="Linear"):
        folded(CoReEchoNet(UniFormer(TINY), nn.Linear(12, 1)))


def test_the_graph_agrees_at_any_batch_and_frees_no_other_axis() -> None:
    """Batches of one and five of the small network agree with torch to 1e-4 points; its input is 8 bits of one channel."""
    net, lean, graph = _graph("small")
    shape = UniFormerShape.small()
    for clips in (1, 5):
        inputs = _clips(shape, max(clips, 3))[:clips].numpy()
        assert check_parity(graph, lean, "clip", inputs) <= 1e-4
        assert check_parity(graph, net, "clip", inputs) <= 1e-4
    model = onnx.load_model_from_string(graph)
    (stated,) = model.graph.input
    assert stated.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [axis.dim_value for axis in stated.type.tensor_type.shape.dim] == [0, 1, 16, 64, 64]
    assert stated.type.tensor_type.shape.dim[0].dim_param
    assert [output.name for output in model.graph.output] == OUTPUTS
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]
    assert not [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]


@needs_rtx
@pytest.mark.parametrize("target", TARGETS)
def test_the_small_graph_compiles(target: str) -> None:
    """TensorRT-RTX compiles the small network without a GPU, the plan as large as the weights it holds."""
    graph = _graph("small")[2]
    assert len(compiled(graph, target, CLIPS)) > len(graph) // 2


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_small_graph_compiles_in_fewer_bits(precision: str) -> None:
    """It compiles in 16 bits of either kind, into a smaller plan."""
    graph = _graph("small")[2]
    assert len(compiled(graph, "sm_89", CLIPS, precision)) < len(compiled(graph, "sm_89", CLIPS))


@pytest.mark.slow
@torch.no_grad()
def test_the_published_network_folds_and_exports() -> None:
    """At 36 frames of 112 pixels the folded form and the graph answer as the three-channel form does, to 1e-4 points."""
    net, lean, graph = _graph("published")
    clip = _clips(UniFormerShape.published())[:1]
    assert max(_largest(net(clip), lean(clip)).values()) <= 1e-4
    assert check_parity(graph, net, "clip", clip.numpy()) <= 1e-4
    assert sum(parameter.numel() for parameter in lean.parameters()) < 21_195_200 + 265_217


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_published_graph_compiles(target: str) -> None:
    """TensorRT-RTX compiles the published size without a GPU."""
    graph = _graph("published")[2]
    assert len(compiled(graph, target, CLIPS)) > len(graph) // 2


def test_a_folded_network_can_be_copied_and_saved() -> None:
    """Its constants are in its state, so a copy with that state answers alike."""
    lean = folded(_net(TINY))
    other = folded(_net(TINY, seed=1))
    other.load_state_dict(copy.deepcopy(lean.state_dict()))
    clip = _clips(TINY)
    with torch.no_grad():
        assert max(_largest(lean(clip), other(clip)).values()) == 0.0
