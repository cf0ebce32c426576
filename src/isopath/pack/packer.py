"""Tasks into a network, one after the other or all at once."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_module
from isopath.network import Output, pick
from isopath.network import _arguments as arguments_of
from isopath.objectives import Task
from isopath.pack.allocation import Pattern, drafted, fits
from isopath.pack.learner import Learner, MakeOptimizer, outputs_of
from isopath.pack.member import Member, joined
from isopath.pack.owners import FREE
from isopath.pack.packing import Packing, within
from isopath.pack.settings import Score, Settings, Share
from isopath.pack.thinning import thinned
from isopath.space import Space

EPOCHS, STEPS = 5, 500  # of a task, whichever is more, where none are given
DENSE, RAMP = 0.1, 0.6  # shares of the steps: until then all free weights learn, until then they go, then what is left
AGAIN = 0.3  # of the rate, where a task that has learned loses weights by "auto"
TOGETHER = {"magnitude": 0.3, "saliency": 0.2}  # of tasks that choose together: the steps before they choose


def pack(
    model: nn.Module,
    tasks: Mapping[str, Task],
    share: Share | None = None,
    *,
    parallel: bool = False,
    score: Score = "magnitude",
    reuse: bool = True,
    pattern: str = "unstructured",
    epochs: float | None = None,
    rate: float = 1e-3,
    optimizer: MakeOptimizer | None = None,
    tolerance: float = 0.005,
    trainable: Iterable[str] | str | None = None,
    seed: int = 0,
) -> Packing:
    """Teaches a network many tasks, each in a sub-network of its own: none ever changes what another does.

    In sequence a task learns in all the weights that are free; the smallest of them go, a few at a time, until its
    share of each layer is left, which it owns from then on (PackNet, Mallya & Lazebnik 2018, arXiv 1711.05769, with
    `reuse`; RSN2, Renn et al. 2022, arXiv 2207.08821, without). In parallel all tasks learn apart for a while and then
    choose at the same time, each weight going to the task that ranks it highest. Biases, normalisation and its
    statistics are copied for each task, and so are its stem and head.

    Args:
        model: any module with linear or convolution layers; it is not modified. Free weights start from its values.
            It learns in training mode; parts that are in eval mode while the model is not stay so (frozen statistics).
        tasks: by name, in order. A task's `stem` makes the module's inputs of the task's own, its `head` the outputs;
            both are copied and learn.
        share: of the weights of each layer that a task gets, a fifth by default, or a mapping with the share of each
            task; `"auto"`: as few as keep its accuracy, on a tenth of its rows that it does not learn from, within
            `tolerance` of what it was before any went, and no more than an equal part of what is free for each task
            that is still to come (in sequence only; it takes twice the steps).
        parallel: all at the same time; they do not read one another's weights.
        score: by which they rank weights then: `"magnitude"`, |w|, or `"saliency"`, Σ |w ∂L/∂w| over the first steps,
            which follows the inputs that are seen most: of words it keeps the frequent ones.
        reuse: whether a task reads, and never writes, the weights of the tasks before it.
        pattern: `"n:m"`: a task owns n of every m neighbouring weights of an output, and the share is n / m.
        epochs: over each task's rows, in batches of its `batch_size`; by default 5, or as many as make 500 steps.
        rate: of Adam; it rises over the first steps and falls to zero along half a cosine.
        optimizer: makes another for the parameters, `lambda parameters: SGD(parameters, 0.1)`; its rate likewise.
        tolerance: of `"auto"`, in accuracy from 0 to 1 (one row, where that is more), or the loss's share where a task
            has no accuracy.
        trainable: names or patterns of the parameters that tasks share out or own; the others are shared as they are.
        seed: of batches and of dropout. The same seed, model, stems and heads give the same bits.

    Raises:
        ValueError: no weights to share out, a share that does not fit (before anything is learned; the message says
            what is free), labels that leave the head, or an n:m that does not divide a layer's rows.
    """
    check_module(model, "what tasks are packed into", "give an nn.Module with linear or convolution layers")
    settings = settings_of(share, reuse, pattern, epochs, rate, optimizer, tolerance, trainable, seed, score)
    return packed(Packing.none(model, settings), tasks, settings, parallel)


def settings_of(
    share: Share | None, reuse: bool, pattern: str, epochs: float | None, rate: float,
    optimizer: MakeOptimizer | None,
    tolerance: float, trainable: Iterable[str] | str | None, seed: int, score: Score,
) -> Settings:  # fmt: skip
    """The arguments of `pack`, checked; a share that is not given is the pattern's, or a fifth."""
    given = Pattern(pattern).share
    share = share if share is not None else 0.2 if given is None else given
    return Settings(share, reuse, pattern, epochs, rate, tolerance, trainable, seed, optimizer, score)  # type: ignore[arg-type]


