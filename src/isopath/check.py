"""Diagnostics that anyone can run on their own network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from isopath.geometry.gram import Gram
from isopath.geometry.reference import Part, Reference
from isopath.network import Network, Output, copied, pick
from isopath.network import _arguments as arguments_of
from isopath.pack import Packing
from isopath.symmetry import Permutation, Symmetries, symmetries

LARGEST = 20_000  # parameters times outputs of a dense check


@dataclass(frozen=True)
class MetricCheck:
    """How far a metric is from the dense JᵀHJ, relative to its norm, on random tangents."""

    product: float
    solve: float
    symmetry: float
    cosine: float

    def __repr__(self) -> str:
        return (
            f"MetricCheck(product={self.product:.2e}, solve={self.solve:.2e}, symmetry={self.symmetry:.2e}, "
            f"cosine={self.cosine:.4f})"
        )


def dense_metric(network: Network, part: Part, theta: Tensor) -> Tensor:
    """G as a matrix `(P, P)`, from a dense Jacobian: for checks of small networks only."""
    total = torch.zeros(len(theta), len(theta), dtype=theta.dtype, device=theta.device)
    for batch in part.batches:
        point = theta.detach().requires_grad_(True)
        y = batch.outputs(network, point)
        # one backward pass a row, not a vectorised one: it works for every operator that has a derivative
        pulled = [torch.autograd.grad(entry, point, retain_graph=True, allow_unused=True)[0] for entry in y.reshape(-1)]
        jacobian = torch.stack([torch.zeros_like(theta) if row is None else row for row in pulled])
        root = batch.divergence.root(y.detach()) * batch.weight.sqrt()[..., None, None]
        rows = torch.einsum("...kc,...cp->...kp", root, jacobian.reshape(*y.shape, -1)).reshape(-1, len(theta))
        total += rows.mT @ rows
    return total


def check_metric(
    model: nn.Module, reference: Reference, kind: str = "exact", damping: float = 1e-3, seed: int = 0, **options: object
) -> MetricCheck:
    """Compares a metric with the dense JᵀHJ of a small network.

    Args:
        model: a module of at most a few thousand parameters; use `.double()` for a check to machine precision.
        reference: what is kept.
        kind: as in `Reference.metric`.
        damping: of the solves compared.
        seed: of the random tangents.
        options: further arguments of the metric.

    Raises:
        ValueError: the network is too large for a dense metric.
    """
    network = Network(model)
    if network.space.dimension > LARGEST:
        raise ValueError(
            f"a dense check of {network.space.dimension} parameters is too large, at most {LARGEST}; "
            "check a smaller network of the same layers"
        )
    part = reference.whole(network, network.start)
    dense = dense_metric(network, part, network.start)
    metric = reference.metric(model, kind, **options)
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(len(dense), generator=generator, dtype=torch.float64).to(dense) for _ in range(2))
    gu, gv, expected = metric.mv(u), metric.mv(v), dense @ v
    eye = torch.eye(len(dense), dtype=dense.dtype, device=dense.device)
    solved = torch.linalg.solve(dense + damping * eye, v)
    scale = (gu.norm() * v.norm()).clamp_min(1e-300)
    return MetricCheck(
        float((gv - expected).norm() / expected.norm()),
        float((metric.solve(v, damping) - solved).norm() / solved.norm()),
        float((torch.dot(gu, v) - torch.dot(u, gv)).abs() / scale),
        float(torch.dot(gv, expected) / (gv.norm() * expected.norm())),
    )


@dataclass(frozen=True)
class OrderCheck:
    """Orders of √(2D) in the step length h.

    Attributes:
        lengths: the step lengths.
        predictor: √(2D) after a null-space step of each length.
        corrected: √(2D) after one Gauss-Newton correction as well.
        predictor_order, corrected_order: slopes on logarithmic axes over the last three halvings above rounding.
    """

    lengths: tuple[float, ...]
    predictor: tuple[float, ...]
    corrected: tuple[float, ...]

    @property
    def predictor_order(self) -> float:
        """2 for a null-space step of a smooth network."""
        return slope(self.lengths, self.predictor)

    @property
    def corrected_order(self) -> float:
        """4 with one correction, 3 if its Jacobian is that of the start."""
        return slope(self.lengths, self.corrected)

    def __repr__(self) -> str:
        return f"OrderCheck(predictor={self.predictor_order:.2f}, corrected={self.corrected_order:.2f})"


def check_order(
    model: nn.Module,
    reference: Reference,
    tangent: Tensor | None = None,
    first: float = 0.5,
    halvings: int = 10,
    jacobian: Literal["fresh", "stale"] = "fresh",
    project: bool = True,
    seed: int = 0,
) -> OrderCheck:
    """Measures the order of a null-space step and of one Gauss-Newton correction.

    A step of length h along the null space of J changes smooth outputs by O(h²); a correction with J re-evaluated at
    the predictor squares that, O(h⁴); one with the Jacobian of the start leaves O(h³). Needs smooth activations, J of
    full row rank (more parameters than outputs) and `"squared_error"`.

    Args:
        model: a module, in float64.
        reference: a few inputs, with `divergence="squared_error"`.
        tangent: the direction before projection, `(P,)`; random by default.
        first: the longest step.
        halvings: how often it is halved.
        jacobian: `"stale"` corrects with the Jacobian of the start (a negative control: order 3).
        project: `False` leaves the tangent as it is (a negative control: order 1).
        seed: of the random tangent.
    """
    network = Network(model)
    theta = network.start
    part = reference.whole(network, theta)
    metric = Gram(network, theta, part.batches)
    if tangent is None:
        generator = torch.Generator().manual_seed(seed)
        tangent = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta)
    tangent = metric.project(tangent) if project else tangent
    tangent = tangent / tangent.norm()
    lengths = [first * 0.5**i for i in range(halvings)]
    predictor, corrected = [], []
    for h in lengths:
        point = theta + h * tangent
        predictor.append((2 * part.drift(point)) ** 0.5)
        here = metric if jacobian == "stale" else Gram(network, point, part.batches)
        point = point - here.solve(part.gradient(point), 0.0)
        corrected.append((2 * part.drift(point)) ** 0.5)
    return OrderCheck(tuple(lengths), tuple(predictor), tuple(corrected))


def slope(lengths: Sequence[float], values: Sequence[float], points: int = 4, floor: float = 1e-13) -> float:
    """The order of `values` in `lengths`: least squares on logarithms over the last `points` above rounding."""
    above = [(h, v) for h, v in zip(lengths, values) if v > floor][-points:]
    if len(above) < 2:
        raise ValueError(f"only {len(above)} values lie above rounding ({floor}); start with a longer step")
    h, v = torch.tensor(above, dtype=torch.float64).log().unbind(1)
    h = h - h.mean()
    return float((h * (v - v.mean())).sum() / h.square().sum())


def check_gradient(
    objective: Callable[[Network, Tensor], Tensor], model: nn.Module, step: float = 1e-4, seed: int = 0
) -> float:
    """The relative error of an objective's gradient against a central difference along a random tangent.

    Args:
        objective: a callable `(net, theta) -> scalar`; one that samples must be frozen.
        model: a module, in float64 for a sharp check.
        step: of the difference.
        seed: of the tangent.
    """
    network = Network(model)
    theta = network.start.requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(network, theta), theta)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta)
    v /= v.norm()
    with torch.no_grad():
        difference = (objective(network, theta + step * v) - objective(network, theta - step * v)) / (2 * step)
        along = torch.dot(gradient, v)
        return float((difference - along).abs() / along.abs().clamp_min(1e-30))


def check_symmetry(
    model: nn.Module, example: Any, found: Symmetries | None = None, tries: int = 3, seed: int = 0
) -> float:
    """The largest relative change of a module's outputs, in float64, when random units are permuted.

    Args:
        model: any module, in the weights that it has; it is not modified.
        example: its inputs.
        found: the symmetries to try; those that are found by default.
        tries: random elements.
        seed: of the elements.
    """
    found = symmetries(model, example) if found is None else found
    twin, generator, worst = copied(model).eval().double(), torch.Generator().manual_seed(seed), 0.0
    inputs = tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, example)
    with torch.no_grad():
        network = Network(twin)
        before = network(network.start, inputs)
        for _ in range(tries):
            moved = Network(Permutation.random(found, generator)(twin))
            change = (moved(moved.start, inputs) - before).abs().max() / before.abs().max().clamp_min(1e-300)
            worst = max(worst, float(change))
    return worst


def check_disjoint(packing: Packing, examples: Mapping[str, Any], output: Output = None) -> float:
    """The largest change of a task's outputs when all that it must not see is replaced by infinities.

    That is every weight that it neither owns nor reads, and the biases, normalisation, statistics, stem and head of all
    other tasks.

    Args:
        packing: of some tasks.
        examples: a few inputs of each task to check, by its name.
        output: picks the output tensor from what a task's module returns (see `Network`).
    """
    leaked = 0.0
    for name, example in examples.items():
        member = packing.members[name]
        seen = packing.table.of(member.owner, *member.reads)
        values = {n: value.masked_fill(~seen[n], torch.inf) for n, value in packing.values.items()}
        others = {n: m if n == name else replace(m, own={k: _spoilt(v) for k, v in m.own.items()}, stem=None, head=None)
                  for n, m in packing.members.items()}  # fmt: skip
        args, kwargs = arguments_of(example)
        with torch.no_grad():
            kept, spoilt = (pick(p[name](*args, **kwargs), output)
                            for p in (packing, replace(packing, values=values, members=others)))  # fmt: skip
        leaked = max(leaked, float((kept - spoilt).abs().nan_to_num(torch.inf).max()))
    return leaked


def _spoilt(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.inf) if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class LineBound:
    """How much the cross-entropy can rise on the straight line between two networks, and how much it does.

    Attributes:
        barrier: the largest rise above the line between the ends' losses.
        bound: what the distance of the two networks' activations allows, for every labelling of the inputs.
    """

    barrier: float
    bound: float


def check_line(model_a: nn.Module, model_b: nn.Module, x: Tensor, y: Tensor, points: int = 25) -> LineBound:
    """Bounds the barrier between two multilayer perceptrons by the distance of their activations.

    Write h, z for what enters and leaves the linear map of a layer, Δ for the difference of the two networks, and e for
    the distance of the activations at t from those interpolated between the ends. Then, from layer to layer,

        e' <= ‖W(t)‖ e + t(1 - t) (‖ΔW Δh‖ + ‖Δz‖),

    the last term only where a ReLU follows: it is 1-Lipschitz, and off from linear by at most t(1 - t)|Δz| between two
    points. The cross-entropy is convex and √2-Lipschitz in the logits, so that it rises above the line between the ends
    by no more than √2 times the mean of e at the output: aligned activations bound the barrier.

    Args:
        model_a, model_b: `nn.Sequential` of `Flatten`, `Linear` and `ReLU`, of the same shapes.
        x: inputs `(N, ...)`.
        y: labels `(N,)`.
        points: of the grid in t.

    Raises:
        TypeError: there is another kind of layer.
    """
    pairs = list(zip(model_a, model_b))  # type: ignore[call-overload]
    for layer, _ in pairs:
        if not isinstance(layer, (nn.Flatten, nn.Linear, nn.ReLU)):
            raise TypeError(f"the bound holds for Flatten, Linear and ReLU, got {type(layer).__name__}")
    rises, bounds = [], []
    with torch.no_grad():
        for t in torch.linspace(0, 1, points, dtype=torch.float64).tolist():
            a = b = middle = x.flatten(1).double()
            error = torch.zeros(len(x), dtype=torch.float64)
            for k, (one, other) in enumerate(pairs):
                if isinstance(one, nn.ReLU):
                    a, b, middle = a.relu(), b.relu(), middle.relu()
                if not isinstance(one, nn.Linear):
                    continue
                (wa, ca), (wb, cb) = ((m.weight.double(), m.bias.double()) for m in (one, other))
                w, c = torch.lerp(wa, wb, t), torch.lerp(ca, cb, t)
                mixed = ((b - a) @ (wb - wa).T).norm(dim=1)
                a, b, middle = a @ wa.T + ca, b @ wb.T + cb, middle @ w.T + c
                bent = (b - a).norm(dim=1) if k + 1 < len(pairs) and isinstance(pairs[k + 1][0], nn.ReLU) else 0.0
                error = torch.linalg.matrix_norm(w, 2) * error + t * (1 - t) * (mixed + bent)
            losses = [float(nn.functional.cross_entropy(z, y)) for z in (a, b, middle)]
            rises.append(losses[2] - (1 - t) * losses[0] - t * losses[1])
            bounds.append(2**0.5 * float(error.mean()))
    return LineBound(max(rises), max(bounds))
