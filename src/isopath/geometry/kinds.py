"""The representations of the metric, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.diagonal import Diagonal
from isopath.geometry.ekfac import ekfac
from isopath.geometry.exact import Exact
from isopath.geometry.gram import Gram
from isopath.geometry.identity import Identity
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.lowrank import LowRank
from isopath.geometry.metric import Metric
from isopath.geometry.preconditioned import Preconditioned
from isopath.network import Network

KINDS: dict[str, Callable[..., Metric]] = {
    "exact": Exact,
    "gram": Gram,
    "kronecker": Kronecker.of,
    "ekfac": ekfac,
    "low_rank": LowRank.of,
    "diagonal": Diagonal.of,
    "preconditioned": Preconditioned.of,
    "identity": Identity.of,
}

STREAMING = ("kronecker", "ekfac", "diagonal")  # built in one or two passes: their rows need not be held


def metric_of(kind: str, network: Network, theta: Tensor, batches: Iterable[Batch], **options: Any) -> Metric:
    """A representation of G by name.

    Args:
        kind: `"exact"`, `"gram"`, `"kronecker"`, `"ekfac"`, `"low_rank"`, `"diagonal"`, `"preconditioned"` or
            `"identity"`.
        network: the network.
        theta: the point, `(P,)`.
        batches: reference rows, weighted so that the sum over them is the mean.
        options: further arguments of that representation.

    Raises:
        ValueError: the name is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown metric {kind!r}; the kinds are {', '.join(KINDS)}")
    return KINDS[kind](network, theta, batches, **options)
