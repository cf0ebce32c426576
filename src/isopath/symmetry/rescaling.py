"""Rescaling of units: found from derivatives, applied, and used to choose one of many equal networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from isopath.network import copied
from isopath.symmetry.cells import Cell, cells
from isopath.symmetry.group import Scaling, Symmetries

Module = TypeVar("Module", bound=nn.Module)
Occurrence = tuple[str, int, int]  # name of the tensor, number of its cell, axis of the cell
NULL = 1e-9  # singular values below it, as a share of the largest, are zero in float64
ROUND = 1e-6  # how near a power must lie to a multiple of one half
PROBES = 32  # the most random points at which derivatives are taken
OCTAVES = 24  # the check multiplies units by 2^24 or 2^-24: one that saturates anywhere shows it


def occurrences(found: Symmetries, names: Sequence[str] | Mapping[str, Tensor]) -> dict[int, list[Occurrence]]:
    """Where every group sits: one entry for each cell and axis of each tensor."""
    result: dict[int, list[Occurrence]] = {key: [] for key in found.groups}
    for name in names:
        for number, cell in enumerate(cells(torch.empty(found.shapes[name], device="meta"), found.places[name])):
            for at, key in enumerate(cell.keys):
                if key in result:
                    result[key].append((name, number, at))
    return result


def scalings(
    found: Symmetries, probe: Callable[[int], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
) -> tuple[Scaling, ...]:
    """The rescalings of units that leave a module's function as it is.

    If unit i may be multiplied by s^e_m where it sits for the m-th time, then f does not change along that orbit, and

        Σ_m e_m <∂f/∂θ_m,i, θ_m,i> = 0,

    the conservation law of a rescaling (Kunin et al. 2021, arXiv 2012.04728). One backward pass gives these inner
    products for all units of all groups; the exponents are their common null space, brought to its reduced form.

    Args:
        found: the groups.
        probe: at a random point of the given number, parameters by name, and the gradient of a random combination of
            outputs, which is overwritten; what has no gradient is not rescaled.

    Returns:
        Candidates: exact to first order, still to be tried with large factors.
    """
    parents = {p for group in found.groups.values() for p in group.parents}
    where: dict[int, list[Occurrence]] = {}
    rows: dict[int, list[Tensor]] = {key: [] for key in found.groups if key not in parents}
    for number in range(PROBES):
        short = [key for key in rows if not rows[key] or sum(map(len, rows[key])) < 3 * len(where[key]) + 8]
        if not short:
            break
        tensors, gradient = probe(number)
        flows = {name: gradient[name].mul_(tensors[name]) for name in found.places if name in gradient}
        where = where or occurrences(found, flows)
        for name in {name for places in where.values() for name, *_ in places} - flows.keys():
            flows[name] = torch.zeros_like(tensors[name])  # not run at this point, as an expert that no row was sent to
        parts = {name: list(cells(flow, found.places[name])) for name, flow in flows.items()}
        for key in [key for key in short if where[key]]:
            sums = [_summed(parts[name][number], at, found, key) for name, number, at in where[key]]
            rows[key].append(torch.stack(sums, -1))
    return tuple(
        Scaling(key, {at: float(e) for at, e in zip(where[key], powers) if e})
        for key in rows
        if rows[key]
        for powers in _null(torch.cat(rows[key])).tolist()
    )


def _summed(cell: Cell, at: int, found: Symmetries, key: int) -> Tensor:
    """The sum over everything but the units of a group, `(units,)`."""
    return cell.rows([*cell.beside(at, found.groups[key].parents), at]).sum(-1).flatten()


def _null(rows: Tensor) -> Tensor:
    """The reduced basis of the null space of `(n, m)`, as rows of multiples of ½; none where that is not what it is."""
    none = torch.zeros(0, rows.shape[1], dtype=rows.dtype)
    norms = rows.norm(dim=0)
    acting = norms > NULL * norms.max()  # a tensor without any effect (a bias on keys) is left as it is
    rows, norms = rows[:, acting], norms[acting]
    rows = rows[rows.abs().amax(1) > 0] if rows.numel() else rows
    if len(rows) < rows.shape[1] or not rows.numel():  # too little is known
        return none
    _, values, directions = torch.linalg.svd(rows / norms, full_matrices=False)
    reduced = _reduced(directions[values <= NULL * values[0]] / norms)
    rounded = (2 * reduced).round() / 2
    if not torch.allclose(rounded, reduced, rtol=0, atol=ROUND):
        return none
    basis = torch.zeros(len(rounded), len(acting), dtype=rows.dtype)
    basis[:, acting] = rounded.to(basis)
    return basis


def _reduced(basis: Tensor) -> Tensor:
    """Gauss-Jordan elimination: each row has a one where the others have zeros."""
    basis, row = basis.clone(), 0
    for column in range(basis.shape[1]):
        if row == len(basis):
            break
        scale = basis[row:].abs().amax().clamp_min(1e-300)
        pivot = row + int(basis[row:, column].abs().argmax())
        if float(basis[pivot, column].abs()) <= 1e-6 * float(scale):
            continue
        basis[[row, pivot]] = basis[[pivot, row]]
        basis[row] /= basis[row, column].clone()
        others = [i for i in range(len(basis)) if i != row]
        basis[others] -= basis[others, column].unsqueeze(1) * basis[row]
        row += 1
    return basis


# --- applied --------------------------------------------------------------------------------------------------------


def rescaled(
    tensors: Mapping[str, Tensor], found: Symmetries, factors: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Tensors with their units multiplied.

    Args:
        tensors: parameters and buffers by name; what has no place stays as it is.
        found: the symmetries.
        factors: positive numbers by the index of a scaling in `found.scalings`, `(*parents, n)` each.
    """
    wanted = {name for k in factors for name, _, _ in found.scalings[k].exponents}
    result = {name: tensor.clone() if name in wanted else tensor for name, tensor in tensors.items()}
    parts = {name: list(cells(result[name], found.places[name])) for name in wanted if name in result}
    for k, factor in factors.items():
        scaling = found.scalings[k]
        for (name, number, at), power in scaling.exponents.items():
            if name in parts:
                cell = parts[name][number]
                cell.view.mul_(_shaped(factor.to(cell.view) ** power, cell, at, found, scaling.group))
    return result


