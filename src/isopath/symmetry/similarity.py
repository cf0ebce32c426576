"""How alike the units of two networks are: by their weights, and by their activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isopath.examples import Examples
from isopath.network import _arguments as arguments_of
from isopath.network import plain_kernels
from isopath.symmetry.cells import cells
from isopath.symmetry.group import Group, Site, Symmetries
from isopath.symmetry.labels import ENTERING
from isopath.symmetry.permutation import is_identity


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
    """Inner products of parameters.

    Args:
        a: of the network that stays, by name.
        b: of the network that is permuted.
        found: which units may move.
    """

    def __init__(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor], found: Symmetries) -> None:
        self.found = found
        self.a, self.b = ({n: t.detach() for n, t in some.items() if n in found.places} for some in (a, b))
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
