"""Small networks in float64 with data: what the tests hold every metric and every trace against."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isopath as ip

ROWS = 5


class Case(NamedTuple):
    model: nn.Module
    inputs: Any
    options: Mapping[str, Any] = MappingProxyType({})
    weight: Tensor | None = None  # of each output row, unnormalised; None for all alike

    def reference(self, divergence: Any = "hellinger", **more: Any) -> ip.Reference:
        return ip.Reference(self.inputs, divergence=divergence, **{**self.options, **more})


def x(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(width: int = 6, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), activation(), nn.Linear(width, 3)).double()


def conv() -> nn.Module:
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2, stride=2), nn.Tanh()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).double()


def conv_bn() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), norm, nn.Softplus(), nn.Flatten(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            tensor.copy_(torch.randn(3))
        norm.running_var.copy_(torch.rand(3) + 0.5)
    return model


def grouped() -> nn.Module:
    first = nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2)
    second = nn.Conv2d(4, 4, (2, 1), stride=(1, 2), padding=(1, 0), groups=4, padding_mode="circular")
    layers = first, nn.Tanh(), second, nn.GroupNorm(2, 4), nn.Flatten(2), nn.Conv1d(4, 1, 3, stride=2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Tanh(), nn.LazyLinear(3)).double()
    model(x(1, 4, 3, 4))
    return model


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(tokens).mean(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head((tokens + mixed).tanh().mean(1))


class ScaledDotProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12, bias=False), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.first(inputs).tanh()).tanh() @ self.first.weight.T)


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.gain = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.matrix).tanh() * self.gain


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(tokens)[0][:, -1])


class Named(nn.Module):
    """Keyword inputs, a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, features: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"hidden": features, "logits": self.body(features) * scale}


class Heads(nn.Module):
    """Two heads, of which one is kept: what leads to the other alone is run and has no curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.embedding, self.norm, self.other = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, features: Tensor, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.body(features).tanh()
        return {"logits": self.head(hidden), "other": self.other(self.norm(hidden + self.embedding(ids)))}


class Tokens(nn.Module):
    """Outputs (N, T, C), of which a mask counts some."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(7, 3), nn.Linear(3, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        hidden = self.embedding(ids).cumsum(1)
        return type("Output", (), {"logits": self.body(hidden.tanh())})()


def norms() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3), nn.LayerNorm(3)).double()


def frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def tokens() -> Case:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(7, (3, 4), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    return Case(Tokens().double(), {"ids": ids, "mask": mask}, {"mask": "mask"}, mask.double())


def weighted() -> Case:
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    return Case(mlp(), x(ROWS, 4), {"weights": weights}, weights)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: Case(mlp(), x(ROWS, 4)),
    "conv": lambda: Case(conv(), x(ROWS, 1, 4, 4)),
    "conv_bn": lambda: Case(conv_bn(), x(ROWS, 1, 4, 4)),
    "grouped": lambda: Case(grouped(), x(ROWS, 4, 3, 4)),
    "norms": lambda: Case(norms(), x(ROWS, 4)),
    "encoder": lambda: Case(Encoder().double(), x(ROWS, 3, 4)),
    "attention": lambda: Case(Attention().double(), x(ROWS, 3, 4)),
    "sdpa": lambda: Case(ScaledDotProduct().double(), x(ROWS, 3, 4)),
    "tied": lambda: Case(Tied().double(), x(ROWS, 4)),
    "raw": lambda: Case(Raw().double(), x(ROWS, 4)),
    "lstm": lambda: Case(Recurrent().double(), x(ROWS, 3, 3)),
    "named": lambda: Case(Named().double(), {"features": x(ROWS, 4), "scale": x(ROWS, 1, seed=2)}),
    "heads": lambda: Case(Heads().double(), {"features": x(ROWS, 4), "ids": torch.tensor([0, 3, 1, 3, 5])}),
    "tokens": tokens,
    "weighted": weighted,
    "frozen": lambda: Case(frozen(), x(ROWS, 4)),
}


