"""A manifold of networks: sampled, walked, joined, written to a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from isopath.ensemble import Ensemble
from isopath.generate.hypernetwork import Hypernetwork
from isopath.generate.layout import Layout
from isopath.network import Network
from isopath.path import Path, check_unit
from isopath.space import Trainable
from isopath.storage import load_tensors, save_tensors

SIZES = ("latent", "code", "width", "trunk")


@dataclass(frozen=True, eq=False)
class LatentPath(Path):
    """The generated networks between two latents: a curve in weight space.

    Latents are normal, so their norms hardly differ: between them z(t) goes along the great circle, and its norm in a
    straight line, which stays where the generator was trained.

    Args:
        hypernetwork: that makes the points.
        ends: the two latents, `(latent,)` each.
    """

    hypernetwork: Hypernetwork
    ends: tuple[Tensor, Tensor]

    def __call__(self, t: float) -> Tensor:
        with torch.no_grad():
            return self.hypernetwork(self.latent(t).unsqueeze(0))[0]

    def latent(self, t: float) -> Tensor:
        """The latent at `t`, `(latent,)`."""
        t, (a, b) = check_unit(t), self.ends
        norms = a.norm().clamp_min(1e-12), b.norm().clamp_min(1e-12)
        u, v = a / norms[0], b / norms[1]
        angle = torch.acos((u @ v).clamp(-1, 1))
        if t in (0, 1) or float(angle.sin()) < 1e-4:
            return a + t * (b - a) if t not in (0, 1) else (a, b)[int(t)].clone()
        direction = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / angle.sin()
        return direction * ((1 - t) * norms[0] + t * norms[1])


@dataclass(frozen=True, eq=False)
class Generator:
    """Maps latent vectors to the weights of good and different networks of one architecture.

    Attributes:
        network: the architecture; what is not generated (frozen parameters, buffers) is as it was given.
        hypernetwork: from latents `(n, latent)` to points `(n, P)`.
        history: a row per step: step, objective, loss, spacing, gradient evaluations.
        status: how the training ended: `trained`, `stationary`, `diverged`, `running`.
        reason: that, as a sentence.
    """

    network: Network
    hypernetwork: Hypernetwork
    history: list[dict[str, float]] = field(default_factory=list)
    status: str = "running"
    reason: str = ""

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
        if count < 1:
            raise ValueError(f"count must be >= 1 networks, got {count}")
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(self.hypernetwork.latent, generator=generator) for _ in range(count)]
        return torch.stack(drawn).to(self.hypernetwork.centre)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Points of `count` networks, `(count, P)`, in one batch."""
        with torch.no_grad():
            return self(self.latents(count, seed))

    def model(self, z: Tensor) -> nn.Module:
        """A new module with the weights of one latent, `(latent,)`."""
        with torch.no_grad():
            return self.network.model(self(z.reshape(1, -1))[0])

    def models(self, count: int, seed: int = 0) -> list[nn.Module]:
        """New modules with sampled weights."""
        return [self.network.model(theta) for theta in self.sample(count, seed)]

    def ensemble(self, count: int, seed: int = 0, **options: Any) -> Ensemble:
        """Sampled networks as one module: their mean probabilities.

        Args:
            count: how many, at least 1.
            seed: of the latents.
            options: of `Ensemble`.
        """
        return Ensemble(self.models(count, seed), **options)

    def path(self, a: Tensor, b: Tensor) -> LatentPath:
        """The networks between two latents, `(latent,)` each."""
        self(torch.stack([a, b]))  # the shapes are checked there
        return LatentPath(self.hypernetwork, (a.to(self.hypernetwork.centre), b.to(self.hypernetwork.centre)))

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
        module = self.network.model(self.network.start)
        fixed = {k: v for k, v in module.state_dict().items() if k not in self.network.space.names}
        own = {f"generator.{k}": v for k, v in self.hypernetwork.state_dict().items()}
        about = {
            "kind": "generator", "sizes": _sizes(self.hypernetwork), "status": self.status, "reason": self.reason,
            "history": self.history,
            "shapes": [[n, list(s)] for n, s in zip(self.network.space.names, self.network.space.shapes)],
        }  # fmt: skip
        save_tensors(FilePath(path), {**own, **{f"fixed.{k}": v for k, v in fixed.items()}}, about)

    @classmethod
    def load(cls, path: str | FilePath, model: nn.Module, trainable: Trainable = None) -> Generator:
        """Reads what `save` wrote.

        Args:
            path: of the file.
            model: a module of the same architecture; it is not modified, its weights do not matter.
            trainable: as for `generate`.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not whole.
            ValueError: it is no generator, or one for another module.
        """
        tensors, about = load_tensors(FilePath(path))
        if about.get("kind") != "generator":
            raise ValueError(f"{path} is no generator's file; give one that Generator.save wrote")
        network = Network(model, trainable)
        _check_shapes({name: tuple(shape) for name, shape in about["shapes"]}, network, str(path))
        made = Hypernetwork(Layout.of(network.space), **about["sizes"], generator=torch.Generator().manual_seed(0))
        made.load_state_dict(_part(tensors, "generator."))
        module = network.model(network.start)
        module.load_state_dict(_part(tensors, "fixed."), strict=False)
        restored = Network(module, trainable)
        return cls(restored, made.to(restored.start), about["history"], about["status"], about["reason"])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sizes(made: Hypernetwork) -> dict[str, int]:
    first: nn.Linear = made.extractor[0]  # type: ignore[assignment]
    shared: nn.Linear = made.shared[0][0]  # type: ignore[index, assignment]
    return {"latent": made.latent, "code": made.code, "width": shared.out_features, "trunk": first.out_features}


def _check_shapes(written: Mapping[str, tuple[int, ...]], network: Network, path: str) -> None:
    own = dict(zip(network.space.names, map(tuple, network.space.shapes)))
    if written == own:
        return
    names = [name for name in {**own, **written} if own.get(name) != written.get(name)]
    said = "; ".join(f"{n!r}: {written.get(n, 'missing')} in the file, {own.get(n, 'missing')} here" for n in names[:3])
    raise ValueError(
        f"{path} is a generator for another module: {len(names)} parameters differ: {said or 'their order'}; give the "
        "architecture and trainable= that it was made for"
    )