def _shaped(factor: Tensor, cell: Cell, at: int, found: Symmetries, key: int) -> Tensor:
    """`(*parents, n)` with its axes where the cell has them."""
    axes = [*cell.beside(at, found.groups[key].parents), at]
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    shape = [cell.view.shape[j] if j in axes else 1 for j in range(cell.view.ndim)]
    return factor.permute(*order).reshape(shape)


def octaves(found: Symmetries, generator: torch.Generator, most: int = OCTAVES) -> dict[int, Tensor]:
    """A random power of two for every unit of every scaling, large or small: products with them are exact."""
    shapes = [found.groups[scaling.group].shape for scaling in found.scalings]
    signs = [torch.randint(2, shape, generator=generator).double() * 2 - 1 for shape in shapes]
    return {k: 2.0 ** (most * sign) for k, sign in enumerate(signs)}


def balanced(model: Module, found: Symmetries) -> Module:
    """The copy with the smallest weights, ‖θ‖, among those that are equal to it up to rescaled units.

    It is the same for all of them: a canonical choice.

    Args:
        model: the module.
        found: its symmetries.
    """
    return _moved(model, None, found)


def nearest(model_a: nn.Module, model_b: Module, found: Symmetries) -> Module:
    """The copy of `model_b` with rescaled units that is nearest to `model_a`, ‖θ_a - θ_b‖.

    Coordinate descent over units from where `model_b` stands: never farther than that.

    Args:
        model_a: the network that stays.
        model_b: the network whose units are rescaled, aligned before.
        found: their symmetries.
    """
    return _moved(model_b, model_a, found)


def _moved(model: Module, goal: nn.Module | None, found: Symmetries, sweeps: int = 200) -> Module:
    """Minimises Σ ‖s·θ - goal‖² over the logarithms of all factors, one scaling after the other."""
    module = copied(model)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        tensors = {name: named[name].detach().double() for name in found.places}
        targets = None
        if goal is not None:
            other = {**dict(goal.named_parameters()), **dict(goal.named_buffers())}
            targets = {name: other[name].detach().double() for name in found.places}
        for _ in range(sweeps):
            largest = 0.0
            for k, scaling in enumerate(found.scalings):
                logarithm = _best(list(_terms(scaling, found, tensors, targets)))
                tensors = rescaled(tensors, found, {k: logarithm.exp()})
                largest = max(largest, float(logarithm.abs().max()))
            if largest < 1e-9:
                break
        for name in {name for scaling in found.scalings for name, _, _ in scaling.exponents}:
            named[name].copy_(tensors[name])
    return module


def _terms(
    scaling: Scaling, found: Symmetries, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor] | None
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Power, ‖θ_m‖² and <θ_m, goal_m> of every unit, for each place where it is multiplied."""
    for (name, number, at), power in scaling.exponents.items():
        axes = None
        found_rows = []
        for source in (tensors, targets):
            if source is None:
                continue
            cell = list(cells(source[name], found.places[name]))[number]
            axes = [*cell.beside(at, found.groups[scaling.group].parents), at]
            found_rows.append(cell.rows(axes))
        own = found_rows[0].square().sum(-1)
        yield power, own, torch.zeros_like(own) if targets is None else (found_rows[0] * found_rows[1]).sum(-1)


def _best(terms: Sequence[tuple[float, Tensor, Tensor]], steps: int = 30) -> Tensor:
    """The u of each unit with the least Σ_m ‖θ_m‖² e^(2 e_m u) - 2 <θ_m, goal_m> e^(e_m u), by safe Newton steps."""

    def value(u: Tensor) -> Tensor:
        return sum((own * (2 * e * u).exp() - 2 * both * (e * u).exp() for e, own, both in terms), torch.zeros_like(u))

    u = torch.zeros_like(terms[0][1])
    for _ in range(steps):
        slope, bend = torch.zeros_like(u), torch.zeros_like(u)
        for e, own, both in terms:
            slope += 2 * e * own * (2 * e * u).exp() - 2 * e * both * (e * u).exp()
            bend += 4 * e * e * own * (2 * e * u).exp() - 2 * e * e * both * (e * u).exp()
        step = (-slope / bend.abs().clamp_min(1e-300)).clamp(-1, 1)
        step = torch.where((slope == 0) | (bend == 0), 0.0, step)
        before = value(u)
        for _ in range(20):  # halve where it does not go down
            worse = value(u + step) > before
            if not bool(worse.any()):
                break
            step = torch.where(worse, step / 2, step)
        u = u + torch.where(value(u + step) > before, 0.0, step)
        if float(step.abs().max()) < 1e-12:
            break
    return u
