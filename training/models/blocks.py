"""Small pieces that the three first networks share. Own design, licence of this project."""

from __future__ import annotations

from torch import Tensor, nn


class ConvBlock2d(nn.Module):
    """3 x 3 convolution, batch norm, ReLU; halves height and width where ``stride`` is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, out_channels, H / stride, W / stride]."""
        return self.activation(self.norm(self.convolution(x_BCHW)))


class ResidualBlock2d(nn.Module):
    """Two 3 x 3 convolutions around which the input passes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the same shape."""
        return self.activation(x_BCHW + self.norm(self.second(self.first(x_BCHW))))


class ConvBlock1d(nn.Module):
    """Convolution over time, batch norm, ReLU; divides the length by ``stride``."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(out_channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Return [B, out_channels, ceil(T / stride)]."""
        return self.activation(self.norm(self.convolution(x_BCT)))


class ResidualBlock1d(nn.Module):
    """Two convolutions over time around which the input passes unchanged."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.first = ConvBlock1d(channels, channels, kernel, 1)
        self.second = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Return the same shape."""
        return self.activation(x_BCT + self.norm(self.second(self.first(x_BCT))))
