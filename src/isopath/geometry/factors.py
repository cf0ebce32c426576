"""What the layers see: second moments of their inputs and of the gradients at their outputs, streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CAP = 1024  # wider second moments are kept as a sketch of this rank
EXTRA = 64  # columns of a sketch beyond the rank that is kept of it
CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


@dataclass
class SecondMoment:
    """M = Σ rᵀr over rows `r` of width `d`, for `groups` at once, as a matrix or as a sketch of rank `cap`.

    No more than `cap` rows are kept as they are, which is exact. Beyond, M is seen through Y = MΩ with a random Ω of
    `cap` + 64 columns, from which its leading eigenpairs follow (the Nyström approximation, Tropp et al. 2017, arXiv
    1706.05736): never above M, exact for a rank that fits, and one pass of 4 d (cap + 64) operations a row.

    Args:
        cap: the widest matrix, and the rank of a sketch.
    """

    cap: int = 0  # CAP where it is not given
    rows: list[Tensor] = field(default_factory=list)
    matrix: Tensor | None = None
    seen: Tensor | None = None  # Y, (groups, d, cap + EXTRA)
    test: Tensor | None = None  # Ω, (d, cap + EXTRA)

    def __post_init__(self) -> None:
        self.cap = self.cap or CAP

    @property
    def empty(self) -> bool:
        """Whether no row was added."""
        return self.matrix is None and self.seen is None and not self.rows

    def add(self, rows: Tensor) -> None:
        """Adds rows `(groups, r, d)`."""
        width = rows.shape[-1]
        if self.matrix is not None:
            self.matrix += (rows.mT @ rows).double()
            return
        if self.seen is not None:
            self._sketch(rows)
            return
        self.rows.append(rows)
        count = sum(r.shape[1] for r in self.rows)
        if count >= width and width <= max(self.cap, CAP):
            self.matrix = sum((r.mT @ r).double() for r in self.rows)  # type: ignore[assignment]
            self.rows = []
        elif count > self.cap and width > max(self.cap, CAP):
            generator = torch.Generator().manual_seed(0)
            size = min(width, self.cap + EXTRA)
            self.test = torch.randn(width, size, generator=generator, dtype=torch.float64).to(rows)
            self.seen = rows.new_zeros(rows.shape[0], width, size, dtype=torch.float64)
            for held in self.rows:
                self._sketch(held)
            self.rows = []

    def _sketch(self, rows: Tensor) -> None:
        assert self.seen is not None and self.test is not None
        self.seen += rows.mT @ (rows @ self.test)

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Positive eigenvalues `(groups, r)`, descending, and orthonormal eigenvectors `(groups, d, r)`.

        Computed in float64: with dead units many eigenvalues coincide, and float32 solvers fail on them.
        """
        if self.matrix is not None:
            values, vectors = torch.linalg.eigh(self.matrix)
            return values.clamp_min(0).flip(-1), vectors.flip(-1)
        if self.seen is not None:
            roots, shift = self._nystrom()
        else:
            roots, shift = torch.cat(self.rows, 1).double(), 0.0
        values, left = torch.linalg.eigh(roots @ roots.mT)
        values, left = values.flip(-1)[..., : self.cap], left.flip(-1)[..., : self.cap]
        # directions that rounding cannot tell from zero carry no curvature; their eigenvectors would not be orthogonal
        count = max(1, int((values > 1e-10 * values[..., :1]).any(0).sum()))
        values, left = values[..., :count].clamp_min(0), left[..., :count]
        inverse = torch.where(values > 0, values, 1.0).rsqrt() * (values > 0)
        return (values - shift).clamp_min(0), roots.mT @ (left * inverse.unsqueeze(-2))

    def _nystrom(self) -> tuple[Tensor, float]:
        """Rows B `(groups, cap + EXTRA, d)` and a shift ν with BᵀB - νI ≈ M."""
        assert self.seen is not None and self.test is not None
        test = self.test.double()
        shift = max(float(self.seen.norm()) * torch.finfo(self.test.dtype).eps, 1e-300)  # of rounding; taken off again
        shifted = self.seen + shift * test
        core = test.mT @ shifted
        values, vectors = torch.linalg.eigh((core + core.mT) / 2)
        floor = 1e-12 * values[..., -1:].clamp_min(1e-300)
        inverse = torch.where(values > floor, values, 1.0).rsqrt() * (values > floor)
        return (vectors * inverse.unsqueeze(-2)).mT @ shifted.mT, shift


