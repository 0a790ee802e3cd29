"""A fit that moves its poses makes a graph that TensorRT-RTX cannot compile; the fit with frozen poses compiles."""

from __future__ import annotations

import logging

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from engines.build.compile import BatchRange
from engines.errors import PlanBuildFailed
from tests.doubles.plans import compiled, needs_rtx
from training.models.enf import Enf, EnfShape
from training.models.enf_frozen import FrozenField
from training.models.enf_orbits import pair_tables
from training.models.latent_cloud import initial_cloud, pixel_grid

pytestmark = needs_rtx
SIZE_PX, LATENTS, STEPS, RATE = 16, 4, 2, 5.0
ONE = BatchRange(minimum=1, optimum=1, maximum=1)


class _MovingFit(nn.Module):
    """Gradient steps on poses and contexts of one image, by automatic differentiation; [P] -> errors after them [1]."""

    def __init__(self, enf: Enf) -> None:
        super().__init__()
        cloud = initial_cloud(LATENTS, enf.shape.context_width).to(torch.float32)
        self.enf = enf.requires_grad_(requires_grad=False)
        self.register_buffer("pixels", pixel_grid(SIZE_PX).float())
        self.register_buffer("poses", cloud.poses)
        self.register_buffer("contexts", cloud.contexts)
        self.register_buffer("window", cloud.window)

    def forward(self, image_P: Tensor) -> Tensor:
        poses, contexts = self.poses, self.contexts
        for _ in range(STEPS):
            by_pose, by_context = torch.func.grad(self._error, argnums=(0, 1))(poses, contexts, image_P)
            poses, contexts = poses - 0.1 * by_pose, contexts - RATE * by_context
        return self._error(poses, contexts, image_P).reshape(1)

    def _error(self, poses: Tensor, contexts: Tensor, image_P: Tensor) -> Tensor:
        geometry = self.enf.geometry(self.pixels, poses, self.window)
        values_P = self.enf.decode(geometry, contexts[None])[0, :, 0]
        return (values_P - image_P).square().mean()


@pytest.fixture(scope="module")
def field() -> Enf:
    """An untrained field of four latents, two of which each pixel sees."""
    torch.manual_seed(0)
    shape = EnfShape(
        latents=LATENTS,
        context_width=4,
        hidden=8,
        heads=2,
        key_width=4,
        std_query=2.0,
        std_value=2.0,
        neighbours=2,
        invariant="se2",
    )
    return Enf(shape).eval()


@pytest.fixture(scope="module")
def image_P() -> Tensor:
    """Grey values of one image, row by row."""
    return torch.from_numpy(np.random.default_rng(0).random(SIZE_PX**2, np.float32))


def _exported(module: nn.Module, *example: Tensor) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(module, example, dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


@pytest.fixture(scope="module")
def moving_graph(field: Enf, image_P: Tensor) -> bytes:
    """The moving fit with its derivatives unrolled, as ONNX."""
    with torch.no_grad():
        return _exported(make_fx(_MovingFit(field))(image_P).eval(), image_P)


def test_moving_graph_is_sound(moving_graph: bytes, field: Enf, image_P: Tensor) -> None:
    """The graph with moving poses is valid: ONNX Runtime answers as torch does."""
    session = onnxruntime.InferenceSession(moving_graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image_P.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, _MovingFit(field)(image_P).numpy(), atol=1e-5)


def test_moving_graph_is_refused(moving_graph: bytes) -> None:
    """TensorRT-RTX refuses it for the scatter that sums what several pixels say of one latent."""
    with pytest.raises(PlanBuildFailed, match=r"\[Scatter(ND|Elements)\].* reduction") as caught:
        compiled(moving_graph, "sm_89", ONE)
    (refused,) = caught.value.refused
    assert refused.node.startswith("node_Scatter")


def test_frozen_graph_compiles(field: Enf, image_P: Tensor) -> None:
    """The same field with frozen poses and a gradient written by hand compiles."""
    tables = pair_tables(SIZE_PX, LATENTS, 2)
    start = torch.full((4,), 0.25)
    frozen = FrozenField(field, tables, window=2.0 / 2, start=start, steps=STEPS, learning_rate=RATE)

    class Errors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = frozen

        def forward(self, image_P: Tensor) -> Tensor:
            return frozen(image_P.reshape(1, SIZE_PX, SIZE_PX)).errors

    graph = _exported(Errors().eval(), image_P)
    batch = BatchRange(minimum=SIZE_PX**2, optimum=SIZE_PX**2, maximum=SIZE_PX**2)
    assert compiled(graph, "sm_89", batch)
