"""UniFormer is the published network: its counts, names, shapes, constants, and its arithmetic written a second time."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from training.models.encoded import pooled
from training.models.uniformer import UniFormer, UniFormerShape

TINY = UniFormerShape(frames=4, size_px=32, widths=(4, 6, 8, 12), depths=(1, 2, 1, 2), head_width=4, dropout=0.1)

PUBLISHED_MAPS = {
    "patch_embed1": (64, 18, 28, 28),
    "pos_drop": (64, 18, 28, 28),
    "blocks1": (64, 18, 28, 28),
    "patch_embed2": (128, 18, 14, 14),
    "blocks2": (128, 18, 14, 14),
    "patch_embed3": (320, 18, 7, 7),
    "blocks3": (320, 18, 7, 7),
    "patch_embed4": (512, 18, 3, 3),
    "blocks4": (512, 18, 3, 3),
    "norm": (512, 18, 3, 3),
    "head": (1,),
}
PUBLISHED_PARAMETERS = {
    "patch_embed1": 9_408,
    "pos_drop": 0,
    "blocks1": 154_560,
    "patch_embed2": 33_152,
    "blocks2": 739_840,
    "patch_embed3": 164_800,
    "blocks3": 9_935_360,
    "patch_embed4": 656_896,
    "blocks4": 9_500_160,
    "norm": 1_024,
    "head": 513,
}


@functools.cache
def _published(outputs: int = 1) -> UniFormer:
    """The published sizes without memory: shapes and names only."""
    with torch.device("meta"):
        return UniFormer(UniFormerShape.published(), outputs=outputs).eval()


def _tiny(seed: int = 0) -> UniFormer:
    """A tiny network in evaluation whose every number is drawn, so that none is at a value that hides a fault."""
    torch.manual_seed(seed)
    network = UniFormer(TINY).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0.0, 0.4, generator=generator)
    return network


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _norm_names(name: str) -> list[str]:
    running = ("running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{part}" for part in ("weight", "bias", *running)]


def _layer_names(*names: str) -> list[str]:
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def _published_names() -> set[str]:
    """Names of a Kinetics-400 file, written from the list of the method and not from the network."""
    names = [
        name for stage in range(1, 5) for name in _layer_names(f"patch_embed{stage}.proj", f"patch_embed{stage}.norm")
    ]
    for stage, depth in ((1, 3), (2, 4)):
        for block in (f"blocks{stage}.{index}" for index in range(depth)):
            layers = ("pos_embed", "conv1", "conv2", "attn", "mlp.fc1", "mlp.fc2")
            names += _layer_names(*(f"{block}.{layer}" for layer in layers))
            names += _norm_names(f"{block}.norm1") + _norm_names(f"{block}.norm2")
    for stage, depth in ((3, 8), (4, 3)):
        for block in (f"blocks{stage}.{index}" for index in range(depth)):
            layers = ("pos_embed", "norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
            names += _layer_names(*(f"{block}.{layer}" for layer in layers))
    return {*names, *_norm_names("norm"), *_layer_names("head")}


def test_the_published_network_has_the_published_parameters() -> None:
    """21,195,713 with a head of one, 21,400,400 with 400 classes, and every layer as in the table."""
    assert _count(_published()) == 21_195_713
    assert _count(_published(400)) == 21_400_400
    assert {name: _count(layer) for name, layer in _published().named_children()} == PUBLISHED_PARAMETERS


def test_the_published_maps_have_the_published_shapes() -> None:
    """Forward hooks on a clip of 36 frames of 112 pixels see the table's shapes, and the embedding has 512 numbers."""
    network, seen = _published(), {}
    handles = [
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape[1:])}))
        for name, layer in network.named_children()
    ]
    encoded = network(torch.empty(2, 3, 36, 112, 112, device="meta"))
    for handle in handles:
        handle.remove()
    assert seen == PUBLISHED_MAPS
    assert (encoded.head.shape, encoded.embedding.shape) == ((2, 1), (2, 512))


