"""Many tasks in one network: who owns which weight, what each owns besides, and a module for each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isopath.network import copied
from isopath.objectives import Task
from isopath.pack.allocation import Pattern
from isopath.pack.member import Member, described, digest, joined, rebuilt
from isopath.pack.owners import FREE, Owners
from isopath.pack.settings import Settings, Share
from isopath.space import Space
from isopath.storage import DamagedFile, load_tensors, save_tensors
from isopath.symmetry import compact

KIND = "packing"
OWN = {"reuse", "pattern", "epochs", "rate", "optimizer", "tolerance", "seed"}  # of a task that joins


@dataclass(frozen=True, eq=False, repr=False)
class Packing:
    """Tasks in one network, each in weights that are its own.

    `packing[name]` is a new module with the task's sub-network; `add` gives a packing with one task more, in which the
    others' outputs are the same to the bit.

    Args:
        model: the body, whose frozen parameters all tasks share.
        values: of every weight, by name: its owner's, or where it is free the value that a task starts from.
        table: who owns it.
        members: by the task's name, in the order in which they came.
        settings: that `add` repeats.
    """

    model: nn.Module
    values: Mapping[str, Tensor]
    table: Owners
    members: Mapping[str, Member]
    settings: Settings

    @classmethod
    def none(cls, model: nn.Module, settings: Settings) -> Packing:
        """No task yet: every weight of a copy of the model is free.

        Raises:
            ValueError: it has no weights to share out.
        """
        table, body = Owners.none(model, settings.trainable), copied(model)
        named = dict(body.named_parameters())
        return cls(body, {name: named[name].detach().clone() for name in table.table}, table, {}, settings)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names, in the order in which they came."""
        return tuple(self.members)

    @property
    def owners(self) -> dict[str, Tensor]:
        """By parameter name, int16: 0 where a weight is free, k where it belongs to `tasks[k - 1]`."""
        return {name: owners.clone() for name, owners in self.table.table.items()}

    @property
    def free(self) -> float:
        """The fraction of all weights that no task owns."""
        return self.table.free

    @property
    def used(self) -> dict[str, float]:
        """The fraction of all weights that each task owns; with what is free they sum to 1."""
        return {name: sum(self.table.counts(member.owner).values()) / self.table.size
                for name, member in self.members.items()}  # fmt: skip

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __getitem__(self, name: str) -> nn.Module:
        """A new module with the weights that a task owns or reads, zero elsewhere, in eval mode.

        It is the body's own class, or, where the task has a stem or a head, those around it. What becomes of it does
        not change the packing.
        """
        member = self._member(name)
        readable = self.table.of(member.owner, *member.reads)
        body = self.body(within(self.values, readable), member.own)
        return joined(body, member.stem, member.head, member.output).eval()

    def body(self, values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the model with these weights and these parameters and buffers of a task's own."""
        body = copy.deepcopy(self.model)
        _filled(body, {**values, **own})
        return body

    def extract(self, name: str, example: Any) -> nn.Module:
        """A module of a task's own, which needs the packing no more, without the units that it has no weight for.

        Only small shares leave whole units without a weight; `save_weights` stores the rest without its zeros. With a
        stem or a head its layers are those of `packing[name]`, whose parts are `stem`, `body` and `head`.

        Args:
            name: of the task.
            example: a few of its inputs (see `compact`).
        """
        return compact(self[name], example)

    def add(self, name: str, task: Task, share: Share | None = None, **settings: Any) -> Packing:
        """A packing with one task more, in weights that were free; what the others own is as it was, to the bit.

        Args:
            name: of the task.
            task: what it learns, perhaps with a stem and a head.
            share: of the weights of each layer, or `"auto"`; the packing's by default, where it has one for all.
            settings: of this task alone: `reuse`, `pattern`, `epochs`, `rate`, `optimizer`, `tolerance`, `seed`; the
                packing's by default (a packing from a file has no optimiser of your own).

        Raises:
            ValueError: the name is taken, or too little is free.
            TypeError: there is no such setting.
        """
        from isopath.pack.packer import packed  # who makes packings reads this file

        strange = sorted(set(settings) - OWN)
        if strange:
            raise TypeError(f"add takes no {strange[0]}=; the settings of a task are {', '.join(sorted(OWN))}")
        if share is None and "pattern" in settings:
            share = Pattern(settings["pattern"]).share
        if share is None and isinstance(self.settings.share, Mapping):
            names = ", ".join(map(repr, self.settings.share))
            raise ValueError(f"the packing's shares are those of {names}; say that of {name!r} with share=")
        if share is not None:
            settings["share"] = share
        return replace(packed(self, {name: task}, replace(self.settings, **settings)), settings=self.settings)

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise KeyError(f"no task {name!r} in this packing; it has {', '.join(map(repr, self.members)) or 'none'}")
        return self.members[name]

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each task: what was free after it, its steps, last loss and seconds, and what "auto" measured."""
        used, rows = list(self.used.values()), []
        for k, (name, member) in enumerate(self.members.items(), start=1):
            rows.append({"task": name, "free": 1 - sum(used[:k]), **member.about})
        return rows

    def __repr__(self) -> str:
        size = self.table.size
        tasks = "1 task" if len(self) == 1 else f"{len(self)} tasks"
        lines = [f"{tasks} in {size:,} weights of a {type(self.model).__name__}, {self.free:.1%} free"]
        names = dict(zip((m.owner for m in self.members.values()), self.members))
        for name, member in self.members.items():
            count = sum(self.table.counts(member.owner).values())
            reads = ", ".join(names[k] for k in member.reads)
            said = f"  {name}: {count:,} weights ({count / size:.1%}), loss {member.about['loss']:.3g} at the end"
            lines.append(said + (f", reads {reads}" if reads else ""))
        return "\n".join(lines)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all.

        Raises:
            OSError: it could not be written; what was there before is whole.
            ValueError: a task picks its outputs by a function.
        """
        tensors = {f"values/{name}": value for name, value in self.values.items()}
        tensors |= {f"owners/{name}": owners for name, owners in self.table.table.items()}
        tensors |= {f"start/{name}": value for name, value in _rest(self.model, self.settings).items()}
        listed = []
        for name, m in self.members.items():
            if callable(m.output):
                raise ValueError(f"{name!r} picks its outputs by a function, which no file holds; give a key instead")
            tensors |= {f"tasks/{m.owner}/own/{key}": value for key, value in m.own.items()}
            for part, module in (("stem", m.stem), ("head", m.head)):
                state = {} if module is None else module.state_dict()
                tensors |= {f"tasks/{m.owner}/{part}/{key}": value for key, value in state.items()}
            listed.append({
                "name": name, "owner": m.owner, "reads": list(m.reads), "share": m.share, "about": dict(m.about),
                "counts": self.table.counts(m.owner), "stem": described(m.stem), "head": described(m.head),
                "output": m.output,
            })  # fmt: skip
        about = {"kind": KIND, "tasks": listed, "settings": self.settings.saved(), "frozen": self._frozen()}
        save_tensors(Path(path), tensors, about)

    @classmethod
    def load(
        cls, path: str | Path, model: nn.Module, stems: Mapping[str, nn.Module] | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> Packing:  # fmt: skip
        """A packing from its file.

        Args:
            path: the file.
            model: of the same architecture, dtype and memory layout, with the same frozen parameters; its other values
                do not matter. Names, shapes and dtypes are checked, what it computes is not. It is not modified.
            stems: of tasks that have one which is not a plain linear layer, equal in class, by task.
            heads: likewise.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not whole, or its owners are not those that it says.
            ValueError: it does not fit the model, or a stem or head is missing.
        """
        tensors, about = load_tensors(Path(path))
        if about.get("kind") != KIND:
            raise ValueError(f"{path} is no packing but {about.get('kind', 'another safetensors file')!r}")
        values = _part(tensors, "values/")
        table = Owners(_part(tensors, "owners/"))
        settings, model = Settings(**about["settings"]), copied(model)
        names = [entry["name"] for entry in about["tasks"]]
        unknown = [name for name in {**(stems or {}), **(heads or {})} if name not in names]
        if unknown:
            raise ValueError(f"stems= or heads= name {unknown[0]!r}, which is none of the file's: {', '.join(names)}")
        start = _part(tensors, "start/")
        _fitting(path, values, table, start, model, settings)
        _filled(model, start)
        device = next(model.parameters()).device
        table = Owners({name: owners.to(device) for name, owners in table.table.items()})
        values = {name: value.to(device) for name, value in values.items()}
        _owned(path, table, about["tasks"])
        members = {}
        for entry in about["tasks"]:
            name, at = entry["name"], f"tasks/{entry['owner']}/"
            parts: list[nn.Module | None] = []
            for part, given in (("stem", stems), ("head", heads)):
                what = f"{part} of {name!r}"
                module = rebuilt(entry[part], _part(tensors, f"{at}{part}/"), (given or {}).get(name), what)
                parts.append(module if module is None else module.to(device))
            own = {key: value.to(device) for key, value in _part(tensors, f"{at}own/").items()}
            lacking = sorted(set(_chosen(model, settings)) - set(own) - set(values))
            if lacking:
                raise DamagedFile(f"{path}: {name!r} has no {lacking[0]!r} of its own")
            stem, head = parts
            members[name] = Member(entry["owner"], tuple(entry["reads"]), entry["share"], own, stem, head,
                                   entry["output"], entry["about"])  # fmt: skip
        found = cls(model, values, table, members, settings)
        if found._frozen() != about["frozen"]:
            raise ValueError(
                f"the frozen parameters of the {type(model).__name__} are not those that {path} was packed with; load "
                "the same pretrained weights first"
            )
        return found

    def _frozen(self) -> str:
        """A hash of the parameters that no task owns."""
        named = {name for name, _ in self.model.named_parameters()}
        return digest(self.model, named - set(_chosen(self.model, self.settings)))


def within(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values at the masks, zero elsewhere, whatever they are there."""
    return {name: torch.where(masks[name], value, torch.zeros_like(value)) for name, value in values.items()}


def _chosen(model: nn.Module, settings: Settings) -> tuple[str, ...]:
    """The parameters that tasks share out or own."""
    return Space.of(model, settings.trainable).names


def _rest(model: nn.Module, settings: Settings) -> dict[str, Tensor]:
    """What a task starts from beside the weights: the other chosen parameters, and all buffers."""
    wide, chosen = set(Owners.none(model, settings.trainable).table), _chosen(model, settings)
    parameters = {name: p for name, p in model.named_parameters() if name in chosen and name not in wide}
    return {**parameters, **dict(model.named_buffers())}


@torch.no_grad()
def _filled(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """In place; a buffer that has another shape, or was none, is replaced."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in tensors.items():
        if name in named and named[name].shape == value.shape:
            named[name].copy_(value)
        else:
            where, _, last = name.rpartition(".")
            setattr(module.get_submodule(where), last, value.clone())


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fitting(
    path: Any, values: Mapping[str, Tensor], table: Owners, start: Mapping[str, Tensor], model: nn.Module,
    settings: Settings,
) -> None:  # fmt: skip
    """Raises where a file's weights, or what tasks start from, are not a model's."""

    def said(tensors: Mapping[str, Tensor]) -> dict[str, str]:
        return {name: f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors.items()}

    named = dict(model.named_parameters())
    wide = {name: named[name] for name in Owners.none(model, settings.trainable).table}
    expected, got = said({**wide, **_rest(model, settings)}), said({**values, **start})
    if got != expected:
        wrong = [f"{name!r}: {got.get(name, 'none')} in the file, {expected.get(name, 'none')} in the model"
                 for name in {**expected, **got} if got.get(name) != expected.get(name)]  # fmt: skip
        raise ValueError(f"{path} does not fit the {type(model).__name__}: {'; '.join(wrong[:3])}")
    if {name: owners.shape for name, owners in table.table.items()} != {name: v.shape for name, v in values.items()}:
        raise DamagedFile(f"{path}: the table of owners does not have the weights' shapes")


def _owned(path: Any, table: Owners, listed: list[dict[str, Any]]) -> None:
    """Raises where a file's table is not what its tasks say that they own."""
    known = {FREE, *(entry["owner"] for entry in listed)}
    if len(known) != len(listed) + 1 or len({entry["name"] for entry in listed}) != len(listed):
        raise DamagedFile(f"{path}: two tasks have one number or one name; their weights would overlap")
    for name, owners in table.table.items():
        strange = sorted(set(owners.unique().tolist()) - known)
        if strange:
            raise DamagedFile(f"{path}: weights of {name!r} belong to {strange[0]}, which is no task of the file")
    for entry in listed:
        if table.counts(entry["owner"]) != entry["counts"]:
            raise DamagedFile(
                f"{path}: {entry['name']!r} does not own the weights that it claimed; another task's overlap them"
            )
