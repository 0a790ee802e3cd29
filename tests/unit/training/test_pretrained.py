"""Published weights load whole or not at all, and every way in which a file can be wrong is said."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.coreecho.pretrained import WeightsError, load_kinetics
from training.models.r2plus1d import R2Plus1d
from training.models.uniformer import UniFormer, UniFormerShape

SHAPE = UniFormerShape(frames=4, size_px=32, widths=(4, 4, 8, 8), depths=(1, 1, 1, 1), head_width=4, dropout=0.1)
State = dict[str, Tensor]


def _published(seed: int = 1) -> State:
    """What the authors would publish: another network of the same sizes with 400 classes."""
    torch.manual_seed(seed)
    network = UniFormer(SHAPE, outputs=400)
    nn.init.normal_(network.norm.running_mean)
    network.norm.num_batches_tracked.fill_(7)
    return network.state_dict()


def _encoder() -> UniFormer:
    torch.manual_seed(0)
    return UniFormer(SHAPE)


def _file(folder: Path, content: object) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_weights_replace_all_but_the_head(prefix: str, tmp_path: Path) -> None:
    """Every tensor of the body is the file's, counters included; the head of one output stays as it was made."""
    published, encoder = _published(), _encoder()
    head = {name: value.clone() for name, value in encoder.head.state_dict().items()}
    path = _file(tmp_path, {f"{prefix}{name}": value for name, value in published.items()})
    digest = load_kinetics(encoder, path)
    state = encoder.state_dict()
    body = [name for name in state if not name.startswith("head.")]
    assert len(body) == len(published) - 2
    assert all(torch.equal(state[name], published[name]) for name in body)
    assert all(torch.equal(encoder.head.state_dict()[name], value) for name, value in head.items())
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_baseline_is_loaded_under_the_names_of_its_library(tmp_path: Path) -> None:
    """The small one takes its own body as a file, with a head of 400 classes that is dropped."""
    torch.manual_seed(1)
    published = R2Plus1d.small().body.state_dict()
    encoder = R2Plus1d.small()
    load_kinetics(encoder, _file(tmp_path, {**published, "fc.weight": torch.ones(400, 64), "fc.bias": torch.ones(400)}))
    assert all(torch.equal(encoder.body.state_dict()[name], value) for name, value in published.items())


def _without(state: State) -> State:
    return {name: value for name, value in state.items() if name != "blocks3.0.attn.qkv.weight"}


def _other_widths(state: State) -> State:
    return {**state, "patch_embed2.proj.weight": torch.zeros(4, 4, 1, 3, 3)}


def _broken(state: State) -> State:
    return {**state, "norm.weight": torch.full((8,), torch.nan)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without, "lacks blocks3.0.attn.qkv.weight and has nothing besides"),
        (lambda state: {**state, "extra.weight": torch.zeros(1)}, "lacks nothing and has extra.weight besides"),
        (lambda state: {f"net.{name}": value for name, value in state.items()}, r"and \d+ more and has net\."),
        (_other_widths, r"patch_embed2.proj.weight \[4, 4, 1, 3, 3\] instead of \[4, 4, 1, 2, 2\]"),
        (_broken, "values in norm.weight that are no numbers"),
        (lambda state: {"model": state, "epoch": 3}, "holds model, epoch beside or around its tensors"),
        (lambda _: {}, "expected a state dict, name to tensor"),
        (lambda _: torch.zeros(3), "holds a Tensor"),
        (lambda state: {**state, "opt": argparse.Namespace(lr=1.0)}, "holds no tensors alone"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(
    change: Callable[[State], object], reason: str, tmp_path: Path
) -> None:
    """The message names what is wrong, and the encoder is as it was."""
    encoder = _encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match=reason) as caught:
        load_kinetics(encoder, _file(tmp_path, change(_published())))
    assert str(tmp_path / "weights.pth") in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_file_that_is_not_there_or_cut_short_is_refused(tmp_path: Path) -> None:
    """A missing file, a half download and a text are three clear refusals."""
    with pytest.raises(WeightsError, match="cannot be read"):
        load_kinetics(_encoder(), tmp_path / "none.pth")
    path = _file(tmp_path, _published())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="holds no tensors alone"):
        load_kinetics(_encoder(), path)
    path.write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match="holds no tensors alone"):
        load_kinetics(_encoder(), path)


class _Payload:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    """A pickle that would make a file when it is read is refused, and the file is not made."""
    trace = tmp_path / "ran"
    path = _file(tmp_path, {**_published(), "x": _Payload(trace)})
    with pytest.raises(WeightsError):
        load_kinetics(_encoder(), path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()
