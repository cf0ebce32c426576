"""Which units of one network correspond to those of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isopath.examples import Examples
from isopath.network import _arguments as arguments_of
from isopath.network import plain_kernels
from isopath.symmetry.cells import cells
from isopath.symmetry.finder import symmetries as find
from isopath.symmetry.group import Group, Site, Symmetries
from isopath.symmetry.labels import ENTERING
from isopath.symmetry.permutation import Permutation

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
    _same_shapes(model_a, model_b)
    examples = Examples.of(data, what="the data")
    first, _ = examples.take(torch.arange(min(2, len(examples))))
    found = symmetries if symmetries is not None else find(model_a, first)
    scores: list[tuple[float, Similarity]] = []
    # units that never vary have no correlation: their weights decide
    shares = {"activations": TIES, "weights": 1.0, "mixed": weight}
    scores.append((shares[method], Weights(model_a, model_b, found)))
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


class Similarity(Protocol):
    """How alike units of two networks are."""

    def pairs(self, key: int, child: int | None = None) -> Tensor | None:
        """Similarity of the units of a group, those of the second network as they are permuted now, `(*parents, n, n)`.

        Where a group depends on this one alone, its units stand for it: `child` gives their similarity between every
        two indices of `key`, `(m, m, n, n)`.
        """

    def permute(self, moved: Mapping[int, Tensor]) -> None:
        """Permutes the second network."""

    def total(self, key: int | None = None) -> float:
        """What is maximised, as the second network is permuted now; with `key`, where that group appears."""

    @property
    def scale(self) -> float:
        """What `total` comes to for a network and itself."""


class Weights:
    """Inner products of parameters and running statistics.

    Args:
        model_a: the network that stays.
        model_b: the network that is permuted.
        found: which units may move.
    """

    def __init__(self, model_a: nn.Module, model_b: nn.Module, found: Symmetries) -> None:
        self.found = found
        named = [{n: t.detach() for n, t in m.named_parameters() if n in found.places} for m in (model_a, model_b)]
        self.a, self.b = named
        self.members = {
            key: [name for name in self.a if any(key in place.groups() for place in found.places[name])]
            for key in found.groups
        }

    def pairs(self, key: int, child: int | None = None) -> Tensor | None:
        """Inner products over all parameters."""
        total = None
        for name in self.members[key]:
            places = self.found.places[name]
            piece = products(self.a[name], self.b[name], places, key, child, self.found.groups)
            if piece is not None:
                total = piece if total is None else total + piece
        return total

    def settled(self, key: int, done: set[int]) -> Tensor | None:
        """Inner products over the parts of parameters where all other groups are matched already."""
        total = None
        for name in self.members[key]:
            places = self.found.places[name]
            piece = products(self.a[name], self.b[name], places, key, None, self.found.groups, done)
            if piece is not None:
                total = piece if total is None else total + piece
        return total

    def permute(self, moved: Mapping[int, Tensor]) -> None:
        """Permutes the second network's tensors that change."""
        moving = [key for key, index in moved.items() if not is_identity(index)]
        names = {name for key in moving for name in self.members[key]}
        self.b |= self.found.applied({name: self.b[name] for name in names}, moved)

    def total(self, key: int | None = None) -> float:
        """<θ_a, Pθ_b> over the parameters that move, or those with one group."""
        names = self.a if key is None else self.members[key]
        return sum(float(torch.linalg.vecdot(self.a[n].flatten(), self.b[n].flatten()).double()) for n in names)

    @property
    def scale(self) -> float:
        """‖θ_a‖²."""
        return sum(float(t.double().square().sum()) for t in self.a.values())


def products(
    a: Tensor, b: Tensor, places: Sequence[Any], key: int, child: int | None, groups: Mapping[int, Group],
    done: set[int] | None = None,
) -> Tensor | None:  # fmt: skip
    """Inner products of the units of a group in two tensors; see `Similarity.pairs`."""
    total = None
    for one, other in zip(cells(a, places), cells(b, places)):
        for at in one.occurrences(key if child is None else child):
            if child is None:
                axes = [*one.beside(at, groups[key].parents), at]
                if any(k in groups and groups[k].parents == (key,) for k in one.keys):
                    continue
                rest = {k for j, k in enumerate(one.keys) if k in groups and j not in axes}
                if done is not None and not rest <= done:
                    continue
                product = (one.rows(axes) @ other.rows(axes).mT).double().cpu()
            else:
                axes = [*one.beside(at, (key,)), at]
                x, y = one.rows(axes), other.rows(axes)
                product = (x.flatten(0, 1) @ y.flatten(0, 1).mT).double().cpu()
                product = product.view(*x.shape[:2], *x.shape[:2]).permute(0, 2, 1, 3)
            total = product if total is None else total + product
    return total


