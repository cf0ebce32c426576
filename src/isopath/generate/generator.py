"""A manifold of networks: sampled, walked, joined, written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_count
from isopath.ensemble import Ensemble, Mean
from isopath.generate.hypernetwork import Hypernetwork
from isopath.generate.layout import Layout
from isopath.network import Network, Output
from isopath.objectives import Task
from isopath.path import Path, check_unit
from isopath.space import Space, Trainable
from isopath.storage import load_tensors, save_tensors
from isopath.symmetry import Symmetries
from isopath.symmetry.gauge import Gauge

FUNCTION = {"function": True}  # in the place of one in a file
SOFTMAX = "cross_entropy", torch.nn.functional.cross_entropy  # losses that see no common shift of all logits


@dataclass(frozen=True, eq=False)
class Generator:
    """Maps latent vectors to the weights of good and different networks of one architecture.

    Attributes:
        network: the architecture; what is not generated (frozen parameters, buffers) is as it was given.
        hypernetwork: from latents `(n, latent)` to points `(n, P)`.
        history: a row per step: step, objective, loss, spacing, gradient evaluations.
        status: how the training ended: `trained`, `stationary`, `diverged`, `running`.
        reason: that, as a sentence.
        mean: what of its networks an ensemble takes the mean of: `"probabilities"`, or without classes `"logits"`.
        output: what picks the outputs that they were trained on (see `Task`).
        dim: the axis of the classes.
    """

    network: Network
    hypernetwork: Hypernetwork
    history: list[dict[str, float]] = field(default_factory=list)
    status: str = "running"
    reason: str = ""
    mean: Mean = "probabilities"
    output: Output = None
    dim: int = -1

    def __call__(self, z: Tensor) -> Tensor:
        """Points `(n, P)` of latents `(n, latent)`; differentiable in z.

        Raises:
            ValueError: `z` has another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.hypernetwork.latent:
            raise ValueError(f"z has shape {tuple(z.shape)}, expected (n, {self.hypernetwork.latent})")
        return self.hypernetwork(z.to(self.hypernetwork.centre))

    def latents(self, count: int, seed: int = 0) -> Tensor:
        """Standard normal latents, `(count, latent)`; the first ones of a seed are the same for any count."""
        check_count(count, "count")
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(self.hypernetwork.latent, generator=generator, dtype=torch.float32) for _ in range(count)]
        return torch.stack(drawn).to(self.hypernetwork.centre)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Points of `count` networks, `(count, P)`, in one batch."""
        with torch.no_grad():
            return self(self.latents(count, seed))

    def model(self, z: Tensor) -> nn.Module:
        """A new module with the weights of one latent, `(latent,)`."""
        with torch.no_grad():
            return self.network.model(self(z.unsqueeze(0))[0])

    def models(self, count: int, seed: int = 0) -> list[nn.Module]:
        """New modules with sampled weights."""
        return [self.network.model(theta) for theta in self.sample(count, seed)]

    def ensemble(self, count: int, seed: int = 0, **options: Any) -> Ensemble:
        """Sampled networks as one module: their mean probabilities, of a regression their mean outputs.

        Args:
            count: how many, at least 1.
            seed: of the latents.
            options: of `Ensemble`.
        """
        return Ensemble(self.models(count, seed), **{**self.together, **options})

    @property
    def together(self) -> dict[str, Any]:
        """The options of `Ensemble` for what the networks were trained on."""
        return {"mean": self.mean, "output": self.output, "dim": self.dim}

    def path(self, a: Tensor, b: Tensor) -> LatentPath:
        """The networks between two latents, `(latent,)` each."""
        check_latents((a, b), self.hypernetwork.latent)
        with torch.no_grad():
            for z in (a, b):
                self(z.unsqueeze(0))
        return LatentPath(self, (a.to(self.hypernetwork.centre), b.to(self.hypernetwork.centre)))

    @property
    def size(self) -> int:
        """Numbers learned by the generator."""
        return self.hypernetwork.size

    def __repr__(self) -> str:
        p, h = self.network.space.dimension, self.hypernetwork
        return (
            f"Generator({self.status}: {h.latent} latents to {p:,} weights by {h.size:,} of its own, {h.size / p:.1f} "
            f"times as many; one linear map to all of them would have {h.naive_size:,})"
        )

    def save(self, path: str | FilePath) -> None:
        """Writes one safetensors file: the generator, and what of the module it does not make.

        Raises:
            OSError: it could not be written; what was there before is whole.
        """
        fixed = _fixed(self.network)
        own = {f"generator.{k}": v for k, v in self.hypernetwork.state_dict().items()}
        about = {
            "kind": "generator", "sizes": _sizes(self.hypernetwork), "status": self.status, "reason": self.reason,
            "history": self.history, "mean": self.mean, "output": _written(self.output), "dim": self.dim,
            "shapes": [[n, list(s)] for n, s in zip(self.network.space.names, self.network.space.shapes)],
        }  # fmt: skip
        save_tensors(FilePath(path), {**own, **{f"fixed.{k}": v for k, v in fixed.items()}}, about)

    @classmethod
    def load(
        cls, path: str | FilePath, model: nn.Module, trainable: Trainable = None, output: Output = None
    ) -> Generator:  # fmt: skip
        """Reads what `save` wrote.

        Args:
            path: of the file.
            model: a module of the same architecture; it is not modified, its weights do not matter.
            trainable: as for `generate`.
            output: what picks the outputs, where that was a function: no file holds one.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not whole.
            ValueError: it is no generator, or one for another module or precision, or a function is missing.
        """
        tensors, about = load_tensors(FilePath(path))
        if about.get("kind") != "generator":
            raise ValueError(f"{path} is no generator's file; give one that Generator.save wrote")
        network = Network(model, trainable)
        fixed = _part(tensors, "fixed.")
        written = [(name, tuple(shape)) for name, shape in about["shapes"]]
        _check_shapes(written, list(zip(network.space.names, map(tuple, network.space.shapes))), str(path))
        _check_shapes([(n, tuple(t.shape)) for n, t in fixed.items()],
                      [(n, tuple(t.shape)) for n, t in sorted(_fixed(network).items())], str(path))  # fmt: skip
        if about.get("output") == FUNCTION and output is None:
            raise ValueError(
                f"the networks of {path} were trained on outputs that a function picks, and no file holds one; pass "
                "output="
            )
        own = _part(tensors, "generator.")
        precisions = {t.dtype for t in own.values() if t.is_floating_point()}
        if precisions != {network.space.dtype}:
            raise ValueError(
                f"{path} makes weights of {', '.join(map(str, precisions))}, and the module's are "
                f"{network.space.dtype}; convert the module with .to(dtype), and what is generated after"
            )
        made = Hypernetwork(Layout.of(network.space), **about["sizes"], generator=torch.Generator().manual_seed(0))
        made = made.to(network.start)
        made.load_state_dict(own)
        module = network.model(network.start)
        places = _tensors(module)
        with torch.no_grad():
            for name, value in fixed.items():
                owner, _, last = name.rpartition(".")
                own_buffers = module.get_submodule(owner)._buffers
                if last in own_buffers:  # not written to: an expanded one shares its places
                    own_buffers[last] = value.to(places[name])
                else:
                    places[name].copy_(value)
        whole = Network(module, lambda name: name in network.space.names)
        picks = output if output is not None else _read(about.get("output"))
        dim = about.get("dim", -1)
        return cls(whole, made, about["history"], about["status"], about["reason"], about["mean"], picks, dim)


@dataclass(frozen=True, eq=False)
class LatentPath(Path):
    """The generated networks between two latents: a curve in weight space.

    Latents are normal, so their norms hardly differ: between them z(t) goes along the great circle, and its norm in a
    straight line, which stays where the generator was trained. Between opposite latents it is a straight line through
    zero.

    Args:
        generator: that makes the points.
        ends: the two latents, `(latent,)` each.
    """

    generator: Generator
    ends: tuple[Tensor, Tensor]

    def __call__(self, t: float) -> Tensor:
        with torch.no_grad():
            return self.generator(self.latent(t).unsqueeze(0))[0]

    def model(self, t: float, data: Any = None) -> nn.Module:
        """A new module with the weights at `t`.

        Args:
            t: in [0, 1].
            data: for `along` and `barrier`, which take curves too; there is nothing to estimate from it.

        Raises:
            ValueError: `t` lies outside [0, 1], or there are data.
        """
        if data is not None:
            raise ValueError(
                "generated networks run on the running statistics that they were trained with; leave data= out"
            )
        return self.generator.model(self.latent(t))

    def ensemble(self, count: int, **options: Any) -> Ensemble:
        """The networks at evenly spaced t, both ends included, as one.

        Args:
            count: how many, at least 2.
            options: of `Ensemble`.
        """
        models = [self.generator.network.model(theta) for theta in self.sample(count)]
        return Ensemble(models, **{**self.generator.together, **options})

    def latent(self, t: float) -> Tensor:
        """The latent at `t`, `(latent,)`."""
        t, (a, b) = check_unit(t), self.ends
        if t in (0, 1):
            return self.ends[int(t)].clone()
        norms = a.norm().clamp_min(1e-12), b.norm().clamp_min(1e-12)
        u, v = a / norms[0], b / norms[1]
        angle = torch.acos((u.double() @ v.double()).clamp(-1, 1)).to(a)
        if float(angle.sin()) < 1e-3:
            return a + t * (b - a)
        direction = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / angle.sin()
        return direction * ((1 - t) * norms[0] + t * norms[1])


def check_latents(given: Sequence[Any], latent: int) -> None:
    """Raises `ValueError` unless each is a tensor `(latent,)`."""
    for z in given:
        if not isinstance(z, Tensor) or z.shape != (latent,):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                f"a path joins two latents, tensors ({latent},) each, got {got}; generator.path(*generator.latents(2)) "
                "is one"
            )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sizes(made: Hypernetwork) -> dict[str, int]:
    first: nn.Linear = made.extractor[0]  # type: ignore[assignment]
    shared: nn.Linear = made.shared[0][0]  # type: ignore[index, assignment]
    return {"latent": made.latent, "code": made.code, "width": shared.out_features, "trunk": first.out_features}


def _fixed(network: Network) -> dict[str, Tensor]:
    """What a module has beside the points' tensors: frozen parameters and buffers, tied ones once.

    Buffers that are not persistent too: random features, say, are drawn anew by the module that a file is read into.
    """
    held = _tensors(network.model(network.start))
    return {name: tensor.detach() for name, tensor in held.items()
            if name not in network.space.names and tensor.layout == torch.strided}  # fmt: skip


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _written(output: Output) -> Any:
    """What picks outputs, as a file has it."""
    if isinstance(output, slice):
        return [output.start, output.stop, output.step]
    return FUNCTION if callable(output) else output


def _read(written: Any) -> Output:
    return slice(*written) if isinstance(written, list) else written


def _check_shapes(
    written: Sequence[tuple[str, tuple[int, ...]]], own: Sequence[tuple[str, tuple[int, ...]]], path: str
) -> None:
    if list(written) == list(own):
        return
    here, there = dict(own), dict(written)
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    said = "; ".join(f"{n!r}: {there.get(n, 'missing')} in the file, {here.get(n, 'missing')} here" for n in names[:3])
    what = f"{len(names)} tensors differ: {said}" if names else "its parameters come in another order"
    raise ValueError(
        f"{path} is a generator for another module: {what}; give the architecture and trainable= that it was made for"
    )


def gauge_of(model: nn.Module, task: Task, space: Space, symmetries: Symmetries | None) -> Gauge:
    """The gauge of a module whose outputs a task reads."""
    example: Any = task.examples.take(torch.arange(min(2, len(task))), space.device)[0]
    softmax = task.loss in SOFTMAX
    output = None if isinstance(task.outputs, slice) else task.outputs
    return Gauge.of(model, example, space, softmax, symmetries, output)


def classes_of(task: Task) -> int:
    """The axis of the classes: torch's own cross-entropy has them on the second, `(N, C, ...)`."""
    return 1 if task.loss is torch.nn.functional.cross_entropy else -1
