"""The verb: a generator for a module and a task."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from rich.progress import track
from torch import nn

from isopath.arguments import check_count, check_module
from isopath.ensemble import Mean
from isopath.generate.family import CHUNK, Family
from isopath.generate.generator import SOFTMAX, Generator, classes_of, gauge_of
from isopath.generate.hypernetwork import Hypernetwork
from isopath.generate.layout import Layout
from isopath.generate.settings import Schedule, Settings, Start
from isopath.generate.training import Training
from isopath.network import Network, copied
from isopath.objectives import Robust, Task
from isopath.randomness import seeded
from isopath.space import Trainable
from isopath.symmetry import Symmetries

LARGE = 10_000_000  # numbers of a generator that are worth a warning


def generate(
    model: nn.Module,
    task: Task,
    diversity: float = 0.5,
    steps: int = 2000,
    seed: int = 0,
    *,
    start: Start = "nothing",
    schedule: Schedule = "constant",
    latent: int = 64,
    code: int = 16,
    width: int = 128,
    trunk: int = 256,
    networks: int = 8,
    rate: float = 1e-3,
    patience: int | None = None,
    permutations: bool = True,
    trainable: Trainable = None,
    symmetries: Symmetries | None = None,
    chunk: int = CHUNK,
    progress: bool = False,
) -> Generator:
    """Trains a network that makes weights for another: latents in, good and different networks out.

    The loss is that of the task minus the entropy of the weights, estimated by nearest neighbours after what makes no
    difference is taken out: rescaled ReLU units, a shift of all logits, permuted units (Deutsch, Nijkamp & Yang 2019,
    arXiv 1905.02898; the last is not in the paper). Batch norm runs on the running statistics that the module has.

    Args:
        model: any module; it is not modified. With `start="nothing"` its weights are not read, but for scales and
            shifts of normalisations, around which theirs lie.
        task: what every network is to be good at. Its batch size is divided among the networks of a step.
        diversity: weight of the entropy in the loss: how much loss may be paid for networks that lie farther apart.
        steps: of Adam.
        seed: of the first weights, the latents and the batches. The same seed gives the same bits.
        start: `"model"` begins around the module's own weights, a trained network; `"nothing"` around none.
        schedule: of `diversity` over the steps: `"constant"`, `"falling"` (to zero, along half a cosine), `"rising"`
            (from zero to its full weight half-way), or a function from the share of steps done to a factor.
        latent: entries of a latent vector; the manifold has at most so many dimensions.
        code: entries of the code that a unit's weights are made from.
        width: of the hidden layer of the generator that the units of a layer share.
        trunk: of the hidden layer of the extractor, from latents to codes.
        networks: in a step, among which distances are taken.
        rate: of Adam, at its highest.
        patience: steps without a fall of the smoothed objective after which it stops; none by default.
        permutations: whether permutations are taken out.
        trainable: the parameters that are made, by name, glob pattern or predicate; the others stay as they are.
        symmetries: which units may be permuted and rescaled; found by default.
        chunk: networks in one `vmap`; a GPU takes all of them.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: an argument is wrong; the message says what was expected.
    """
    settings = Settings(
        diversity=diversity, schedule=schedule, start=start, latent=latent, code=code, width=width, trunk=trunk,
        steps=steps, networks=networks, rate=rate, patience=patience, permutations=permutations, seed=seed,
    )  # fmt: skip
    training = training_of(model, task, settings, trainable, symmetries, chunk)
    history = list(track(training, "generating", steps, transient=True, disable=not progress))
    return finished(training, history)


def training_of(
    model: nn.Module, task: Task, settings: Settings, trainable: Trainable = None,
    symmetries: Symmetries | None = None, chunk: int = CHUNK,
) -> Training:  # fmt: skip
    """The training that `generate` runs, to be driven step by step."""
    check_task(task)
    check_module(model, "what networks are generated for")
    check_count(chunk, "chunk")
    network = Network(copied(model), trainable)  # the caller may go on with the frozen parameters
    if network.space.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the weights are {network.space.dtype}, in which distances of networks are lost to rounding; give the "
            "module as .float(), and convert what it generates"
        )
    with seeded(network.space.device, settings.seed):
        gauge = gauge_of(model, task, network.space, symmetries)
    random, around = torch.Generator().manual_seed(settings.seed), network.start if settings.start == "model" else None
    made = Hypernetwork(
        Layout.of(network.space), settings.latent, settings.code, settings.width, settings.trunk, random, around,
        network.start,
    ).to(network.start)  # fmt: skip
    if made.size > max(LARGE, 20 * network.space.dimension):
        warnings.warn(
            f"the generator learns {made.size:,} numbers for {network.space.dimension:,} weights; leave layers of many "
            "small units, such as embeddings, out with trainable=, or lower code= and trunk=", stacklevel=3,
        )  # fmt: skip
    return Training(made, Family(network, chunk, apart=True), gauge, task, settings)


def finished(training: Training, history: list[dict[str, float]]) -> Generator:
    """The generator of a training, as it stands."""
    mean: Mean = "probabilities" if training.task.loss in SOFTMAX else "logits"
    made, task = training.hypernetwork, training.task
    return Generator(
        training.family.network, made, history, training.status, training.reason, mean, task.outputs, classes_of(task)
    )


def check_task(task: Any) -> None:
    """Raises `TypeError` or `ValueError` unless a generator can be trained on it."""
    if not isinstance(task, Task) or isinstance(task, Robust):
        raise TypeError(f"a generator is trained on a Task, got {type(task).__name__}")
    if task.stem is not None or task.head is not None:
        raise ValueError("a task's stem and head are learned where tasks are packed; build them into the model")
