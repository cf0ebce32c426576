"""A task's inputs as a mixture of Gaussians, from which rows are drawn when the data are gone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from torch import Tensor

BLOCK = 256  # rows that are drawn together, from a seed of their own: row i is the same whatever else is drawn
ROUNDS = 25  # of k-means
LEAST = 10  # rows of a part: the mean of one is that row


@dataclass(frozen=True, eq=False)
class Sketch:
    """x = c + Vu + t∘ε with u ~ Σ_k π_k N(m_k, W_k W_kᵀ + diag(s_k²)) and ε ~ N(0, I).

    V holds the q leading principal directions of all rows and t what they leave of the variance of each entry. Within
    V it is a mixture of factor analysers (Ghahramani & Hinton 1996) without their EM: the rows of each label are parted
    by k-means, W_k holds the r leading principal directions of a part and s_k what those leave.

    No row is in it, but means of ten rows and more are, and of similar rows a mean says much.

    Attributes:
        centre: c, `(D,)`.
        basis: V, `(D, q)`.
        outside: t, `(D,)`.
        shares: π, `(K,)`.
        means: m, `(K, q)`.
        directions: W, `(K, q, r)`.
        rest: s, `(K, q)`.
        labels: of each part `(K,)`, or `None`.
        shape: of a row, with D entries.
        seed: of what is drawn.
    """

    centre: Tensor
    basis: Tensor
    outside: Tensor
    shares: Tensor
    means: Tensor
    directions: Tensor
    rest: Tensor
    labels: Tensor | None
    shape: tuple[int, ...]
    seed: int = 0

    @classmethod
    def of(cls, x: Tensor, y: Tensor | None = None, parts: int = 8, rank: int = 24, basis: int = 96,
           seed: int = 0) -> Sketch:  # fmt: skip
        """Fitted to rows.

        Args:
            x: `(N, ...)`, of floating point.
            y: labels `(N,)` of whole numbers, or `None`: all rows are then of one kind.
            parts: Gaussians of each label, at most one for ten of its rows.
            rank: r, at most q.
            basis: q, at most D.
            seed: of k-means, and of what is drawn.

        Raises:
            ValueError: no label has ten rows. Of labels that have fewer, none are drawn, with a warning.
        """
        rows = x.detach().cpu().reshape(len(x), -1)
        centre, scaled, outside = _moments(rows, min(basis, rows.shape[1]))
        length = scaled.norm(dim=0)
        seen = length > 1e-4 * length.max()  # fewer rows than entries, or entries of which some are very large
        unit = torch.where(seen, scaled / length.clamp_min(1e-30), 0)
        if not bool(seen.all()):
            spread = rows.double().var(0, correction=0) - scaled.double()[:, seen].square().sum(1)
            outside = spread.clamp_min(0).sqrt().to(outside)
        inside, found, labels = (rows - centre) @ unit, [], []
        kinds = [(0, inside)] if y is None else [(int(label), inside[y.cpu() == label]) for label in y.cpu().unique()]
        few = [label for label, own in kinds if len(own) < LEAST]
        if len(few) == len(kinds):
            raise ValueError(f"rows are drawn of at least {LEAST} rows of one label, got {len(rows)} rows in all")
        if few:
            warnings.warn(f"labels {few} have fewer than {LEAST} rows, which their mean would show: none are drawn of "
                          "them", stacklevel=4)  # fmt: skip
        for label, own in (kind for kind in kinds if len(kind[1]) >= LEAST):
            for part in _parted(own, min(parts, len(own) // LEAST), seed):
                share = torch.tensor(len(part) / len(rows), dtype=torch.float32)
                found.append((share, *_moments(part, min(rank, unit.shape[1]))))
                labels.append(label)
        shares, means, directions, rest = (torch.stack(column) for column in zip(*found))
        return cls(centre, unit, outside, shares, means, directions, rest,
                   None if y is None else torch.tensor(labels), tuple(x.shape[1:]), seed)  # fmt: skip

    def draw(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows `(n, ...)` of an endless sequence, by number, and their labels."""
        rows, part = torch.empty(len(index), len(self.centre), dtype=torch.float32), torch.empty_like(index)
        blocks = index // BLOCK
        for block in blocks.unique().tolist():
            drawn, parts = self._block(block)
            at = blocks == block
            rows[at], part[at] = drawn[index[at] % BLOCK], parts[index[at] % BLOCK]
        return rows.to(self.centre).reshape(-1, *self.shape), None if self.labels is None else self.labels[part]

    def _block(self, block: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + block) % 2**63)
        part = torch.multinomial(self.shares, BLOCK, replacement=True, generator=generator)
        along, beside, outside = (
            torch.randn(BLOCK, *shape, generator=generator, dtype=torch.float32)
            for shape in ((self.directions.shape[2], 1), (self.means.shape[1],), (len(self.centre),))
        )
        means, directions, rest = (t[part].float() for t in (self.means, self.directions, self.rest))
        inside = means + (directions @ along).squeeze(2) + beside * rest
        return self.centre.float() + inside @ self.basis.float().T + outside * self.outside.float(), part

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        return {name: t for name in TENSORS if (t := getattr(self, name)) is not None}

    @property
    def about(self) -> dict[str, Any]:
        """What a file says beside its tensors."""
        return {"shape": list(self.shape), "seed": self.seed}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Sketch:
        """From what `tensors` and `about` gave."""
        return cls(**{name: tensors.get(name) for name in TENSORS}, shape=tuple(about["shape"]), seed=about["seed"])  # type: ignore[arg-type]


TENSORS = ("centre", "basis", "outside", "shares", "means", "directions", "rest", "labels")


def _parted(rows: Tensor, parts: int, seed: int) -> list[Tensor]:
    """The rows in at most so many groups of near ones, none of them small; those of small ones go to the next."""
    if parts <= 1:
        return [rows]
    generator = np.random.default_rng(seed % 2**63)
    values = rows.double().numpy()
    starts = values[generator.choice(len(values), parts, replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a part without rows: there is one part less then
        centres, group = kmeans2(values, starts, iter=ROUNDS, minit="matrix", missing="warn")
    large = np.flatnonzero(np.bincount(group, minlength=parts) >= LEAST)
    if not len(large):
        return [rows]
    group = np.where(np.isin(group, large), group, large[cdist(values, centres[large]).argmin(1)])
    return [rows[torch.from_numpy(group == k)] for k in large]


def _moments(rows: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, leading directions scaled by their standard deviations, and the standard deviation that they leave."""
    values = rows.double()
    mean = values.mean(0)
    values = values - mean
    directions = values.new_zeros(values.shape[1], rank)
    # the smaller of the two Gram matrices has the spectrum; a ridge, for LAPACK fails on very many equal eigenvalues
    wide = len(values) < values.shape[1]
    gram = (values @ values.T if wide else values.T @ values) / len(values)
    ridge = 1e-10 * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    spectrum, vectors = torch.linalg.eigh(gram + ridge)
    count = min(rank, len(gram))
    spectrum, vectors = (t[..., len(gram) - count :].flip(-1) for t in (spectrum, vectors))
    if wide:  # vᵀX / √n has length √λ already
        directions[:, :count] = values.T @ vectors / len(values) ** 0.5
    else:
        directions[:, :count] = vectors * spectrum.clamp_min(0).sqrt()
    left = (values.square().mean(0) - directions.square().sum(1)).clamp_min(0).sqrt()
    return mean.to(rows), directions.to(rows), left.to(rows)