def packed(packing: Packing, tasks: Mapping[str, Task], settings: Settings, parallel: bool = False) -> Packing:
    """A packing with more tasks.

    Args:
        packing: to start from.
        tasks: that join.
        settings: of these tasks.
        parallel: whether they choose their weights at the same time.
    """
    return deque(each(packing, tasks, settings, parallel), maxlen=1).pop()  # those on the way need not be kept


def each(
    packing: Packing, tasks: Mapping[str, Task], settings: Settings, parallel: bool = False
) -> Iterator[Packing]:
    """The packings on the way, with a task more each; what cannot be is refused before anything is learned."""
    strange = not isinstance(tasks, Mapping) or [name for name, task in tasks.items() if not isinstance(task, Task)]
    if strange:
        raise TypeError(f"tasks must be a mapping {{name: ip.Task(x, y), ...}}, got {_kinds(tasks)}")
    if not tasks:
        raise ValueError("there is no task to pack; give {name: ip.Task(x, y), ...}")
    taken = [name for name in tasks if name in packing]
    if taken:
        raise ValueError(f"the name {taken[0]!r} is taken; the packing has {', '.join(map(repr, packing.tasks))}")
    pattern, auto = Pattern(settings.pattern), settings.share == "auto"
    if auto and parallel:
        raise ValueError("tasks that choose together need shares: give share= a number, or parallel=False")
    pattern.check(packing.table, Space.of(packing.model, settings.trainable).transposed)
    shares = _shares(settings.share, tasks)
    if auto:
        _some_free(packing, tasks)
    else:
        fits(packing.table, shares, pattern)
    packing = replace(packing, settings=settings)
    for name, task in tasks.items():
        _runs(packing, name, task)
    if parallel:
        yield from _together(packing, tasks, shares)
        return
    for k, (name, task) in enumerate(tasks.items()):
        # of what is free, as much is left for each task that is still to come
        share = packing.free / (len(tasks) - k) if auto else shares[name]
        packing = _next(packing, name, task, share)
        yield packing


