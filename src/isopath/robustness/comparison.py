"""How different several networks are: in predictions, in gradients, in what their layers represent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from isopath.arguments import check_kind
from isopath.attacks import Victim, cross_entropy_rows
from isopath.attacks.victim import labels_of
from isopath.ensemble import Ensemble, networks_in
from isopath.network import Output


@dataclass(frozen=True)
class Comparison:
    """How different networks are, as means over rows and pairs of networks.

    Attributes:
        networks: M, how many.
        rows: N, on how many rows.
        disagreement: the fraction of rows on which two networks predict different classes, in [0, 1].
        kl: KL(pₐ‖p_b) of the predicted distributions, in nats, over ordered pairs.
        coherence: the cosine of the angle between the gradients of two networks' losses in the inputs, in [-1, 1];
            `None` without labels. The lower, the less an attack on one network does to another.
        coherence_max: the same of the pair with the largest cosine, row by row.
        layers: 1 - linear CKA of the layer's activations, in [0, 1], by its name.
    """

    networks: int
    rows: int
    disagreement: float
    kl: float
    coherence: float | None
    coherence_max: float | None
    layers: dict[str, float]

    def __repr__(self) -> str:
        coherence = "" if self.coherence is None else f"coherence={self.coherence:.3f}, "
        return (
            f"Comparison(disagreement={self.disagreement:.2%}, kl={self.kl:.4g}, {coherence}networks={self.networks}, "
            f"rows={self.rows}, layers={len(self.layers)})"
        )

    def __str__(self) -> str:
        values = {"different predictions": f"{self.disagreement:.2%}", "KL of predictions, nats": f"{self.kl:.4g}"}
        if self.coherence is not None:
            values["cosine of input gradients"] = f"{self.coherence:.3f}, of the closest pair {self.coherence_max:.3f}"
        values |= {f"1 - CKA of layer {name}": f"{distance:.3f}" for name, distance in self.layers.items()}
        width = max(map(len, values))
        head = f"{self.networks} networks on {self.rows} rows, mean over pairs of networks"
        return "\n".join([head, *(f"{label:{width}}  {value}" for label, value in values.items())])


def compare(
    models: Ensemble | Sequence[nn.Module], x: Tensor, y: Tensor | None = None, *, layers: Sequence[str] | None = None,
    output: Output = None, batch_size: int = 256,
) -> Comparison:  # fmt: skip
    """How different networks are on inputs.

    Disagreement is the mean over pairs of [argmax fₐ(x) ≠ argmax f_b(x)]; KL that of Σ pₐ log(pₐ / p_b), p the softmax.
    Coherence is that of the cosine ⟨∇ₓLₐ, ∇ₓL_b⟩ / ‖∇ₓLₐ‖‖∇ₓL_b‖ with L the cross-entropy, and its largest value over
    pairs (Kariyappa & Qureshi 2019, arXiv 1901.09981, who train it down); a gradient that is zero has no direction, and
    its pairs do not count.
    Layers are compared by linear CKA, ⟨K, L⟩ / ‖K‖‖L‖ with K = XXᵀ the Gram matrix `(n, n)` of centred activations X
    (Kornblith et al. 2019, arXiv 1905.00414), whose numerator and denominator are summed over batches (Nguyen et al.
    2021, arXiv 2010.15327): with N ≤ `batch_size` it is CKA itself, and fewer rows than units bring it near 1.

    A network costs one forward pass a row, and one backward pass with labels.

    Args:
        models: an `Ensemble`, or at least two modules with the same classes; they are not modified.
        x: inputs `(N, ...)`, on the models' device; with labels, floating-point.
        y: labels `(N,)`, for the gradients.
        layers: names of submodules whose outputs are compared; by default every one that has a weight of two or more
            dimensions in all networks. `()` for none.
        output: picks the output tensor from what a network returns (see `Network`); an ensemble has its own.
        batch_size: rows in one pass.

    Raises:
        ValueError: there are fewer than two networks, their outputs differ in shape, or there is no such layer.
        TypeError: the labels are no integers.

    >>> import isopath as ip
    >>> twins = [nn.Linear(4, 3)] * 2
    >>> ip.compare(twins, torch.eye(4)).disagreement
    0.0
    """
    check_kind(x, Tensor, "x", "networks are compared on inputs that are one tensor (N, ...)")
    if isinstance(models, Ensemble):
        output = models.output
    networks = networks_in(models.models if isinstance(models, Ensemble) else models, "a comparison")
    if len(networks) < 2:
        raise ValueError(f"a comparison needs at least two networks, got {len(networks)}")
    if not len(x) or batch_size < 1:
        raise ValueError(f"a comparison needs at least one row and batch_size >= 1, got {len(x)} and {batch_size}")
    victims = [Victim(model, output) for model in networks]
    if y is not None:
        with torch.no_grad():
            y = labels_of(y, x, victims[0](x[:2]))
    watched = [_Watched(victim, _names(victims, layers), strict=layers is not None) for victim in victims]
    sums = _Sums(len(networks), graded=y is not None)
    for k in range(0, len(x), batch_size):
        part = slice(k, k + batch_size)
        seen = [one(x[part], None if y is None else y[part]) for one in watched]
        sums.add([s.outputs for s in seen], [s.gradient for s in seen], [s.grams for s in seen])
    return sums.comparison()


@dataclass(frozen=True)
class _Seen:
    """What a network shows on a batch: outputs `(n, C)`, gradients `(n, D)`, a Gram matrix `(n, n)` of each layer."""

    outputs: Tensor
    gradient: Tensor | None
    grams: Mapping[str, Tensor]


class _Watched:
    """A network whose layers' Gram matrices are taken as it runs: no activation is kept."""

    def __init__(self, victim: Victim, layers: Sequence[str], strict: bool) -> None:
        self.victim, self.layers, self.strict = victim, layers, strict
        self.grams: dict[str, Tensor] = {}
        for name in layers:
            victim.module.get_submodule(name).register_forward_hook(self._taking(name))

    def __call__(self, x: Tensor, y: Tensor | None) -> _Seen:
        self.grams, self.count = {}, len(x)
        gradient = None
        if y is None:
            with torch.no_grad():
                outputs = self.victim(x)
        else:
            point = x.detach().requires_grad_(True)
            with torch.enable_grad():
                outputs = self.victim(point)
                (gradient,) = torch.autograd.grad(cross_entropy_rows(outputs, y).sum(), point)
        missing = [name for name in self.layers if name not in self.grams]
        if missing and self.strict:
            raise ValueError(f"layer {missing[0]!r} gave no tensor with {len(x)} rows; leave it out of layers=")
        return _Seen(outputs.detach().double(), None if gradient is None else gradient.flatten(1).double(), self.grams)

    def _taking(self, name: str) -> Callable[..., None]:
        def take(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim and len(output) == self.count:
                rows = output.detach().flatten(1) if output.ndim > 1 else output.detach()[:, None]
                rows = rows - rows.mean(0)
                self.grams[name] = (rows @ rows.T).double()

        return take


@dataclass
class _Sums:
    """Running sums over batches; a pair's number is never kept for each row."""

    networks: int
    graded: bool
    rows: int = 0
    equal: float = 0.0
    divergence: float = 0.0
    cosine: float = 0.0
    pairs: float = 0.0
    largest: float = 0.0
    met: float = 0.0
    products: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], grams: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """A batch: of each network, what it shows."""
        shapes = {tuple(y.shape) for y in outputs}
        if len(shapes) > 1 or outputs[0].ndim != 2 or outputs[0].shape[1] < 2:
            raise ValueError(
                f"networks are compared by their outputs (N, C) with the same C >= 2, got {sorted(shapes)}; pick the "
                "logits with output="
            )
        y = torch.stack(list(outputs))
        self.rows += y.shape[1]
        self.equal += float(agreeing(y).sum())
        logs = y.log_softmax(-1)
        p = logs.exp()
        # Σ over ordered pairs of KL(pₐ‖p_b) = M Σₐ pₐ log pₐ − (Σₐ pₐ)(Σ_b log p_b): no pair is formed
        logs = logs.masked_fill(logs.isneginf().all(0), 0)  # a class that all rule out
        self.divergence += float(self.networks * _expected(p, logs) - _expected(p.sum(0), logs.sum(0)))
        found = [g for g in gradients if g is not None]
        if found:
            self._add_gradients(torch.stack(found))
        for name in grams[0]:
            if all(name in own for own in grams):
                kept = torch.stack([own[name] for own in grams]).flatten(1)
                self.products[name] = self.products.get(name, 0.0) + kept @ kept.T

    def _add_gradients(self, gradients: Tensor) -> None:
        norms = gradients.norm(dim=-1, keepdim=True)
        units = gradients / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        cosines = torch.einsum("mnd,knd->nmk", units, units)
        defined = (norms[..., 0] > 0).double().T
        upper = torch.ones_like(cosines[0]).triu(1) * defined[:, :, None] * defined[:, None, :]
        self.cosine += float((cosines * upper).sum())
        self.pairs += float(upper.sum())
        some = upper.flatten(1).any(1)
        self.largest += float(cosines.masked_fill(upper == 0, -torch.inf).flatten(1).amax(1)[some].sum())
        self.met += float(some.sum())

    def comparison(self) -> Comparison:
        """The means."""
        unordered = self.networks * (self.networks - 1) / 2
        return Comparison(
            self.networks,
            self.rows,
            1 - self.equal / (unordered * self.rows),
            self.divergence / (2 * unordered * self.rows),
            _ratio(self.cosine, self.pairs) if self.graded else None,
            _ratio(self.largest, self.met) if self.graded else None,
            {name: _distance(product) for name, product in self.products.items()},
        )


