"""What layers see of a batch: one forward pass, and a backward pass for each column of the outputs' curvature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.factors import Observer, Use
from isopath.network import Network, rows_of

BACKWARD = 2 / 3


@dataclass(frozen=True, eq=False)
class Seen:
    """One batch, after its forward pass.

    Attributes:
        uses: calls of layers that have a block of their own.
        rest: names of the parameters that none of them covers.
        example: the weight of each example, `(n,)`.
        count: how many outputs' rows there are, the examples.
        gradients: for each column the gradients at what left the uses, and of the rest by name; `None` where there is
            none. One sign per row of outputs is drawn for each column: it makes the square of a gradient that is summed
            over rows an unbiased estimate of the sum of squares, and does not show in a layer's own rows.
    """

    uses: list[Use]
    rest: list[str]
    example: Tensor
    count: int
    gradients: Iterator[tuple[list[Tensor | None], dict[str, Tensor]]]


def swept(
    network: Network, theta: Tensor, batch: Batch, generator: torch.Generator, coverage: float = 1.0,
    samples: int | None = None,
) -> Seen | None:  # fmt: skip
    """Sends a batch through the network at `theta`.

    Args:
        network: the network.
        theta: the point, `(P,)`.
        batch: weighted reference rows.
        generator: of signs and samples.
        coverage: share of the outputs' curvature (trace of H) to sample, largest columns of its root first.
        samples: random columns instead, of that number: Monte-Carlo, unbiased, for outputs with very many columns.

    Returns:
        What the layers saw; `None` where no parameter is read.
    """
    point = theta.detach().requires_grad_(True)
    parameters = network.space.unflatten(point)
    with torch.enable_grad(), Observer(parameters) as observer:
        y = network.apply(parameters, batch.inputs, batch.output)
    if not y.requires_grad:
        return None
    uses, rest = _sorted(observer, parameters)
    cotangents = columns(batch, y.detach(), coverage, samples, generator)
    network.count(rows_of(batch.inputs), 1 + BACKWARD * (len(cotangents) - 1))
    targets = [use.out for use in uses] + [parameters[name] for name in rest]

    def gradients() -> Iterator[tuple[list[Tensor | None], dict[str, Tensor]]]:
        for i, cotangent in enumerate(cotangents):
            signs = torch.randint(2, y.shape[:-1], generator=generator).to(y) * 2 - 1
            signed = cotangent * signs.unsqueeze(-1)
            last = i == len(cotangents) - 1
            found = torch.autograd.grad(y, targets, signed, retain_graph=not last, allow_unused=True)
            named = {name: g for name, g in zip(rest, found[len(uses) :]) if g is not None}
            yield list(found[: len(uses)]), named

    return Seen(uses, rest, batch.weight.reshape(len(batch.weight), -1).sum(1), len(y), gradients())


def _sorted(observer: Observer, parameters: dict[str, Tensor]) -> tuple[list[Use], list[str]]:
    """The calls that get a block of their own, and the parameters that none of them covers."""
    shared = set(observer.elsewhere)
    partner: dict[str, tuple[str | None, str | None, bool]] = {}
    for use in observer.uses:  # a parameter with two different partners, or read in two ways, has no single block
        own = (use.weight, use.bias, use.kind == "lookup")
        for name in (use.weight, use.bias):
            if name is not None and partner.setdefault(name, own) != own:
                shared |= {*partner[name][:2], use.weight, use.bias} - {None}  # type: ignore[arg-type]
    uses = [use for use in observer.uses if not {use.weight, use.bias} & shared]
    covered = {name for use in uses for name in (use.weight, use.bias)}
    return uses, [name for name in parameters if name not in covered]


def columns(
    batch: Batch, y: Tensor, coverage: float, samples: int | None, generator: torch.Generator
) -> list[Tensor]:
    """Cotangents whose outer products sum to w H at each row, the largest of every row first; or random ones."""
    root = batch.divergence.root(y) * batch.weight.clamp_min(0).sqrt()[..., None, None]
    if samples is not None:
        found = []
        for _ in range(samples):
            signs = torch.randint(2, root.shape[:-1], generator=generator).to(root) * 2 - 1
            found.append((root * signs.unsqueeze(-1)).sum(-2) / samples**0.5)
        return found
    size = root.square().sum(-1)
    order = size.argsort(-1, descending=True)
    seen = size.gather(-1, order).reshape(-1, size.shape[-1]).double().sum(0).cumsum(0)
    count = int((seen < coverage * seen[-1]).sum()) + 1
    index = order[..., : min(count, root.shape[-2])].unsqueeze(-1).expand(*order.shape[:-1], -1, root.shape[-1])
    return list(root.gather(-2, index).unbind(-2))
