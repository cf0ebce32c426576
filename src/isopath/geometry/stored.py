"""Metrics that outlive the data they were built from: files, and sums over tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from isopath.arguments import check_kind
from isopath.geometry.curvature import Curvature
from isopath.geometry.diagonal import Diagonal
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.lowrank import LowRank
from isopath.network import Network
from isopath.space import Space, Trainable
from isopath.storage import load_tensors, save_tensors

Stored = Kronecker | Diagonal | LowRank


def save(metric: Stored, path: str | Path) -> None:
    """Writes a metric as safetensors, its parameters by name.

    Raises:
        TypeError: the metric is bound to rows, as an exact one is; it has nothing of its own to keep.
        ValueError: its factors are shrunk.
    """
    if isinstance(metric, LowRank):
        names = {name: list(shape) for name, shape in zip(metric.space.names, metric.space.shapes)}
        tensors = {"values": metric.values, "vectors": metric.vectors.contiguous()}
        about = {"low_rank": json.dumps(names)}
    elif isinstance(metric, (Kronecker, Diagonal)):
        tensors, said = Curvature.named(metric).tensors()
        about = {"curvature": said, "kind": type(metric).__name__}
    else:
        raise TypeError(
            f"{type(metric).__name__} needs its rows for every product; save a Kronecker, diagonal or low-rank metric"
        )
    save_tensors(Path(path), tensors, about)


def load(path: str | Path, model: nn.Module, trainable: Trainable = None) -> Stored:
    """Reads what `save` wrote, for a model with the same parameters.

    Raises:
        ValueError: the file holds no metric, or one of another network.
        DamagedFile: it is not whole.
    """
    tensors, about = load_tensors(Path(path))
    space = Network(model, trainable).space
    if "curvature" in about:
        found = Curvature.read(tensors, about["curvature"]).metric(space)
        whole = about.get("kind") == Diagonal.__name__
        return Diagonal(space, torch.cat([values for _, values in found.diagonal])) if whole else found
    if "low_rank" not in about:
        raise ValueError(f"{path} holds no metric")
    known = {name: tuple(shape) for name, shape in json.loads(about["low_rank"]).items()}
    own = {name: tuple(shape) for name, shape in zip(space.names, space.shapes)}
    if known != own:
        wrong = sorted(name for name in {*known, *own} if known.get(name) != own.get(name))
        raise ValueError(f"{path} is of another network: {wrong[0]!r} is {known.get(wrong[0])} in the file and "
                         f"{own.get(wrong[0])} in the model")  # fmt: skip
    values, vectors = (tensors[key].to(space.device, space.dtype) for key in ("values", "vectors"))
    return LowRank(space, values, vectors)


def merged(metrics: Sequence[Stored], weights: Sequence[float] | None = None, rank: int | None = None) -> Stored:
    """Σ w G as one metric of the same kind: old tasks with a smaller weight are forgotten in proportion.

    Kronecker factors are merged layer by layer (A into a mean, B into a sum), diagonals add, and of low-rank metrics
    the leading eigenpairs of the sum are kept, exactly so far as `rank` goes.

    Args:
        metrics: of one kind and one network.
        weights: >= 0; all ones by default.
        rank: of a low-rank sum; the largest of the terms' by default.

    Raises:
        TypeError: metrics that are bound to rows, which have no sum of their own.
        ValueError: no metrics, of different kinds or networks, shrunk ones, or weights that are not one >= 0 for each.
    """
    for metric in metrics:
        check_kind(metric, (Kronecker, Diagonal, LowRank), "each metric", "those bound to rows add as ip.Reference do")
    kinds, spaces = {type(metric) for metric in metrics}, [metric.space for metric in metrics]
    if len(kinds) != 1 or any(_parameters(space) != _parameters(spaces[0]) for space in spaces):
        said = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise ValueError(f"metrics to merge must be of one kind and one network, got {said}")
    weights = [1.0] * len(metrics) if weights is None else weights
    if len(weights) != len(metrics) or not all(w >= 0 for w in weights):
        raise ValueError(f"weights must be one number >= 0 for each of {len(metrics)} metrics, got {list(weights)}")
    if isinstance(metrics[0], LowRank):
        return _low_rank([m for m in metrics if isinstance(m, LowRank)], weights, rank)
    if isinstance(metrics[0], Diagonal):
        values = sum(w * m.values for w, m in zip(weights, metrics) if isinstance(m, Diagonal))
        return Diagonal(spaces[0], torch.as_tensor(values))
    terms = [Curvature.named(m) for m in metrics if isinstance(m, Kronecker)]
    return Curvature.merged(terms, weights).metric(spaces[0])


def _parameters(space: Space) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(shape)) for name, shape in zip(space.names, space.shapes)]


def _low_rank(metrics: Sequence[LowRank], weights: Sequence[float], rank: int | None) -> LowRank:
    """From the Gram matrix of all scaled eigenvectors side by side, `(Σk, Σk)`."""
    columns = torch.cat([m.vectors * (w * m.values).sqrt() for w, m in zip(weights, metrics)], 1)
    values, mixed = torch.linalg.eigh((columns.mT @ columns).double())
    values, mixed = values.flip(0), mixed.flip(1)
    count = min(rank or max(len(m.values) for m in metrics), int((values > 1e-10 * values[0]).sum()))
    values, mixed = values[:count], mixed[:, :count]
    vectors: Tensor = columns @ (mixed * values.rsqrt()).to(columns)
    return LowRank(metrics[0].space, values.to(columns), vectors)
