"""One fixed protocol for how robust a network, or an ensemble as a whole, is."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from isopath.attacks import PGD, Norm, Victim
from isopath.attacks.autoattack import CLASSES, INSTALL, installed
from isopath.attacks.ball import check_ball
from isopath.attacks.victim import labels_of
from isopath.ensemble import Ensemble
from isopath.network import Output
from isopath.randomness import seeded
from isopath.robustness.accuracy import Accuracy
from isopath.robustness.masking import signs
from isopath.robustness.result import Robustness
from isopath.robustness.trial import Trial


def robustness(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, surrogate: nn.Module | None = None, member: int = 0, *,
    norm: Norm = "linf", low: float | None = 0.0, high: float | None = 1.0, steps: int = 20, restarts: int = 5,
    autoattack: int | None = None, large: int = 32, batch_size: int = 256, output: Output = None, seed: int = 0,
    confidence: float = 0.95,
) -> Robustness:  # fmt: skip
    """How often a network, or an ensemble as a whole, is still right when every input may move by eps.

    The protocol is fixed, so that two figures compare: clean; PGD on one member and on a surrogate, judged on the
    whole, which is *transfer* and is called so; PGD on the whole as one differentiable module, never a vote, from
    several starts (Madry et al. 2018, arXiv 1706.06083); the official APGD-CE and APGD-T where `isopath[robust]` is
    installed (Croce & Hein 2020, arXiv 2003.01690; with three classes APGD-DLR in APGD-T's place, with two APGD-CE
    alone); and the worst of all for each row. What looks like masked gradients is said in words. Every accuracy under
    attack bounds the robust accuracy from above: a better attack may find more.

    Args:
        model: a classifier with outputs `(N, C)`, or an `Ensemble`; it runs in eval mode and is not modified.
        x: inputs `(N, ...)`, floating-point, on the model's device.
        y: labels `(N,)`.
        eps: radius of the ball, in units of the inputs.
        surrogate: a network from outside for the same inputs and classes.
        member: of an ensemble, the one that is attacked for the transfer.
        norm: `"linf"` or `"l2"`.
        low, high: range of valid inputs; `None` for no bound, with which AutoAttack is not run.
        steps: of PGD.
        restarts: random starts of PGD for each row, each of them judged.
        autoattack: how many rows, the first ones, AutoAttack is run on; all by default, 0 for none.
        large: rows for PGD at the largest radius.
        batch_size: rows in one pass.
        output: picks the output tensor from what a network returns (see `Network`); an ensemble has its own.
        seed: of all random starts. The same seed and batch size give the same digits.
        confidence: of the intervals.

    Raises:
        TypeError: the inputs are not floating-point, or the labels no integers.
        ValueError: a number is out of range, shapes do not fit, or there is no such member.

    >>> import isopath as ip
    >>> x, y = torch.full((8, 4), 0.5), torch.arange(8) % 2
    >>> ip.robustness(nn.Linear(4, 2), x, y, eps=0.1).clean
    Accuracy(50.0%, 4 of 8, 95%: 15.7% to 84.3%)
    """
    attack = PGD(eps, steps, None, restarts, norm, low, high)
    check_ball(attack, x)
    if min(large, batch_size) < 1 or not 0 < confidence < 1 or (autoattack is not None and autoattack < 0):
        raise ValueError(
            f"large and batch_size must be >= 1, autoattack >= 0 and confidence within (0, 1), got {large}, "
            f"{batch_size}, {autoattack} and {confidence}"
        )
    with seeded(x.device, seed):
        whole, sources = Victim(model, output), _sources(model, member, surrogate, output)
        found = [_labelled(victim, x, y) for victim in (whole, *sources.values())]
        classes, y = min(count for count, _ in found), found[0][1]
        trial = Trial(x.detach(), y, whole, attack, batch_size, seed)
        clean = trial.right()
        alive = {name: trial.survivors(victim, clean) for name, victim in {**sources, "white_box": whole}.items()}
        names, official = _official(attack, autoattack, classes)
        seen = len(x) if autoattack is None or not names else min(autoattack, len(x))
        doubts: tuple[str, ...] = ()
        if names:
            alive["autoattack"], doubts = trial.officially(names, clean[:seen])
        worst = torch.stack([rows[:seen] for rows in alive.values()]).all(0)
        large_eps, far = trial.far(clean, large)
        scores = {name: Accuracy.of(rows, confidence) for name, rows in {**alive, "worst": worst, "large": far}.items()}
        flat, broken = trial.without_gradient(clean)
        result = Robustness(
            clean=Accuracy.of(clean, confidence), member=scores.get("member"), surrogate=scores.get("surrogate"),
            white_box=scores["white_box"], autoattack=scores.get("autoattack"), worst=scores["worst"],
            large=scores["large"], flags=(), attack=attack, official=official, large_eps=large_eps,
            networks=whole.networks, source=member,
            evaluations=sum(victim.evaluations for victim in (whole, *sources.values())), seed=seed,
        )  # fmt: skip
        return replace(result, flags=signs(result, flat, broken) + doubts)


def _labelled(victim: Victim, x: Tensor, y: Tensor) -> tuple[int, Tensor]:
    """C and the labels, once labels, inputs and outputs are known to fit."""
    with torch.no_grad():
        outputs = victim(x[:2])  # not one row: of one there are no statistics of a batch
    return outputs.shape[1], labels_of(y, x, outputs)


def _sources(
    model: nn.Module, member: int, surrogate: nn.Module | None, output: Output
) -> dict[str, Victim]:  # fmt: skip
    """The networks that are attacked for a transfer; an ensemble of one network has no other."""
    sources = {}
    if isinstance(model, Ensemble) and len(model) > 1:
        if not 0 <= member < len(model):
            raise ValueError(f"member must be from 0 to {len(model) - 1}, the networks of the ensemble, got {member}")
        sources["member"] = Victim(model.models[member], model.output)
    if surrogate is not None:
        sources["surrogate"] = Victim(surrogate, output)
    return sources


def _official(attack: PGD, rows: int | None, classes: int) -> tuple[tuple[str, ...], str]:
    """The attacks of AutoAttack that are run, none where they cannot be, and either in words."""
    if rows == 0:
        return (), "not run: autoattack=0"
    if attack.low is None or attack.high is None:
        return (), "not run: it needs bounds, low= and high="
    if not installed():
        return (), f"not run: {INSTALL}"
    second = [name for name in ("apgd-t", "apgd-dlr") if CLASSES[name] <= classes]
    names = ("apgd-ce", *second[:1])
    return names, " + ".join(name.upper() for name in names)
