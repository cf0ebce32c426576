"""A given fraction of the weights exactly zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isopath.arguments import check_count, check_kind
from isopath.network import Network
from isopath.objectives.objective import Objective
from isopath.space import Space, check_plain

Scope = Literal["global", "layer"]
Score = Literal["magnitude", "metric"]
CHANNELS = "channels"


@dataclass(frozen=True)
class Sparsity(Objective):
    """A fraction of the weights exactly zero.

    Alone it is a path along the fraction: weights go a few at a time, and those that stay make up for them (see
    `trace.sparsifier`). Beside other objectives it is the term ½‖θ - Πθ‖², with Π the projection on points whose
    smallest weights, a fraction of them all, are zero; the set is re-chosen as the path moves, until the path lands on
    it: then its zeros stay.

    The fraction counts trainable parameters of two or more dimensions; biases and normalisation are left alone.

    Args:
        fraction: share of the weights to be zero, in [0, 1), or `"max"`: as many as the tolerance allows.
        pattern: `"unstructured"`; `"n:m"` such as `"2:4"`: at most n of every m neighbouring weights of an output
            stay; or `"channels"`: whole units go, neurons and channels with all that makes and reads them, which
            `compact` then takes out of the module. Only alone.
        scope: whether weights compete over the whole network, `"global"`, or each `"layer"` gives its fraction (of
            channels, each set of units that go together).
        score: what goes first: the smallest `"magnitude"`, or what by the `"metric"` moves the outputs least: a weight
            when the others make up for it (see `geometry.saliency`), a channel as measured. In a sum only
            `"magnitude"`.
        multiple: of `"channels"`, the number that stays in each set of units that go together is a multiple of this
            one: 8, say, or what the machine's vectors hold.

    Raises:
        ValueError: the fraction is out of range, is not what the pattern gives, or a word is unknown.
    """

    fraction: float | Literal["max"]
    pattern: str = "unstructured"
    scope: Scope = "global"
    score: Score = "magnitude"
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.fraction != "max" and not (isinstance(self.fraction, (int, float)) and 0 <= self.fraction < 1):
            raise ValueError(
                f"fraction must lie in [0, 1), got {self.fraction}; 0.6 makes 60 % of the weights zero, 'max' as many "
                "as the tolerance allows"
            )
        for name, got, known in (("scope", self.scope, ("global", "layer")),
                                 ("score", self.score, ("magnitude", "metric"))):  # fmt: skip
            if got not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {got!r}")
        check_count(self.multiple, "multiple")
        if self.multiple > 1 and self.pattern != CHANNELS:
            raise ValueError(f"multiple counts channels, got pattern={self.pattern!r}; say pattern='channels'")
        stay, of = self._pattern()
        if of and (self.fraction == "max" or not math.isclose(self.fraction, 1 - stay / of, abs_tol=1e-6)):
            raise ValueError(f"{self.pattern} makes {1 - stay / of:g} of the weights zero, got {self.fraction}")

    def _pattern(self) -> tuple[int, int]:
        """n and m; zeros where there is no such pattern."""
        if self.pattern in ("unstructured", CHANNELS):
            return 0, 0
        check_kind(self.pattern, str, "pattern", "say '2:4'")
        first, _, second = self.pattern.partition(":")
        if not (first.isdigit() and second.isdigit() and 0 < int(first) < int(second)):
            known = "'unstructured', 'channels' or 'n:m' with 0 < n < m"
            raise ValueError(f"pattern must be {known}, got {self.pattern!r}")
        return int(first), int(second)

    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        small = ~self.support(net, theta.detach())
        return 0.5 * (theta * small).square().sum()

    def support(
        self, net: Network, theta: Tensor, fraction: float | None = None, saliency: Tensor | None = None
    ) -> Tensor:
        """Which coordinates are kept, `(P,)`: ties at the threshold are broken by position.

        Args:
            net: the network.
            theta: the point, `(P,)`.
            fraction: on the way to the whole one; all of it by default.
            saliency: what a weight's loss would cost, `(P,)`; the magnitude by default.

        Raises:
            ValueError: rows of a layer do not divide into groups of m, or there is no saliency where the score needs
                one, or no fraction where the tolerance sets it.
        """
        share = self.fraction if fraction is None else fraction
        alone = self.pattern == CHANNELS or (saliency is None and self.score == "metric")
        if alone or not isinstance(share, (int, float)):
            raise ValueError(
                f"fraction={self.fraction!r}, pattern={self.pattern!r} and score={self.score!r} need a trace whose "
                "only objective is the sparsity; in a sum give a number, another pattern and score='magnitude'"
            )
        saliency = theta.abs() if saliency is None else saliency
        kept = torch.ones(len(theta), dtype=torch.bool, device=theta.device)
        competing = self._candidates(net.space, saliency)
        if self.scope == "global":
            competing = [torch.cat(competing)] if competing else []
        sizes = [int(prunable(net.space).sum())] if self.scope == "global" else _sizes(net.space)
        for places, size in zip(competing, sizes):
            count = round(share * size)
            kept[places[saliency[places].argsort(stable=True)[:count]]] = False
        return kept

    def _candidates(self, space: Space, saliency: Tensor) -> list[Tensor]:
        """The places of each layer's weights that may go."""
        stay, of = self._pattern()
        found, start = [], 0
        check_plain(space)
        for name, shape, size in zip(space.names, space.shapes, space.sizes):
            if name in space.weights:
                places = torch.arange(start, start + size, device=saliency.device)
                if of and name in space.transposed:
                    raise ValueError(
                        f"{name!r} is the weight of a transposed convolution, in which the weights of an output are no "
                        f"neighbours that {self.pattern} could count; leave it out with trainable="
                    )
                if of and size // shape[0] % of:
                    raise ValueError(
                        f"{name!r} has {size // shape[0]} weights for each output, which {self.pattern} does not "
                        "divide; leave it out with trainable="
                    )
                if of:
                    order = saliency[places].view(-1, of).argsort(dim=1, stable=True)[:, : of - stay]
                    places = places.view(-1, of).gather(1, order).flatten().sort().values
                found.append(places)
            start += size
        return found

    def project(self, net: Network, theta: Tensor) -> Tensor:
        """θ with its smallest weights set to zero."""
        return theta * self.support(net, theta)

    def reached(self, net: Network, theta: Tensor) -> bool:
        """Whether enough weights are exactly zero."""
        if self.fraction == "max":
            return False
        weights = prunable(net.space)
        total, gone = int(weights.sum()), int((theta[weights] == 0).sum())
        if self.pattern == CHANNELS:
            return gone >= self.fraction * total - 1
        sizes = _sizes(net.space) if self.scope == "layer" else [total]
        return gone >= sum(round(self.fraction * size) for size in sizes)  # as `support` counts them


def prunable(space: Space) -> Tensor:
    """The mask `(P,)` of the entries that count: parameters of two or more dimensions, see `Space.weights`."""
    return space.where(lambda name, shape: name in space.weights)


def sparsity(space: Space, theta: Tensor) -> float:
    """The fraction of prunable weights that are exactly zero."""
    weights = prunable(space)
    return float((theta[weights] == 0).double().mean()) if bool(weights.any()) else 0.0


def _sizes(space: Space) -> list[int]:
    return [size for name, size in zip(space.names, space.sizes) if name in space.weights]
