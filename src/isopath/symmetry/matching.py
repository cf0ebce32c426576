"""Which units of one network correspond to those of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from isopath.arguments import check_module, check_numbers
from isopath.examples import Examples
from isopath.network import check_runs
from isopath.symmetry.finder import symmetries as find
from isopath.symmetry.group import Symmetries
from isopath.symmetry.permutation import Permutation, is_identity
from isopath.symmetry.similarity import Activations, Similarity, Weights

TIES = 1e-6  # share of the weights' similarity where activations decide
Method = Literal["activations", "weights", "mixed"]


def align(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Any,
    method: Method = "activations",
    on: Literal["post", "pre"] = "post",
    weight: float = 0.5,
    symmetries: Symmetries | None = None,
    batch_size: int = 256,
    sweeps: int = 100,
    seed: int = 0,
) -> Permutation:
    """The permutation P of `model_b` that brings its units next to those of `model_a`.

    Args:
        model_a: the network that stays.
        model_b: the network whose units are permuted; neither is modified.
        data: inputs, as a tensor, a tuple or mapping, a `Dataset` or a `DataLoader`; `"weights"` reads only their
            shapes.
        method: `"activations"` maximises the summed correlation of units over the data, group by group (neuron
            alignment, Tatro et al. 2020, arXiv 2009.02439); `"weights"` the inner product of all parameters, by
            coordinate descent over the groups (weight matching, Ainsworth et al. 2022, arXiv 2209.04836); `"mixed"` the
            sum of both, each divided by what it comes to where the units match themselves.
        on: activations as they enter a layer (`"post"`), or as they leave it (`"pre"`).
        weight: of the weights in `"mixed"`, in [0, 1].
        symmetries: which units may move; found in `model_a` by default.
        batch_size: rows per forward pass.
        sweeps: the most passes of coordinate descent over all groups.
        seed: of the order in which coordinate descent takes the groups.

    Raises:
        ValueError: the two models differ in a name or a shape, an option is unknown, or there is no data.
    """
    if method not in ("activations", "weights", "mixed"):
        raise ValueError(f"method must be 'activations', 'weights' or 'mixed', got {method!r}")
    if data is None:
        raise ValueError("align needs data: inputs to measure activations on, or for the weights at least one row")
    check_numbers(weight=weight, sweeps=sweeps, batch_size=batch_size)
    if not 0 <= weight <= 1 or min(sweeps, batch_size) < 1:
        raise ValueError(
            f"weight must lie in [0, 1], sweeps and batch_size be >= 1, got {weight}, {sweeps} and {batch_size}"
        )
    check_module(model_a, "model_a")
    check_module(model_b, "model_b")
    _same_shapes(model_a, model_b)
    examples = Examples.of(data, what="the data")
    first, _ = examples.take(torch.arange(min(2, len(examples))), next(model_a.parameters()).device)
    check_runs(model_a, first, "the data")
    found = symmetries if symmetries is not None else find(model_a, first)
    scores: list[tuple[float, Similarity]] = []
    # units that never vary have no correlation: their weights decide
    shares = {"activations": TIES, "weights": 1.0, "mixed": weight}
    scores.append((shares[method], Weights(dict(model_a.named_parameters()), dict(model_b.named_parameters()), found)))
    if method != "weights":
        share = 1.0 if method == "activations" else 1 - weight
        scores.append((share, Activations(model_a, model_b, found, examples, on, batch_size)))
    return Descent(found, scores, seed).run(sweeps)


def _same_shapes(a: nn.Module, b: nn.Module) -> None:
    shapes = [{name: tuple(t.shape) for name, t in [*m.named_parameters(), *m.named_buffers()]} for m in (a, b)]
    if shapes[0] != shapes[1]:
        names = [n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n)]
        said = "; ".join(f"{n!r}: {shapes[0].get(n, 'missing')} and {shapes[1].get(n, 'missing')}" for n in names[:3])
        raise ValueError(f"only networks of the same shapes can be aligned; {len(names)} differ: {said}")


class Descent:
    """Coordinate ascent over the groups, each assignment optimal while the others stand.

    A group whose index others depend on (heads) is matched together with them: the score of a pair is that of the best
    assignment within it.

    Args:
        found: which units may move.
        scores: similarities and their shares.
        seed: of the order of the groups.
    """

    def __init__(self, found: Symmetries, scores: Sequence[tuple[float, Similarity]], seed: int) -> None:
        self.found, self.seed = found, seed
        self.scores = [(share / max(s.scale, 1e-300), s) for share, s in scores if share]
        self.children = {
            key: [c for c, group in found.groups.items() if group.parents == (key,)] for key in found.groups
        }
        together = [{k for place in places for k in place.groups()} for places in found.places.values()]
        self.neighbours = {key: set().union(*(names for names in together if key in names)) for key in found.groups}
        self.coupled = {  # groups that meet themselves in a parameter: their assignment is not a linear problem
            key
            for key in found.groups
            for places in found.places.values()
            if sum(key in place.groups() for place in places) > 1
            or any(list(term.groups()).count(key) > 1 for place in places for term in place.terms())
        }

    def run(self, sweeps: int, settle: bool = True) -> Permutation:
        """The permutation found; never one with a smaller total than the identity's.

        Args:
            sweeps: the most passes over all groups.
            settle: whether to begin with a guess from the inputs on (weights alone), or else with the identity.
        """
        start = self._total()
        current = Permutation.identity(self.found)
        current = self._settled(current) if settle else current
        generator, keys = torch.Generator().manual_seed(self.seed), list(self.found.groups)
        stale = set(keys)  # groups of which a neighbour has moved since their own turn
        for _ in range(sweeps):
            for i in torch.randperm(len(keys), generator=generator).tolist():
                if keys[i] not in stale:
                    continue
                stale.discard(keys[i])
                moved = self._better(keys[i])
                if moved is not None:
                    current = self._apply(moved, current)
                    stale |= {k for key in moved for k in self.neighbours[key]} - {keys[i]}
            if not stale:
                break
        return current if self._total() >= start else Permutation.identity(self.found)

    def _total(self, key: int | None = None) -> float:
        return sum(share * score.total(key) for share, score in self.scores)

    def _settled(self, current: Permutation) -> Permutation:
        """A first guess from the inputs on: each group by what connects it to groups matched before."""
        weights = [score for _, score in self.scores if isinstance(score, Weights)]
        done: set[int] = set()
        for key in self.found.groups if len(self.scores) == 1 and weights else ():
            found = None if self.children[key] else weights[0].settled(key, done)
            if found is not None:
                current = self._apply({key: assigned(found)}, current)
                done.add(key)
        return current

    def _pairs(self, key: int, child: int | None = None) -> Tensor | None:
        total = None
        for share, score in self.scores:
            found = score.pairs(key, child)
            if found is not None:
                total = share * found if total is None else total + share * found
        return total

    def _better(self, key: int) -> dict[int, Tensor] | None:
        """A move of one group, and of those that depend on it, which raises the total; `None` if there is none."""
        pairs = self._pairs(key)
        if pairs is None and not self.children[key]:
            return None
        moved = self._jointly(key, pairs) if self.children[key] else {key: assigned(pairs)}  # type: ignore[arg-type]
        if all(map(is_identity, moved.values())):
            return None
        if key not in self.coupled:
            return moved  # the assignment is optimal, and its gain is the total's
        before, identity = self._total(key), Permutation.identity(self.found)
        self._apply(moved, identity)
        gain = self._total(key) - before
        step = Permutation(self.found, {**identity.moved, **moved})
        self._apply(step.inverse().moved, identity)
        return moved if gain > 1e-12 * max(1.0, abs(before)) else None

    def _jointly(self, key: int, pairs: Tensor | None) -> dict[int, Tensor]:
        """A group and those that depend on its index: the best assignment within every pair, then of the pairs."""
        size, within = self.found.groups[key].size, {}
        total = torch.zeros(size, size, dtype=torch.float64) if pairs is None else pairs.clone()
        for child in self.children[key]:
            inner = self._pairs(key, child)
            if inner is not None:
                within[child] = assigned(inner)
                total += inner.gather(-1, within[child].unsqueeze(-1)).sum((-2, -1))
        outer = assigned(total)
        return {key: outer} | {child: best[torch.arange(size), outer] for child, best in within.items()}

    def _apply(self, moved: Mapping[int, Tensor], current: Permutation) -> Permutation:
        step = Permutation(self.found, {**self.found.identity(), **moved})
        for _, score in self.scores:
            score.permute(step.moved)
        return step @ current


def assigned(pairs: Tensor) -> Tensor:
    """For each row the column of the assignment with the largest sum, over batches: `(..., n)`.

    Ties keep the identity: a unit without a better partner stays.
    """
    size = pairs.shape[-1]
    flat = pairs.reshape(-1, size, size)
    spread = flat.abs().amax().clamp_min(1e-300) * 1e-12
    flat = flat + spread * torch.eye(size, dtype=flat.dtype)
    found = [torch.from_numpy(linear_sum_assignment(matrix.numpy(), maximize=True)[1]) for matrix in flat]
    return torch.stack(found).reshape(pairs.shape[:-1])