def agreeing(y: Tensor) -> Tensor:
    """How many unordered pairs of networks predict one class in each row, `(M, N, C) -> (N,)`; no pair is formed."""
    votes = nn.functional.one_hot(y.argmax(-1), y.shape[-1]).sum(0).double()
    return (votes * (votes - 1)).sum(-1) / 2


def _expected(p: Tensor, logs: Tensor) -> Tensor:
    """Σ p log q, zero where p is."""
    return (p * logs.masked_fill(p == 0, 0)).sum()


def _ratio(total: float, count: float) -> float:
    return total / count if count else float("nan")


def _distance(products: Tensor) -> float:
    """The mean of 1 - CKA over pairs, from inner products of Gram matrices `(M, M)`; a constant layer is at 1."""
    size = products.diagonal().sqrt().clamp_min(1e-300)
    near = products / (size[:, None] * size)
    return float(1 - near[torch.ones_like(near, dtype=torch.bool).triu(1)].mean())


def _names(victims: Sequence[Victim], layers: Sequence[str] | None) -> list[str]:
    """The layers to compare: those asked for, or those with a weight in all networks."""
    known = [dict(victim.module.named_modules()) for victim in victims]
    if layers is None:
        heavy = (n for n, m in known[0].items() if n and any(p.ndim > 1 for p in m.parameters(recurse=False)))
        return [name for name in heavy if all(name in own for own in known)]
    for name in layers:
        lacking = [m for m, own in enumerate(known) if name not in own]
        if lacking:
            raise ValueError(
                f"network {lacking[0]} has no layer {name!r}; it has {[n for n in known[lacking[0]] if n][:12]}"
            )
    return list(layers)