def _shares(share: Share, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Of each task; none where they are found."""
    if share == "auto":
        return {}
    if not isinstance(share, Mapping):
        return dict.fromkeys(tasks, float(share))
    if set(share) != set(tasks):
        raise ValueError(f"share= names {', '.join(map(repr, share))}, and the tasks are {', '.join(map(repr, tasks))}")
    return {name: float(share[name]) for name in tasks}


def _kinds(tasks: Any) -> str:
    named = tasks.items() if isinstance(tasks, Mapping) else ()
    return ", ".join(f"{name!r}: a {type(task).__name__}" for name, task in named) or f"a {type(tasks).__name__}"


def _runs(packing: Packing, name: str, task: Task) -> None:
    """Raises where a task's rows do not go through its stem, the body and its head, or its labels leave the head."""
    if packing.settings.share == "auto" and len(task) < 2:
        raise ValueError(f"share='auto' judges by rows that are not learned, and {name!r} has one; give more")
    device, rows = next(iter(packing.values.values())).device, torch.arange(min(2, len(task)))
    stem, head = ((part and copy.deepcopy(part).to(device).eval()) for part in (task.stem, task.head))
    inputs, target = task.examples.take(rows, device)
    through: Any = inputs
    parts = {"its stem": stem, "the body": copy.deepcopy(packing.model).eval(), "its head": head}
    for what, part in parts.items():
        args, kwargs = arguments_of(through)
        try:
            with torch.no_grad():
                through = through if part is None else part(*args, **kwargs)
                through = pick(through, _picked(task)) if part is not None and what == "the body" and head else through
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"two rows of {name!r} do not go through {what}: {error}") from error
    y = outputs_of(task, through)
    _labelled(name, task, y, target)
    try:
        task.loss_of(y, target, rows)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        said = f"outputs {tuple(y.shape)}, targets {tuple(target.shape)} {target.dtype}"
        raise ValueError(f"the loss of {name!r} cannot be computed from {said}: {error}") from error


def _picked(task: Task) -> Output:
    """What a head is given of the body's outputs."""
    return None if isinstance(task.outputs, slice) or task.head is None else task.outputs


def _labelled(name: str, task: Task, y: Tensor, target: Tensor) -> None:
    """Raises where labels leave the head."""
    if task.loss != "cross_entropy" or target.is_floating_point():
        return
    labels = torch.as_tensor(task.y) if task.y is not None else target
    labels = labels[labels != -100]
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < y.shape[-1]):
        raise ValueError(
            f"the labels of {name!r} run from {int(labels.min())} to {int(labels.max())}, and its outputs are "
            f"{y.shape[-1]}; give it a head= with as many, or number the labels from 0"
        )


@dataclass(frozen=True, eq=False)
class _Place:
    """A task that is about to learn: its module, and what it may write."""

    name: str
    owner: int
    reads: tuple[int, ...]
    module: nn.Module
    learner: Learner
    began: float


def _place(packing: Packing, name: str, task: Task, owner: int, reads: tuple[int, ...],
           rows: Tensor | None = None) -> _Place:  # fmt: skip
    settings, table = packing.settings, packing.table
    body = packing.body(within(packing.values, table.of(FREE, *reads)), {})
    _only(body, settings)
    module = joined(body, task.stem, task.head, _picked(task)).to(next(iter(packing.values.values())).device)
    if not packing.model.training:  # else parts that the caller holds in eval mode stay so
        module.train()
    named = dict(body.named_parameters())
    count = len(task) if rows is None else len(rows)
    per = max(1, count // min(task.batch_size, count))
    steps = max(STEPS, EPOCHS * per) if settings.epochs is None else max(1, round(settings.epochs * per))
    learner = Learner(module, {n: named[n] for n in packing.values}, table.of(FREE), task, steps, settings.optimized,
                      settings.seed * 1009 + owner, rows)  # fmt: skip
    return _Place(name, owner, reads, module, learner, time.perf_counter())


def _only(body: nn.Module, settings: Settings) -> None:
    """The parameters that are not chosen do not learn."""
    chosen = set(Space.of(body, settings.trainable).names)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name in chosen)


def _numbers(packing: Packing) -> tuple[int, tuple[int, ...]]:
    """Of the next task, and of those that it reads."""
    taken = tuple(member.owner for member in packing.members.values())
    return max(taken, default=FREE) + 1, taken if packing.settings.reuse else ()


def _next(packing: Packing, name: str, task: Task, share: float) -> Packing:
    """One task, in all that is free at first and in its share, or by "auto" at most that, at the end."""
    settings, pattern = packing.settings, Pattern(packing.settings.pattern)
    owner, reads = _numbers(packing)
    if settings.share == "auto":
        learned, held = _split(task, settings.seed)
        place = _place(packing, name, task, owner, reads, learned)
        place.learner.to(place.learner.steps)
        again = replace(place, learner=place.learner.again(AGAIN))
        about = thinned(again.learner, task, held, settings.tolerance, share)
        return _claimed(packing, again, task, about)
    place = _place(packing, name, task, owner, reads)
    learner, total = place.learner, place.learner.steps
    learner.shrink(round(DENSE * total), max(1, round(RAMP * total)), share, pattern)
    learner.to(total)
    return _claimed(packing, place, task, {})