class Activations:
    """Correlation of units' activations over data, summed over the places where a group appears.

    One pass over the data; what depends on other groups' permutations is nothing but the parents' index.

    Args:
        model_a: the network that stays.
        model_b: the network that is permuted.
        found: which units may move.
        examples: the data.
        on: where activations are read.
        batch_size: rows per forward pass.
    """

    def __init__(
        self, model_a: nn.Module, model_b: nn.Module, found: Symmetries, examples: Examples, on: str, batch_size: int
    ) -> None:
        self.found = found
        sites = [site for site in found.sites if (site.argument == "out") == (on == "pre")]
        covered = {key for site in sites for place in site.places for key in place.groups()}
        sites += [s for s in found.sites if s not in sites and {k for p in s.places for k in p.groups()} - covered]
        self._moments: dict[tuple[int, int | None, tuple[int, ...]], Moments] = {}
        device = next(model_a.parameters()).device
        for rows in torch.arange(len(examples)).split(batch_size):
            inputs, _ = examples.take(rows, device)
            pairs = zip(captured(model_a, inputs, sites), captured(model_b, inputs, sites))
            for number, (one, other) in enumerate(pairs):
                self._read(sites[number], number, one, other)
        self._pairs: dict[tuple[int, int | None], Tensor] = {}
        for (key, child, _), moments in self._moments.items():
            correlation = moments.correlation()
            before = self._pairs.get((key, child))
            self._pairs[key, child] = correlation if before is None else before + correlation
        self._moments = {}

    def _read(self, site: Site, number: int, a: Tensor, b: Tensor) -> None:
        groups = self.found.groups
        for i, (one, other) in enumerate(zip(cells(a, site.places), cells(b, site.places))):
            for at, key in enumerate(one.keys):
                if key not in groups or any(k in groups and groups[k].parents == (key,) for k in one.keys):
                    continue
                parents = groups[key].parents
                axes = [*one.beside(at, parents), at]
                # units of other groups are in another order in the second network: only their mean is the same
                mixed = [j for j, k in enumerate(one.keys) if k in groups and j not in axes]
                x, y = (cell.rows(axes, mixed) for cell in (one, other))
                if len(parents) == 1 and parents[0] in groups:  # between every two of the parent's indices
                    moments = self._moments.setdefault((parents[0], key, (number, i, at)), Moments())
                    moments.add(x.flatten(0, 1), y.flatten(0, 1))
                else:
                    self._moments.setdefault((key, None, (number, i, at)), Moments()).add(x, y)

    def pairs(self, key: int, child: int | None = None) -> Tensor | None:
        """Summed correlations."""
        parents = self.found.groups[key].parents
        if child is None and len(parents) == 1 and (parents[0], key) in self._pairs:
            between = self.pairs(parents[0], key)
            assert between is not None
            return between.diagonal(dim1=0, dim2=1).permute(2, 0, 1)
        found = self._pairs.get((key, child))
        if found is None or child is None:
            return found
        m, n = self.found.groups[child].shape
        return found.view(m, n, m, n).permute(0, 2, 1, 3)

    def permute(self, moved: Mapping[int, Tensor]) -> None:
        """Permutes the second network's units in all correlations."""
        for (key, child), value in self._pairs.items():
            if child is None:
                self._pairs[key, child] = value.gather(-1, moved[key].unsqueeze(-2).expand_as(value))
            else:
                width = self.found.groups[child].size
                self._pairs[key, child] = value[:, (moved[key].unsqueeze(-1) * width + moved[child]).flatten()]

    def total(self, key: int | None = None) -> float:
        """The summed correlation of units with those that they are matched to."""
        return sum(float(value.diagonal(dim1=-2, dim2=-1).sum()) for value in self._pairs.values())

    @property
    def scale(self) -> float:
        """The number of units."""
        return float(max(1, sum(value.shape[:-1].numel() for value in self._pairs.values())))


class Moments:
    """Running sums for correlations between two sets of variables."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds samples `(..., n, s)` of each."""
        x, y = x.double(), y.double()
        new = [x.sum(-1), y.sum(-1), x.square().sum(-1), y.square().sum(-1), x @ y.mT]
        self.count += x.shape[-1]
        self.sums = new if not self.sums else [a + b for a, b in zip(self.sums, new)]

    def correlation(self) -> Tensor:
        """Pearson's, `(..., n, n)`; zero where a variable does not vary."""
        x, y, xx, yy, xy = (s / self.count for s in self.sums)
        spread = ((xx - x.square()).clamp_min(0).unsqueeze(-1) * (yy - y.square()).clamp_min(0).unsqueeze(-2)).sqrt()
        covariance = xy - x.unsqueeze(-1) * y.unsqueeze(-2)
        return torch.where(spread > 1e-12, covariance / spread.clamp_min(1e-300), 0.0).cpu()


def captured(model: nn.Module, inputs: Any, sites: Sequence[Site]) -> list[Tensor]:
    """The activations at some sites in one forward pass in eval mode."""
    mode, training = _Capture(sites), {module: module.training for module in model.modules()}
    args, kwargs = arguments_of(inputs)
    try:
        model.eval()
        with torch.no_grad(), plain_kernels(recurrent=True), mode:
            model(*args, **kwargs)
    finally:
        for module, was in training.items():
            module.training = was
    return [mode.found[site.call, site.argument] for site in sites]


class _Capture(TorchDispatchMode):
    """Keeps what enters and leaves contractions of given numbers."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self.wanted: dict[int, list[str]] = {}
        for site in sites:
            self.wanted.setdefault(site.call, []).append(site.argument)
        self.found: dict[tuple[int, str], Tensor] = {}
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = "aten." + func.overloadpacket.__name__
        if name in ENTERING:
            for argument in self.wanted.get(self.number, ()):
                if argument != "out" and argument not in ENTERING[name]:
                    raise ValueError(
                        "the model does other operations on these inputs than on the example (contraction "
                        f"{self.number} is {name}); give symmetries found with an example like the data"
                    )
                names = [a.name for a in func._schema.arguments]
                self.found[self.number, argument] = out if argument == "out" else args[names.index(argument)]
            self.number += 1
        return out


# --- the search -----------------------------------------------------------------------------------------------------


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

    def run(self, sweeps: int) -> Permutation:
        """The permutation found; never one with a smaller total than the identity's."""
        start = self._total()
        current = self._settled(Permutation.identity(self.found))
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


def is_identity(index: Tensor) -> bool:
    """Whether nothing changes place."""
    return torch.equal(index, torch.arange(index.shape[-1]).expand_as(index))


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