def test_a_clip_costs_the_published_multiplications() -> None:
    """19.56 thousand million multiplications per clip of the published size."""
    with FlopCounterMode(display=False) as counter:
        _published()(torch.empty(1, 3, 36, 112, 112, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(19.56, abs=0.01)


def test_tensors_have_the_names_of_the_published_file() -> None:
    """331 names, none more and none less, and the shapes that the method lists."""
    state = _published(400).state_dict()
    assert set(state) == _published_names()
    assert len(state) == 331
    shapes = {
        "patch_embed1.proj.weight": (64, 3, 3, 4, 4),
        "patch_embed2.proj.weight": (128, 64, 1, 2, 2),
        "patch_embed3.proj.weight": (320, 128, 1, 2, 2),
        "patch_embed4.proj.weight": (512, 320, 1, 2, 2),
        "blocks1.0.attn.weight": (64, 1, 5, 5, 5),
        "blocks1.0.mlp.fc1.weight": (256, 64, 1, 1, 1),
        "blocks3.7.attn.qkv.weight": (960, 320),
        "blocks4.2.attn.qkv.weight": (1536, 512),
        "blocks4.2.pos_embed.weight": (512, 1, 3, 3, 3),
        "head.weight": (400, 512),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_norms_and_dropouts_are_the_published_ones() -> None:
    """LayerNorm has 1e-5 after a patch embedding and 1e-6 around attention, BatchNorm 1e-5 and 0.1; dropout is 0.1."""
    modules = dict(_published().named_modules())
    epsilons = {name: module.eps for name, module in modules.items() if isinstance(module, nn.LayerNorm)}
    assert len(epsilons) == 26
    assert all(eps == (1e-5 if name.startswith("patch_embed") else 1e-6) for name, eps in epsilons.items())
    batch_norms = [module for module in modules.values() if isinstance(module, nn.BatchNorm3d)]
    assert Counter((norm.eps, norm.momentum) for norm in batch_norms) == {(1e-5, 0.1): 15}
    dropouts = [name for name, module in modules.items() if isinstance(module, nn.Dropout) and module.p == 0.1]
    assert len(dropouts) == 1 + 18 + 11


def test_linear_layers_start_small_and_the_head_at_the_mean_ejection_fraction() -> None:
    """Weights have a spread of 0.02 and biases none; an untrained head answers near 55.6 percent."""
    torch.manual_seed(0)
    network = UniFormer(replace(TINY, widths=(4, 6, 64, 96), head_width=32)).eval()
    weight = network.blocks4[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not any(layer.bias.any() for block in network.blocks3 for layer in (block.attn.qkv, block.mlp.fc2))
    assert network.head.bias.item() == pytest.approx(55.6)
    assert UniFormer(TINY, start_percent=40.0).head.bias.item() == 40.0


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Batch norm in evaluation, channels second."""
    columns = (1, -1, 1, 1, 1)
    mean, var = state[f"{name}.running_mean"].reshape(columns), state[f"{name}.running_var"].reshape(columns)
    return (x - mean) / (var + 1e-5).sqrt() * state[f"{name}.weight"].reshape(columns) + state[f"{name}.bias"].reshape(
        columns
    )


def _layer_norm(state: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    """Layer norm over channels, which come second."""
    centred = x - x.mean(dim=1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=1, keepdim=True) + eps).sqrt()
    columns = (1, -1, 1, 1, 1)
    return scaled * state[f"{name}.weight"].reshape(columns) + state[f"{name}.bias"].reshape(columns)


def _pointwise(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"].flatten(1)
    return torch.einsum("oc,bcthw->bothw", weight, x) + state[f"{name}.bias"].reshape(1, -1, 1, 1, 1)


def _around(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A depthwise convolution as a sum over shifts of a padded map."""
    weight = state[f"{name}.weight"]
    kernel, (frames, rows, columns) = weight.shape[2], x.shape[2:]
    padded = functional.pad(x, [kernel // 2] * 6)
    result = state[f"{name}.bias"].reshape(1, -1, 1, 1, 1).expand(x.shape).clone()
    for t, i, j in torch.cartesian_prod(*[torch.arange(kernel)] * 3).tolist():
        shifted = padded[:, :, t : t + frames, i : i + rows, j : j + columns]
        result += weight[:, 0, t, i, j].reshape(1, -1, 1, 1, 1) * shifted
    return result


def _mlp(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = _pointwise(state, f"{name}.fc1", x)
    return _pointwise(state, f"{name}.fc2", 0.5 * hidden * (1.0 + torch.erf(hidden / 2.0**0.5)))


def _attention(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """One head after the other, one token after the other."""
    width = x.shape[1]
    parts = _pointwise(state, f"{name}.qkv", x).flatten(2)  # [B, 3 * C, N]
    query, key, value = parts[:, :width], parts[:, width : 2 * width], parts[:, 2 * width :]
    seen = torch.empty_like(query)
    for head in range(width // TINY.head_width):
        rows = slice(head * TINY.head_width, (head + 1) * TINY.head_width)
        scores = torch.einsum("bcn,bcm->bnm", query[:, rows], key[:, rows]) / TINY.head_width**0.5
        weights = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
        seen[:, rows] = torch.einsum("bnm,bcm->bcn", weights, value[:, rows])
    return _pointwise(state, f"{name}.proj", seen.reshape(x.shape))


def _patch(state: dict[str, Tensor], stage: int, x: Tensor) -> Tensor:
    name = f"patch_embed{stage}"
    stride, padding = ((2, 4, 4), (1, 0, 0)) if stage == 1 else ((1, 2, 2), 0)
    x = functional.conv3d(x, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"], stride, padding)
    return _layer_norm(state, f"{name}.norm", x, 1e-5)


def _reference(network: UniFormer, clip: Tensor) -> Tensor:
    """The embedding as the method's text defines it, in 64 bits."""
    state = {name: tensor.double() for name, tensor in network.state_dict().items()}
    x = clip.double()
    for stage, depth in enumerate(TINY.depths, start=1):
        x = _patch(state, stage, x)
        for block in (f"blocks{stage}.{index}" for index in range(depth)):
            x = x + _around(state, f"{block}.pos_embed", x)
            if stage <= 2:
                inner = _pointwise(state, f"{block}.conv1", _norm(state, f"{block}.norm1", x))
                x = x + _pointwise(state, f"{block}.conv2", _around(state, f"{block}.attn", inner))
                x = x + _mlp(state, f"{block}.mlp", _norm(state, f"{block}.norm2", x))
            else:
                x = x + _attention(state, f"{block}.attn", _layer_norm(state, f"{block}.norm1", x, 1e-6))
                x = x + _mlp(state, f"{block}.mlp", _layer_norm(state, f"{block}.norm2", x, 1e-6))
    return _norm(state, "norm", x).mean(dim=(2, 3, 4))


@torch.no_grad()
def test_the_network_computes_what_the_method_says() -> None:
    """A second implementation, from the text and in 64 bits, gives the same embedding and the same head."""
    network = _tiny().double()
    clip = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    encoded = network(clip.double())
    expected = _reference(network, clip)
    assert expected.std() > 0.1
    torch.testing.assert_close(encoded.embedding, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(encoded.head, expected @ network.head.weight.T + network.head.bias)


def test_the_maps_to_explain_with_lead_to_the_embedding() -> None:
    """Both maps have their sizes, the last one's mean is the embedding, and gradients reach the earlier one."""
    network = _tiny()
    clip = torch.randn(2, 3, 4, 32, 32)
    maps = network.features(clip)
    assert [tuple(each.shape) for each in maps.values()] == [(2, 8, 2, 2, 2), (2, 12, 2, 1, 1)]
    assert [tuple(each.shape[2:]) for each in maps.values()] == list(TINY.map_sizes()[2:])
    torch.testing.assert_close(pooled(maps["norm"]), network(clip).embedding)
    (gradient,) = torch.autograd.grad(network.head(pooled(maps["norm"])).sum(), maps["blocks3"])
    assert gradient.abs().max() > 1e-4


def test_dropout_acts_in_training_only() -> None:
    """Two passes in training differ by what was dropped, two in evaluation are equal."""
    network = _tiny()
    clip = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(network(clip).embedding, network(clip).embedding)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    assert not torch.equal(network(clip).embedding, network(clip).embedding)


def test_the_small_network_is_of_the_same_class() -> None:
    """548,513 parameters for 16 frames of 64 pixels; every one gets a gradient."""
    network = UniFormer(UniFormerShape.small())
    assert _count(network) == 548_513
    assert UniFormerShape.small().map_sizes() == ((8, 16, 16), (8, 8, 8), (8, 4, 4), (8, 2, 2))
    network(torch.randn(1, 3, 16, 64, 64)).head.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 36), (2, 3, 5, 32, 32), (2, 1, 4, 32, 32), (3, 4, 32, 32)])
def test_a_clip_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    """Frames, pixels and channels are those the network was made for; the message says both."""
    with pytest.raises(ValueError, match=r"expected \[B, 3, 4, 32, 32\]"):
        _tiny()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"head_width": 5}, "do not divide"), ({"size_px": 31}, "32 px"), ({"frames": 0}, "0 frames")],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, int], reason: str) -> None:
    """Heads that do not divide the widths and clips too small for four stages make no shape."""
    with pytest.raises(ValueError, match=reason):
        replace(TINY, **change)
