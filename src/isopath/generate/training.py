"""The training of a generator: accuracy against diversity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from isopath.generate.entropy import spacing, squares
from isopath.generate.family import Family
from isopath.generate.hypernetwork import Hypernetwork
from isopath.generate.settings import Settings
from isopath.objectives import Task
from isopath.randomness import seeded
from isopath.symmetry.gauge import Gauge

STATUSES = "running", "trained", "stationary", "diverged"
WARMUP = 100  # steps over which the rate rises
EVERY = 5  # steps between those that look for permuted copies: on a small network a match costs as much as the rest
CLIP = 1.0  # the largest norm of a gradient
SMOOTH = 0.02  # share of the newest loss in its moving mean


class Training:
    """Adam on the mean loss of generated networks minus the entropy of their weights.

    A step draws n latents and n batches, and goes down

        mean_i L(θ(z_i)) - w · mean_i log(ρ_i / ρ),

    where ρ_i is the distance of network i to the nearest of the others after rescaling, shift and permutation are taken
    out, and ρ = √units the norm of a network whose layers are brought to one size (Deutsch, Nijkamp & Yang 2019, arXiv
    1905.02898, equations 3 to 5, whose gauge leaves permutations in). The rate rises over the first steps and falls to
    zero along half a cosine.

    Iterating trains in place and gives a row per step; `state` and `restore` carry it over to another process.

    Args:
        hypernetwork: that is trained.
        family: evaluates its networks.
        gauge: takes out what makes no difference.
        task: the loss; its batch size is divided among the networks.
        settings: the rest.
    """

    def __init__(
        self, hypernetwork: Hypernetwork, family: Family, gauge: Gauge, task: Task, settings: Settings
    ) -> None:  # fmt: skip
        self.hypernetwork, self.family, self.gauge = hypernetwork, family, gauge
        self.task, self.settings = task, settings
        self.step, self.status = 0, "running"
        self._smooth, self._best = math.nan, (math.inf, 0)
        self._optimiser = torch.optim.Adam(hypernetwork.parameters(), settings.rate)

    def __iter__(self) -> Iterator[dict[str, float]]:
        while self.status == "running":
            # what a network draws by itself, dropout that stays on say, is the step's own too
            with torch.enable_grad(), seeded(self.hypernetwork.centre.device, self.settings.seed + self.step):
                row = self._stepped()
            yield row

    def latents(self, step: int) -> Tensor:
        """Of a step, `(n, latent)`: the same for the same seed."""
        # not the seeds of Generator.latents: what is looked at later was not trained on
        seed, shape = (self.settings.seed + 1) * 7_368_787 + step, (self.settings.networks, self.hypernetwork.latent)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        return drawn.to(self.hypernetwork.centre)

    def _stepped(self) -> dict[str, float]:
        settings, progress = self.settings, self.step / self.settings.steps
        for group in self._optimiser.param_groups:
            warm = min(1.0, (self.step + 1) / min(WARMUP, max(1, settings.steps // 10)))
            group["lr"] = settings.rate * warm * 0.5 * (1 + math.cos(math.pi * progress))
        thetas = self.hypernetwork(self.latents(self.step))
        loss, weight = self._loss(thetas), settings.weight(progress)
        spread = torch.zeros(())
        if settings.diversity:
            spread = self._spread(thetas, settings.permutations and self.step % EVERY == 0)
        total = loss - weight * spread
        judged = float((loss - settings.diversity * spread).detach())  # a weight that moves is no progress
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.hypernetwork.parameters(), CLIP))
        if math.isfinite(norm) and math.isfinite(float(total.detach())):
            self._optimiser.step()
        else:
            self.status = "diverged"
        row = {"step": self.step, "objective": float(total.detach()), "loss": float(loss.detach()),
               "spacing": float(spread.detach()), "evaluations": self.family.network.evaluations}  # fmt: skip
        self.step += 1
        self._judge(judged)
        return row

    def _loss(self, thetas: Tensor) -> Tensor:
        rows = self._rows()
        y, target = self.task.predict(self.family, thetas, rows)  # type: ignore[arg-type]
        value, weight = self.task.loss_of(y, target, rows)
        return value / max(weight, 1e-12)

    def _spread(self, thetas: Tensor, permuted: bool = True) -> Tensor:
        """The entropy's own part, of points in the gauge with all units of like weight, in units of their norm.

        Two networks are as far apart as they are, or as they are once both lie next to a third, whichever is less:
        copies with their units shuffled come to one point there, while of networks that differ in more a matching to a
        third takes nothing away.
        """
        layout = self.hypernetwork.layout
        points = layout.evened(self.gauge.fixed(thetas))
        near = squares(points)
        if permuted:
            near = torch.minimum(near, squares(self.gauge.aligned(points, points[0])))
        return spacing(near) - 0.5 * math.log(layout.units)

    def _rows(self) -> Tensor:
        """n · b rows of the task, epoch by epoch, b the batch size divided by n."""
        rows, n = self.task.freeze(self.step, self.settings.seed).index, self.settings.networks
        assert rows is not None
        return rows[: len(rows) // n * n] if len(rows) >= n else rows.repeat(n)

    def _judge(self, objective: float) -> None:
        """Whether it has ended: all steps done, nothing gained for long, or not finite."""
        if self.status != "running":
            return
        self._smooth = objective if self.step == 1 else (1 - SMOOTH) * self._smooth + SMOOTH * objective
        if self._smooth < self._best[0]:
            self._best = self._smooth, self.step
        patience = self.settings.patience
        if self.step >= self.settings.steps:
            self.status = "trained"
        elif patience is not None and self.step - self._best[1] >= patience:
            self.status = "stationary"

    @property
    def reason(self) -> str:
        """A sentence on how it ended."""
        s = self.settings
        return {
            "running": f"{self.step} of {s.steps} steps are done.",
            "trained": f"All {s.steps} steps are done.",
            "stationary": f"The objective has not fallen for {s.patience} steps; a larger patience= goes on.",
            "diverged": f"The loss was not finite at step {self.step - 1}; what was before it is kept. Lower rate=.",
        }[self.status]

    def state(self) -> dict[str, Tensor]:
        """What another process needs to go on."""
        found = {f"hypernetwork.{name}": t.clone() for name, t in self.hypernetwork.state_dict().items()}
        for k, moments in self._optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{k}.{name}": torch.as_tensor(value).clone() for name, value in moments.items()}
        ended = STATUSES.index(self.status)
        counts = [self.step, self.family.network.evaluations, self._smooth, *self._best, ended]
        return {**found, "counts": torch.tensor(counts, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to where `state` was taken."""
        own = {name.removeprefix("hypernetwork."): t for name, t in state.items() if name.startswith("hypernetwork.")}
        self.hypernetwork.load_state_dict(own)
        moments: dict[int, dict[str, Any]] = {}
        for name, tensor in state.items():
            if name.startswith("optimiser."):
                _, k, kind = name.split(".")
                moments.setdefault(int(k), {})[kind] = tensor
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": moments})
        step, evaluations, smooth, best, at, ended = state["counts"].tolist()
        self.step, self._smooth, self._best = int(step), smooth, (best, int(at))
        self.family.network.evaluations = evaluations
        self.status = STATUSES[int(ended)]