@dataclass
class Use:
    """One call of a layer: what it read, what entered it and what left it.

    Attributes:
        weight, bias: names of the parameters read, `None` where there is none or it is frozen.
        kind: `"kronecker"` (linear maps, convolutions), `"lookup"` (embeddings) or `"diagonal"` (normalisation).
        rows: kronecker: inputs `(groups, n, positions, width)`; lookup: the rows read, `(n, positions)`, or
            `(1, positions)` where all examples read the same, -1 for what has no gradient; diagonal: the normalised
            input, shaped like `out`.
        out: what left it, with its graph.
        channels_first: whether the outputs' axis is the second (convolutions) or the last.
        groups: of a convolution.
    """

    weight: str | None
    bias: str | None
    kind: str
    rows: Tensor
    out: Tensor
    channels_first: bool
    groups: int = 1

    def inputs(self) -> Tensor:
        """What the weight multiplies, and a one for the bias, `(groups, n, positions, inputs)`."""
        pieces = [self.rows] if self.weight is not None else []
        if self.bias is not None:
            pieces.append(torch.ones_like(self.rows[..., :1]))
        return torch.cat(pieces, -1)

    def output_rows(self, grad: Tensor) -> Tensor:
        """Gradients at `out` as rows `(groups, r, outputs)`, one per position."""
        if self.kind == "lookup":
            return (grad.reshape(-1, grad.shape[-1]) * (self.rows >= 0).reshape(-1, 1)).unsqueeze(0)
        if not self.channels_first:
            return grad.reshape(1, -1, grad.shape[-1])
        n = grad.shape[0]
        grouped = grad.reshape(n, self.groups, grad.shape[1] // self.groups, -1)
        return grouped.permute(1, 0, 3, 2).flatten(1, 2)

    def per_example(self, moment: Tensor, size: int) -> Tensor:
        """Sums `moment`, shaped like `out`, over the positions that share a scale: `(n, size)`."""
        n = moment.shape[0]
        if self.channels_first:
            return moment.reshape(n, size, -1).sum(-1)
        return moment.reshape(n, -1, size).sum(1)


class Observer(TorchFunctionMode):
    """Records every linear map, convolution and normalisation that reads a parameter, wherever it is called from.

    Layers are found where they are used, not where they are declared: `nn.Linear`, the packed projections of
    `nn.MultiheadAttention` (whose output projection's own forward never runs) and a raw `nn.Parameter` under
    `F.linear` all arrive here.

    Args:
        parameters: the tensors handed to the module, by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in parameters.items()}
        self.uses: list[Use] = []
        self.elsewhere: set[str] = set()  # parameters read by another operator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs `func` and takes note of the parameters among its arguments."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        out = func(*args, **kwargs)
        read = {self._names[id(a)] for a in (*args, *kwargs.values()) if id(a) in self._names}
        if not read or not isinstance(out, Tensor):
            return out
        use = self._use(func, dict(enumerate(args)), kwargs, out)
        if use is None or {use.weight, use.bias} - {None} != read:
            self.elsewhere |= read
        else:
            self.uses.append(use)
        return out

    def _use(self, func: Callable[..., Any], args: dict[int, Any], kwargs: dict[str, Any], out: Tensor) -> Use | None:
        def argument(position: int, name: str, default: Any = None) -> Any:
            return args.get(position, kwargs.get(name, default))

        def use(kind: str, rows: Tensor, at: int, channels_first: bool, groups: int = 1) -> Use:
            names = self._name(argument(at, "weight")), self._name(argument(at + 1, "bias"))
            return Use(*names, kind, rows, out, channels_first, groups)

        given = argument(0, "input")
        if not isinstance(given, Tensor):
            return None  # an einsum's equation
        x = given.detach()
        if func is F.embedding:
            if argument(3, "max_norm") is not None or argument(5, "scale_grad_by_freq", False) or out.ndim < 2:
                return None
            name, rows = self._name(argument(1, "weight")), x.reshape(len(x) if x.ndim > 1 else 1, -1)
            padding = argument(2, "padding_idx")
            rows = rows if padding is None else rows.masked_fill(rows == padding, -1)
            return Use(name, None, "lookup", rows, out, False)
        if func is F.linear:
            return use("kronecker", x.reshape(1, x.shape[0], -1, x.shape[-1]), 1, False)
        if func in CONVOLUTIONS:
            groups = argument(6, "groups", 1)
            settings = argument(3, "stride", 1), argument(4, "padding", 0), argument(5, "dilation", 1)
            return use("kronecker", _patches(x, argument(1, "weight").shape[2:], *settings, groups), 1, True, groups)
        if func is F.layer_norm:
            return use(
                "diagonal", F.layer_norm(x, argument(1, "normalized_shape"), eps=argument(4, "eps", 1e-5)), 2, False
            )
        if func is F.batch_norm and not argument(5, "training", False):
            plain = F.batch_norm(
                x, argument(1, "running_mean"), argument(2, "running_var"), eps=argument(7, "eps", 1e-5)
            )
            return use("diagonal", plain, 3, True)
        if func is F.group_norm:
            return use("diagonal", F.group_norm(x, argument(1, "num_groups"), eps=argument(4, "eps", 1e-5)), 2, True)
        return None

    def _name(self, tensor: Any) -> str | None:
        return self._names.get(id(tensor))


# The Python body of multi-head attention without its own hand-over to the observer, which would hide its linear maps
_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def _patches(x: Tensor, kernel: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """The inputs of a convolution as rows `(groups, n, positions, width)`, one per output position."""
    rank = len(kernel)
    stride, dilation = _spread(stride, rank), _spread(dilation, rank)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel)]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(p, p) for p in _spread(padding, rank)]
    x = F.pad(x, [side for pair in reversed(pads) for side in pair])
    n, channels = x.shape[:2]
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    # now (n, channels, *positions, *kernel): channels and kernel make the width
    x = x.reshape(n, groups, channels // groups, -1, kernel.numel())
    return x.permute(1, 0, 3, 2, 4).flatten(3)


def _spread(value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value) * (rank // len(value))
