"""The networks that the benchmarks train."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(inputs: int, width: int, depth: int, norm: bool = False) -> nn.Module:
    """`depth` hidden layers of `width`, with ReLU and perhaps batch norm."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def tiny_ten() -> nn.Module:
    """Nine convolutions with batch norm, 16 to 64 channels, and a linear layer on the mean: ten layers."""
    layers: list[nn.Module] = []
    before = 3
    for width, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def vgg() -> nn.Module:
    """Six 3 x 3 convolutions with batch norm, 16 to 128 channels, and a linear layer, for 16 x 16 pixels: 253,000."""
    layers: list[nn.Module] = []
    before = 3
    for k, width in enumerate((16, 16, 32, 64, 128, 128)):
        layers += [nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if k % 2 else []
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * before, 10))


def plain_cnn() -> nn.Module:
    """Three 3 x 3 convolutions and two linear layers for 16 x 16 pixels in [0, 1]; 141,000 weights, no batch norm."""
    layers: list[nn.Module] = [Centred()]
    for before, width in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, width, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 320), nn.ReLU(), nn.Linear(320, 10))


class Centred(nn.Module):
    """Pixels of [0, 1] spread over [-2, 2]."""

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x - 2


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a shortcut: the identity, or a 1 x 1 convolution with batch norm."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, width, H / stride, W / stride)`."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()


def resnet20(width: int = 16) -> nn.Module:
    """ResNet-20 for small images (He et al. 2016), three stages of three blocks."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(3):
        for block in range(3):
            layers.append(Residual(before, width * 2**stage, 2 if stage and not block else 1))
            before = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Block(nn.Module):
    """Self-attention and two linear layers, each on the normalised stream and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, T, C)` to the same."""
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A small vision transformer: patches, learned places, blocks, the mean over tokens."""

    def __init__(self, patch: int = 7, side: int = 28, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 1, side, side)` to `(N, 10)`."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def small_cnn() -> nn.Module:
    """Two convolutions with pooling and two linear layers for 28 x 28 pixels; 47,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