def build(name: str) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CASES[name]()


# The divergences as the documentation writes them, cancellation and all: float64 only.
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hellinger": lambda y, y0: 1 - (y.softmax(-1) * y0.softmax(-1)).sqrt().sum(-1),
    "bhattacharyya": lambda y, y0: -(y.softmax(-1) * y0.softmax(-1)).sqrt().sum(-1).log(),
    "kl": lambda y, y0: (y0.softmax(-1) * (y0.softmax(-1) / y.softmax(-1)).log()).sum(-1),
    "bernoulli": lambda y, y0: F.binary_cross_entropy_with_logits(y, y0.sigmoid(), reduction="none").sum(-1)
    - F.binary_cross_entropy_with_logits(y0, y0.sigmoid(), reduction="none").sum(-1),
    "squared_error": lambda y, y0: 0.5 * (y - y0).square().sum(-1),
    "cosine": lambda y, y0: 1 - F.cosine_similarity(y, y0, dim=-1),
}


def quartic(y: Tensor, y0: Tensor) -> Tensor:
    """A divergence of a user's own, with a curvature that varies."""
    return ((y - y0).square() * (1 + y0.square())).sum(-1) + (y - y0).pow(4).sum(-1)


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    """Rows (R, C) of what the module itself returns in eval mode."""
    training = model.training
    model.eval()
    returned = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    model.train(training)
    if isinstance(returned, dict):
        returned = returned["logits"]
    y = getattr(returned, "logits", returned)
    return y.reshape(-1, y.shape[-1])


def dense(case: Case, divergence: Any) -> Tensor:
    """JᵀHJ as a matrix, from one backward pass per output of the plain module."""
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    y = outputs(case.model, case.inputs)

    def row(output: Tensor) -> Tensor:
        grads = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters)])

    jacobian = torch.stack([torch.stack([row(output) for output in outputs]) for outputs in y])
    plain = PLAIN[divergence] if isinstance(divergence, str) else lambda a, b: divergence(a[None], b[None])[0]
    points = y.detach()
    hessian = torch.stack([torch.autograd.functional.hessian(lambda a, p=p: plain(a, p), p.clone()) for p in points])
    weight = torch.ones(len(y), dtype=y.dtype) if case.weight is None else case.weight.flatten()
    return torch.einsum("r,rcp,rcd,rdq->pq", weight / weight.sum(), jacobian, hessian, jacobian)


def matrix(apply: Callable[[Tensor], Tensor], dimension: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A linear map as a matrix, column by column."""
    return torch.stack([apply(e) for e in torch.eye(dimension, dtype=dtype)], 1)


def drift(model: nn.Module, case: Case, kept: Tensor, divergence: str = "hellinger") -> float:
    """The mean divergence from the rows `kept`, from the plain module's outputs, in float64."""
    with torch.no_grad():
        values = PLAIN[divergence](outputs(model, case.inputs).double(), kept.double())
    weight = torch.ones_like(values) if case.weight is None else case.weight.flatten().to(values)
    return float((values * weight).sum() / weight.sum())


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


class NoForwardMode(torch.autograd.Function):
    """sin, with a backward that can be differentiated again and no forward-mode derivative."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.sin()

    @staticmethod
    def backward(ctx, grad):
        (inputs,) = ctx.saved_tensors
        return grad * inputs.cos()


def fitted(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """The module itself, trained on all rows at once for 150 steps, in eval mode."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


class Keeps(nn.Module):
    """Two linear layers; keeps what lies between them of its last forward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.hidden = nn.Linear(4, 6).double(), nn.Linear(6, 3).double(), None

    def forward(self, inputs):
        self.hidden = self.first(inputs).relu()
        return self.second(self.hidden)


class Masked(nn.Module):
    """A classifier of 4 inputs that rules out the last of its 3 classes: its logit is -inf."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, inputs):
        return self.layer(inputs).masked_fill(torch.tensor([False, False, True]), -torch.inf)
