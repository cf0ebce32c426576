"""A curve through weight space between two networks, and the network at each of its points."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isopath.arguments import check_count, check_numbers
from isopath.connect.statistics import BatchNetwork, normalisations, reestimated
from isopath.connect.training import Sampling, Training
from isopath.ensemble import Ensemble
from isopath.network import Network
from isopath.objectives import Objective, as_objective
from isopath.path import Bezier, Path, PolyChain, Segment, check_unit
from isopath.space import Trainable
from isopath.storage import load_tensors, read_json, save_tensors, write_json
from isopath.symmetry import Permutation

Kind = Literal["bezier", "chain", "segment"]
KINDS: dict[str, Any] = {"bezier": Bezier, "chain": PolyChain, "segment": lambda points: Segment(*points)}


@dataclass(frozen=True, eq=False)
class Curve(Path):
    """A path between two networks, with what does not lie in weight space: their buffers.

    Attributes:
        path: the points.
        network: the first network.
        ends: buffers of both networks by name.
        history: step, t, objective and gradient evaluations of the training.
    """

    path: Path
    network: Network
    ends: tuple[dict[str, Tensor], dict[str, Tensor]]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def trainable(self) -> list[str]:
        """Names of the parameters that move."""
        return list(self.network.space.names)

    def __call__(self, t: float) -> Tensor:
        return self.path(t)

    def __repr__(self) -> str:
        spent = self.history[-1]["evaluations"] if self.history else 0
        return f"Curve({type(self.path).__name__}, length={self.length():.4g}, evaluations={spent:.0f})"

    def model(self, t: float, data: Any = None) -> nn.Module:
        """A new module with the weights at `t`.

        Args:
            t: in [0, 1].
            data: inputs on which running statistics are estimated anew; without it they lie between those of the ends.
        """
        module = self.at(self(check_unit(t)), t)
        ended = t in (0, 1)
        return module if data is None or ended else reestimated(module, data)

    def at(self, theta: Tensor, t: float) -> nn.Module:
        """A new module with the weights `theta` and the buffers of `t`."""
        module = self.network.model(theta)
        named = dict(module.named_buffers())
        with torch.no_grad():
            for name, a in self.ends[0].items():
                b = self.ends[1][name]
                named[name].copy_(torch.lerp(a, b, t) if a.is_floating_point() else (a if t < 0.5 else b))
        return module

    def ensemble(self, count: int, data: Any = None, **options: Any) -> Ensemble:
        """The networks at evenly spaced t, both ends included, as one: their mean probabilities.

        Points of a trained curve are good networks that differ (fast geometric ensembles, Garipov et al. 2018).

        Args:
            count: how many, at least 2.
            data: inputs on which running statistics are estimated anew; see `model`.
            options: of `Ensemble`.
        """
        check_count(count, "count")
        if count < 2:
            raise ValueError(f"an ensemble along a curve has both ends and so at least 2 networks, got {count}")
        return Ensemble([self.model(i / (count - 1), data) for i in range(count)], **options)

    def save(self, folder: str | FilePath) -> None:
        """Writes every control point, as a state dict in safetensors, and the kind of curve.

        Raises:
            FileExistsError: there is a curve in the folder already.
        """
        folder = FilePath(folder)
        if (folder / "curve.json").exists():
            raise FileExistsError(f"{folder} holds a curve already; give another folder")
        assert isinstance(self.path, (Bezier, PolyChain))
        kinds = {Segment: "segment", PolyChain: "chain", Bezier: "bezier"}
        last = len(self.path.points) - 1
        for k, point in enumerate(self.path.points):
            buffers = {0: self.ends[0], last: self.ends[1]}.get(k, {})
            tensors = {**self.network.space.unflatten(point), **buffers}
            save_tensors(folder / "points" / f"{k:03d}.safetensors", tensors)
        write_json(folder / "curve.json", {"kind": kinds[type(self.path)], "points": last + 1, "history": self.history})

    @classmethod
    def load(cls, folder: str | FilePath, model: nn.Module, trainable: Trainable = None) -> Curve:
        """Reads what `save` wrote.

        Args:
            folder: where it was saved.
            model: a module of the same architecture; its weights do not matter, but for those that did not move.
            trainable: as for `connect`.

        Raises:
            FileNotFoundError: there is no curve in the folder.
            ValueError: the points are of another model.
        """
        folder = FilePath(folder)
        about = read_json(folder / "curve.json")
        network, points, ends = Network(model, trainable), [], []
        buffers = {name for name, _ in model.named_buffers()}
        for k in range(about["points"]):
            tensors, _ = load_tensors(folder / "points" / f"{k:03d}.safetensors")
            ends.append({name: t for name, t in tensors.items() if name in buffers})
            points.append(network.space.flatten({n: t for n, t in tensors.items() if n not in buffers}))
        return cls(KINDS[about["kind"]](points), network, (ends[0], ends[-1]), about["history"])


def connect(
    model_a: nn.Module,
    model_b: nn.Module,
    objective: Objective | Any = None,
    curve: Kind = "bezier",
    bends: int = 1,
    steps: int = 1000,
    rate: float = 1e-3,
    sampling: Sampling = "uniform",
    permutation: Permutation | None = None,
    trainable: Trainable = None,
    seed: int = 0,
) -> Curve:
    """A curve of low loss between two networks (Garipov et al. 2018, arXiv 1802.10026).

    The ends stay as they are; the points between are trained by Adam, its rate going down in a straight line, on the
    objective at one random t per step: they minimise its mean over the curve. Normalisation layers use the statistics
    of each batch meanwhile. Align the networks first (`align`), or give the permutation.

    Args:
        model_a: the network at t = 0.
        model_b: the network at t = 1, of the same architecture; neither is modified.
        objective: what is to be low along the curve; not needed for a segment.
        curve: `"bezier"` of degree `bends + 1`, `"chain"` of straight pieces through `bends` points, or the straight
            `"segment"`.
        bends: points between the ends.
        steps: of training.
        rate: of Adam at first.
        sampling: t evenly in [0, 1], or evenly in arc length.
        permutation: of `model_b`, applied before.
        trainable: the parameters that move; the others must be equal in both networks.
        seed: of t and of the objective's batches.

    Raises:
        ValueError: the networks differ in a shape, an option is unknown, or there is no objective to train on.
    """
    check_numbers(bends=bends, steps=steps, rate=rate)
    if curve not in ("bezier", "chain", "segment"):
        raise ValueError(f"curve must be 'bezier', 'chain' or 'segment', got {curve!r}")
    if bends < 1 or steps < 0:
        raise ValueError(f"bends must be >= 1 and steps >= 0, got {bends} and {steps}")
    if sampling not in ("uniform", "arc"):
        raise ValueError(f"sampling must be 'uniform' or 'arc', got {sampling!r}")
    begun, training = begin(
        model_a, model_b, objective, curve, bends, steps, rate, sampling, permutation, trainable, seed
    )
    return begun if training is None else replace(begun, history=list(training))


def begin(
    model_a: nn.Module, model_b: nn.Module, objective: Objective | Any, curve: Kind, bends: int, steps: int,
    rate: float, sampling: Sampling, permutation: Permutation | None, trainable: Trainable, seed: int,
) -> tuple[Curve, Training | None]:  # fmt: skip
    """The curve as it starts, and what trains it, in place; see `connect` for the arguments."""
    if permutation is not None:
        model_b = permutation(model_b)
    network, other = BatchNetwork(model_a, trainable), Network(model_b, trainable)
    _same(network, other)
    _same_rest(network, model_a, model_b)
    ends = dict(model_a.named_buffers()), dict(model_b.named_buffers())
    kept = tuple({name: b.detach().clone() for name, b in buffers.items()} for buffers in ends)
    a, b = network.start, other.start
    plain = network if not normalisations(model_a) else Network(model_a, trainable)
    if curve == "segment":
        return Curve(Segment(a, b), plain, kept), None  # type: ignore[arg-type]
    if objective is None:
        raise ValueError("a curve is trained on an objective, as Task(x, y); without one there is only curve='segment'")
    points = [a, *(torch.lerp(a, b, k / (bends + 1)) for k in range(1, bends + 1)), b]
    made: Bezier | PolyChain = Bezier(points) if curve == "bezier" else PolyChain(points)
    training = Training(made, network, as_objective(objective), steps, rate, sampling, seed)
    return Curve(made, plain, kept), training  # type: ignore[arg-type]


def _same_rest(network: Network, model_a: nn.Module, model_b: nn.Module) -> None:
    """Raises `ValueError` where a parameter that does not move differs, or where 16 bits are too few to train in."""
    b, moving = dict(model_b.named_parameters()), set(network.space.names)
    rest = [name for name, p in model_a.named_parameters() if name not in moving and not torch.equal(p, b[name])]
    if rest:
        raise ValueError(
            f"{len(rest)} parameters that do not move differ in the two networks, {rest[0]!r} the first; a curve ends "
            "in the second network only if they are equal: select them with trainable=, or make them equal"
        )
    if network.space.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"the parameters are {network.space.dtype}, in which a curve cannot be trained; use .float()")


def _same(a: Network, b: Network) -> None:
    shapes = [dict(zip(n.space.names, n.space.shapes)) for n in (a, b)]
    if shapes[0] != shapes[1]:
        names = [n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n)]
        said = "; ".join(
            f"{n!r}: " + " and ".join(str(tuple(s[n])) if n in s else "missing" for s in shapes) for n in names[:3]
        )
        raise ValueError(f"only networks of the same shapes can be connected; {len(names)} differ: {said}")
