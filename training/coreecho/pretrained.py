"""Published Kinetics-400 weights into an encoder, whole or not at all; its head stays as it is.

A file is a plain state dict as its authors published it: name to tensor, perhaps under the prefix that data-parallel
training leaves. It is read without running code that it may hold. The weights of UniFormer-S (16 frames, every 8th) are
Apache-2.0, those of R(2+1)D come with torchvision, BSD-3-Clause. Called by recipes that start from such a file.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

_PARALLEL_PREFIX = "module."
_NAMED_AT_MOST = 3
_NOT_A_STATE_DICT = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError)
"""What ``torch.load`` raises for a file that is no archive of its own, is cut short, or holds more than tensors."""


class WeightsError(ValueError):
    """A file of weights does not fit: the message says what was found and what was expected."""


def load_kinetics(encoder: nn.Module, path: Path) -> str:
    """Copy published weights into an encoder and return the SHA-256 of the file, for the record of the run.

    Args:
        encoder: with ``published_names`` and ``head``; the head of the file is dropped.
        path: of the file.

    Raises:
        WeightsError: the file is missing, is no plain state dict, or its tensors are not those of the encoder. The encoder
            is unchanged.
    """
    content = _content(path)
    names = encoder.published_names
    found = {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in _state(path, content).items()}
    body = {f"{names.body}{name}": tensor for name, tensor in found.items() if not _is_of(name, names.file_head)}
    own = encoder.state_dict()
    _require_same(path, body, {name: tensor for name, tensor in own.items() if not _is_of(name, "head")})
    encoder.load_state_dict({**own, **body}, strict=True)
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}); download the published weights and name their file"
        raise WeightsError(msg) from error


def _state(path: Path, content: bytes) -> Mapping[str, Tensor]:
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _NOT_A_STATE_DICT as error:
        msg = f"{path} holds no tensors alone ({type(error).__name__}); expected a state dict saved by torch.save"
        raise WeightsError(msg) from error
    if not isinstance(state, dict) or not state:
        msg = f"{path} holds a {type(state).__name__}; expected a state dict, name to tensor"
        raise WeightsError(msg)
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        msg = (
            f"{path} holds {_listed(others)} beside or around its tensors; expected a plain state dict, name to tensor"
        )
        raise WeightsError(msg)
    return state


def _is_of(name: str, layer: str) -> bool:
    return name.startswith(f"{layer}.")


def _require_same(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names, then shapes, then values."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        msg = f"{path} lacks {_listed(missing)} and has {_listed(surplus)} besides; expected another file or encoder"
        raise WeightsError(msg)
    shapes = [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if found[name].shape != tensor.shape
    ]
    if shapes:
        msg = f"{path} has {_listed(shapes)}; expected the weights of an encoder of the same widths"
        raise WeightsError(msg)
    broken = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if broken:
        msg = f"{path} has values in {_listed(broken)} that are no numbers; download it again"
        raise WeightsError(msg)


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    rest = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")