def _some_free(packing: Packing, tasks: Iterable[str]) -> None:
    """Raises where tasks that come one after the other would leave one of them no weight in some layer."""
    names = list(tasks)
    for layer, free in packing.table.of(FREE).items():
        left = int(free.sum())
        if not left:
            raise ValueError(
                f"no weight of {layer!r} is free for {names[0]!r} ({packing.free:.1%} of all weights are); give the "
                "tasks before it less, or pack a wider network"
            )
        if left < len(names):
            raise ValueError(
                f"{left} of {free.numel()} weights of {layer!r} are free for {len(names)} tasks, each of which needs "
                "one; pack fewer, or a wider network, or leave the layer out with trainable="
            )


def _together(packing: Packing, tasks: Mapping[str, Task], shares: Mapping[str, float]) -> Iterator[Packing]:
    """Tasks that choose their weights at the same time."""
    pattern = Pattern(packing.settings.pattern)
    first, reads = _numbers(packing)
    free = packing.table.of(FREE)
    places = [_place(packing, name, task, first + k, reads) for k, (name, task) in enumerate(tasks.items())]
    by = packing.settings.score
    for place in places:
        place.learner.to(max(1, round(TOGETHER[by] * place.learner.steps)), scored=by == "saliency")
    scores = [place.learner.scores if by == "saliency" else place.learner.magnitudes for place in places]
    masks = drafted(scores, free, list(shares.values()), pattern)
    for place, mask, task in zip(places, masks, tasks.values()):
        learner = place.learner
        learner.shrink(learner.step, max(learner.step, round(RAMP * learner.steps)), shares[place.name], pattern, mask)
        learner.cut(mask)
        learner.to(learner.steps)
        packing = _claimed(packing, place, task, {})
        yield packing


def _claimed(packing: Packing, place: _Place, task: Task, about: Mapping[str, Any]) -> Packing:
    """The packing in which a task owns the weights that it has learned in."""
    learner, table = place.learner, packing.table.claimed(place.learner.live, place.owner)
    values = {name: torch.where(learner.live[name], learner.weights[name].detach(), value)
              for name, value in packing.values.items()}  # fmt: skip
    wrapped = task.stem is not None or task.head is not None
    body: nn.Module = place.module.body if wrapped else place.module  # type: ignore[assignment]
    before = dict(packing.model.named_buffers())
    chosen = set(Space.of(packing.model, packing.settings.trainable).names) - set(values)
    after = {**{n: p for n, p in body.named_parameters() if n in chosen},
             **{n: b for n, b in body.named_buffers() if n not in before or not torch.equal(b, before[n])}}  # fmt: skip
    own = {name: tensor.detach().clone() for name, tensor in after.items()}
    place.module.zero_grad(set_to_none=True)
    stem, head = ((place.module.stem, place.module.head) if wrapped else (None, None))
    share = sum(int(mask.sum()) for mask in learner.live.values()) / table.size
    seconds = round(time.perf_counter() - place.began, 3)
    told = {"steps": learner.step, "loss": learner.loss, "seconds": seconds, **about}
    member = Member(place.owner, place.reads, share, own, stem, head, _picked(task), told)  # type: ignore[arg-type]
    return replace(packing, values=values, table=table, members={**packing.members, place.name: member})


def _split(task: Task, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows to judge by, a tenth of them."""
    order = torch.randperm(len(task), generator=torch.Generator().manual_seed(seed))
    held = max(1, len(task) // 10)
    return order[held:], order[:held]
