"""The modules whose symmetries are known: definitions, an example input, and how many units can be permuted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """A basic block, its shortcut a 1 x 1 convolution or a slice with zero channels around it (option A)."""

    def __init__(self, a: int, b: int, stride: int = 1, option: str = "conv") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.short, self.pad, self.stride = None, b - a, stride
        if option == "conv" and (stride > 1 or a != b):
            self.short = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.short is not None:
            return (out + self.short(x)).relu()
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad // 2, self.pad - self.pad // 2))
        return (out + x).relu()


def resnet20(option: str = "conv", width: int = 4) -> nn.Module:
    """ResNet-20 for small images."""
    blocks, a = [], width
    for stage in range(3):
        for i in range(3):
            b = width * 2**stage
            blocks.append(Residual(a, b, 2 if stage and not i else 1, option))
            a = b
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, 5))


class Squeeze(nn.Module):
    """Squeeze-and-excite between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]).mean((2, 3))


class Joined(nn.Module):
    """A concatenation, and a residual sum over it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(9, 9)
        self.out = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.a(x).relu(), self.b(x).tanh()], 1)
        return self.out(h + self.c(h).relu())


class Raw(nn.Module):
    """Parameters of its own under `F.linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))
        self.second = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.first, self.shift).relu() @ self.second


class Twice(nn.Module):
    """A layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 7), nn.Linear(7, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.b(self.a(x).relu()).relu()).relu())


class Scaled(nn.Module):
    """A constant buffer multiplies hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.register_buffer("scale", torch.arange(1.0, 7.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu() * self.scale).relu())


class Recurrent(nn.Module):
    """Two LSTM layers, or one GRU."""

    def __init__(self, kind: type[nn.Module], layers: int) -> None:
        super().__init__()
        self.body, self.out = kind(3, 5, layers, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)[0][:, -1])


class Mixer(nn.Module):
    """An MLP-mixer block: tokens mixed through transposes, then channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.channels = nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm2(x))).mean(1))


class Attention(nn.Module):
    """Causal self-attention on one packed projection: chunked, or reshaped to (3, heads, width)."""

    def __init__(self, width: int, heads: int, packed: bool, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.packed, self.causal = heads, packed, causal

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        if self.packed:
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (y.view(n, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    """A transformer block, norms first."""

    def __init__(self, width: int, heads: int, packed: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, packed, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A small GPT, its head tied to the embedding or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.blocks = nn.Sequential(Block(8, 2, causal=True), Block(8, 2, causal=True))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h)))


class ViT(nn.Module):
    """Patches, a class token, and either blocks of its own or PyTorch's encoder."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True)
        self.body = Block(8, 2, packed=True) if own else nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.body(x)[:, 0])


class Swin(nn.Module):
    """Shifted windows of 2 x 2 tokens with a table of relative position biases."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.qkv, self.out = (
            nn.Conv2d(3, 8, 2, 2),
            nn.LayerNorm(8),
            nn.Linear(8, 24),
            nn.Linear(8, 8),
        )
        self.table = nn.Parameter(torch.randn(9, 2))
        self.merge = nn.Linear(32, 16, bias=False)
        self.last = nn.Linear(16, 3)
        at = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        self.register_buffer(
            "index", ((at[:, :, None] - at[:, None]) + 1).mul(torch.tensor([3, 1])[:, None, None]).sum(0)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        short = x
        n, h, w, c = x.shape
        x = torch.roll(self.norm(x), (-1, -1), (1, 2))
        x = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(x).reshape(-1, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1)
        a = (q @ k.transpose(-2, -1) * 0.5 + bias[None]).softmax(-1)
        x = self.out((a @ v).transpose(1, 2).reshape(-1, 4, c))
        x = x.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = short + torch.roll(x, (1, 1), (1, 2))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.last(self.merge(x).mean((1, 2)))


class ConvNeXt(nn.Module):
    """Depthwise convolution, norm over channels last, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth, self.norm = (
            nn.Conv2d(3, 8, 2, 2),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.LayerNorm(8),
        )
        self.up, self.down, self.scale = nn.Linear(8, 20), nn.Linear(20, 8), nn.Parameter(torch.rand(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))))
        return self.head((x + (self.scale * y).permute(0, 3, 1, 2)).mean((2, 3)))


class Shuffle(nn.Module):
    """ShuffleNet: grouped convolutions with their channels shuffled between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.a, self.bn = nn.Conv2d(12, 12, 1, groups=2), nn.BatchNorm2d(12)
        self.depth, self.b = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 12, 1, groups=2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.bn(self.a(x)).relu()
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head((x + self.b(self.depth(y))).relu().mean((2, 3)))


class Bottleneck(nn.Module):
    """A bottleneck block, grouped (ResNeXt) or not."""

    def __init__(self, a: int, width: int, b: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(a, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, b, 1, bias=False), nn.BatchNorm2d(b),
        )  # fmt: skip
        self.short = (
            nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b)) if a != b else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.short(x)).relu()


def bottlenecks(depths: tuple[int, ...], width: int, classes: int, groups: int = 1) -> nn.Module:
    """ResNet-50 is `bottlenecks((3, 4, 6, 3), 64, 1000)`."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    a = width
    for stage, depth in enumerate(depths):
        for i in range(depth):
            b = 4 * width * 2**stage
            layers.append(Bottleneck(a, width * 2**stage, b, groups, 2 if stage and not i else 1))
            a = b
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, classes))


class Dense(nn.Module):
    """A dense block and a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(10, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.transition = nn.Conv2d(20, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.head(F.avg_pool2d(self.transition(self.norms[3](x).relu()), 2).mean((2, 3)))


class Inception(nn.Module):
    """GoogLeNet: four branches joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two = (
            nn.Conv2d(6, 4, 1),
            nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(), nn.Conv2d(3, 5, 3, padding=1)),
        )
        self.three, self.pooled = (
            nn.Sequential(nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 5, padding=2)),
            nn.Conv2d(6, 4, 1),
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([self.one(x), self.two(x), self.three(x), self.pooled(F.max_pool2d(x, 3, 1, 1))], 1).relu()
        return self.head(x.mean((2, 3)))


class Mobile(nn.Module):
    """MobileNet: inverted residuals with depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(6, 18, 1, bias=False), nn.BatchNorm2d(18), nn.Hardswish(),
                nn.Conv2d(18, 18, 3, 1, 1, groups=18, bias=False), nn.BatchNorm2d(18), nn.Hardswish(),
                nn.Conv2d(18, 6, 1, bias=False), nn.BatchNorm2d(6),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Bert(nn.Module):
    """BERT: three embeddings, blocks with the norm last and three projections, a pooler and a classifier."""

    def __init__(self, vocabulary: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (
            nn.Embedding(vocabulary, width),
            nn.Embedding(512, width),
            nn.Embedding(2, width),
        )
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                "q": nn.Linear(width, width), "k": nn.Linear(width, width), "v": nn.Linear(width, width),
                "out": nn.Linear(width, width), "norm1": nn.LayerNorm(width), "up": nn.Linear(width, 4 * width),
                "down": nn.Linear(4 * width, width), "norm2": nn.LayerNorm(width),
            })
            for _ in range(depth)
        )  # fmt: skip
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        n, t = ids.shape
        x = self.norm(self.words(ids) + self.places(torch.arange(t)) + self.kinds(torch.zeros_like(ids)))
        bias = (1.0 - mask[:, None, None].to(x)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            q, k, v = (layer[name](x).view(n, t, self.heads, -1).transpose(1, 2) for name in "qkv")
            a = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
            x = layer["norm1"](x + layer["out"]((a @ v).transpose(1, 2).reshape(n, t, -1)))
            x = layer["norm2"](x + layer["down"](F.gelu(layer["up"](x))))
        return self.classifier(self.pooler(x[:, 0]).tanh())


@dataclass(frozen=True)
class Case:
    """A module, an example, the number of its units that can be permuted, and of its rescalings."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    units: int
    scalings: int


def images(n: int = 2, size: int = 8, channels: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(n, channels, size, size)


def vectors() -> Tensor:
    return torch.randn(3, 4)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))


CASES: dict[str, Case] = {
    "mlp": Case(mlp, vectors, 14, 1),
    "conv, flatten 4 x 4, linear": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.ReLU(), nn.Linear(5, 2)
        ), images(), 11, 2
    ),
    "resnet20": Case(resnet20, images(), 3 * 4 + 3 * 8 + 3 * 16 + 4 + 8 + 16, 12),
    "resnet20, option A": Case(lambda: resnet20("pad"), images(), 3 * 4 + 3 * 8 + 3 * 16 + 16, 14),
    "transposed conv": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
        ), images(), 10, 2
    ),
    "grouped transposed conv": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)
        ), images(), 2 + 6 + 4, 2
    ),
    "group norm": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 3)), images(), 4 + 8, 1
    ),
    "grouped conv": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 2, 1)
        ), images(), 4 + 8 + 12, 2
    ),
    "squeeze and excite": Case(Squeeze, images(), 12, 2),
    "concat and residual": Case(Joined, vectors, 9, 1),
    "pixel shuffle": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.PixelUnshuffle(2),
            nn.Conv2d(8, 2, 1),
        ), images(), 3 + 2, 2
    ),
    "raw parameters": Case(Raw, vectors, 6, 1),
    "a layer used twice": Case(Twice, vectors, 7, 1),
    "a constant buffer": Case(Scaled, vectors, 5, 1),
    "lstm": Case(lambda: Recurrent(nn.LSTM, 2), lambda: torch.randn(2, 4, 3), 10, 0),
    "gru": Case(lambda: Recurrent(nn.GRU, 1), lambda: torch.randn(2, 4, 3), 5, 0),
    "mixer": Case(Mixer, images(), 8 + 6 + 10, 1),
    "gpt": Case(lambda: GPT(False), lambda: torch.randint(11, (2, 6)), 8 + 2 * (2 + 8 + 8 + 16), 9),
    "gpt, tied": Case(lambda: GPT(True), lambda: torch.randint(11, (2, 6)), 8 + 2 * (2 + 8 + 8 + 16), 8),
    "vit": Case(lambda: ViT(False), images(), 8 + 2 * (2 + 8 + 8 + 16), 8),
    "vit, packed": Case(lambda: ViT(True), images(), 8 + 2 + 8 + 8 + 16, 4),
    "swin": Case(Swin, images(), 8 + 2 + 8 + 8 + 16, 4),
    "convnext": Case(ConvNeXt, images(), 8 + 20, 3),
    "shufflenet": Case(Shuffle, images(), 2 + 6 + 3, 8),
    "resnext": Case(
        lambda: bottlenecks((1, 1), 8, 3, groups=4), images(2, 32), 8 + (4 + 8 + 8) + 32 + (4 + 16 + 16) + 64, 7
    ),
    "densenet": Case(Dense, images(), 8 + 4 + 4 + 4 + 10, 11),
    "googlenet": Case(Inception, images(), 6 + 4 + 3 + 5 + 2 + 3 + 4, 7),
    "mobilenet": Case(Mobile, images(), 6 + 36, 0),
    "bert": Case(
        lambda: Bert(20, 8, 2, 2), lambda: (torch.randint(20, (2, 6)), torch.ones(2, 6)),
        8 + 8 + 2 * (2 + 8 + 8 + 32), 5,
    ),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A case in float64 and eval mode with its example, nothing as it was initialised: zeros and ones hide faults."""
    torch.manual_seed(0)
    case = CASES[name]
    model, example = case.build().double().eval(), case.example()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and (
            isinstance(tensor, nn.Parameter) or (tensor.ndim == 1 and name != "a constant buffer")
        ):
            tensor.data += torch.rand_like(tensor)
    return model, tuple(
        t.double() if t.is_floating_point() else t for t in (example if isinstance(example, tuple) else (example,))
    )
