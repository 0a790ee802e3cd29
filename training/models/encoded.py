"""What every clip encoder returns, and the small pieces that encoders share.

An encoder is a module with ``features``, which returns its last feature maps by name, ``forward``, which returns
``Encoded``, ``head``, and ``published_names``. No network lives here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

MEAN_EF_PERCENT = 55.6
"""Of the training videos of EchoNet-Dynamic: where an untrained output starts."""


class Encoded(NamedTuple):
    """A clip as its network sees it.

    Attributes:
        head: [B, outputs], the network's own linear head; percent where it was made by ``percent_head``.
        embedding: [B, D], pooled over time and space, not normalised.
    """

    head: Tensor
    embedding: Tensor


@dataclass(frozen=True, kw_only=True)
class PublishedNames:
    """How a file of published weights names the tensors of an encoder.

    Attributes:
        body: prefix of the encoder's own names that the file does not have.
        file_head: the file's name of the layer that ``head`` replaces.
    """

    body: str
    file_head: str


def percent_head(width: int, start_percent: float = MEAN_EF_PERCENT) -> nn.Linear:
    """Return a linear layer to one number that starts near ``start_percent``."""
    head = nn.Linear(width, 1)
    nn.init.constant_(head.bias, start_percent)
    return head


def pooled(maps_BDTHW: Tensor) -> Tensor:
    """Return the mean over time and space, [B, D]."""
    return maps_BDTHW.mean(dim=(2, 3, 4))
