"""The executable `isopath`: its verbs are the API's."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

# torch is imported inside the verbs, so that --help answers at once


def demo(out: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Trains a small network on digits 0-4, then traces it to learn 5-9 and become sparse; no download.

    Args:
        out: the run folder to make.
        seed: of the data's order, the first weights and the trace.
    """
    from isopath.run.demo import demo as run

    print(run(out, seed))


def trace(config: Path, out: Path | None = None, overrides: list[str] | None = None) -> None:
    """Runs the trace that a config file describes, in a run folder of its own.

    Args:
        config: a YAML file with the arguments of isopath.trace.
        out: the run folder to make; runs/NAME of the config by default.
        overrides: of keys in the config.
    """
    from isopath.run.commands import trace as run

    print(run(config, out or _folder(config), overrides or []))


def connect(config: Path, out: Path | None = None, overrides: list[str] | None = None) -> None:
    """Joins the two checkpoints of a config file by a curve, the second aligned to the first, in a run folder.

    Args:
        config: a YAML file with two checkpoints and the arguments of isopath.connect.
        out: the run folder to make; runs/NAME of the config by default.
        overrides: of keys in the config.
    """
    from isopath.run.connection import connect as run

    print(run(config, out or _folder(config), overrides or []))


def pack(config: Path, out: Path | None = None, overrides: list[str] | None = None) -> None:
    """Packs the tasks of a config file into one network, each in weights of its own, in a run folder.

    Args:
        config: a YAML file with the arguments of isopath.pack.
        out: the run folder to make; runs/NAME of the config by default.
        overrides: of keys in the config.
    """
    from isopath.run.packed import pack as run

    print(run(config, out or _folder(config), overrides or []))


def generate(config: Path, out: Path | None = None, overrides: list[str] | None = None) -> None:
    """Trains a generator of good and different weights for the model of a config file, in a run folder.

    Args:
        config: a YAML file with the arguments of isopath.generate.
        out: the run folder to make; runs/NAME of the config by default.
        overrides: of keys in the config.
    """
    from isopath.run.generated import generate as run

    print(run(config, out or _folder(config), overrides or []))


def resume(run: Path) -> None:
    """Goes on with a run that was stopped or killed, to the bits that it would have ended with.

    Args:
        run: the run folder.
    """
    from isopath.run import commands, connection, generated, packed
    from isopath.run.folder import verb_of

    of = {"connect": connection.resume, "pack": packed.resume, "generate": generated.resume}
    print(of.get(verb_of(run), commands.resume)(run))


def evaluate(run: Path, step: int | None = None) -> None:
    """Scores a run's end, or one of its kept waypoints, on the evaluate: tasks of its config.

    Args:
        run: the run folder.
        step: a kept step; the last by default.
    """
    from isopath.run.commands import evaluate as score

    score(run, step)


def report(run: Path) -> None:
    """Writes a run's report.html anew: one page that needs no network.

    Args:
        run: the run folder.
    """
    from isopath.run.report import write

    print(write(run))


def show(run: Path) -> None:
    """Prints how a run stands: status, key figures, kept waypoints.

    Args:
        run: the run folder.
    """
    from isopath.run.commands import show as print_run

    print_run(run)


VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo, "isopath demo --out runs/demo"),
    "trace": (
        trace,
        "isopath trace examples/configs/digits.yaml --out runs/digits\n"
        "  isopath trace examples/configs/digits.yaml --set tolerance=0.02 --set objective.1.weight=0.3\n\n"
        "A config spells the call:\n"
        "  model: {class_path: networks.Small, init_args: {width: 32}}   # your networks.py in this folder\n"
        "  weights: small.safetensors                                    # its state dict, or a run folder\n"
        "  keep: {class_path: Reference, init_args: {inputs: {class_path: digits, init_args: {classes: [0, 1]}}}}\n"
        "  objective:\n"
        "    - {class_path: Task, init_args: {data: {class_path: digits, init_args: {classes: [2, 3]}}}}\n"
        "    - {weight: 0.1, class_path: Sparsity, init_args: {fraction: 0.6}}\n"
        "  tolerance: 0.01",
    ),
    "connect": (
        connect,
        "isopath connect examples/configs/joined.yaml --out runs/joined\n\n"
        "A config names two checkpoints of one architecture, and spells the call:\n"
        "  model: {class_path: networks.Small, init_args: {width: 32}}   # your networks.py in this folder\n"
        "  weights_a: a.safetensors                                      # a state dict, or a run folder\n"
        "  weights_b: b.safetensors\n"
        "  prefixes: {module.: ''}                                       # of the names in these files\n"
        "  data: {class_path: digits}                                    # inputs to align on\n"
        "  rescale: 300                                                  # steps: a lower line by factors of units\n"
        "  objective: {class_path: Task, init_args: {data: {class_path: digits}}}\n"
        "  evaluate: {digits: {class_path: Task, init_args: {data: {class_path: digits, init_args: {train: false}}}}}",
    ),
    "pack": (
        pack,
        "isopath pack examples/configs/packed.yaml --out runs/packed\n\n"
        "A config spells the call:\n"
        "  model: {class_path: networks.Small, init_args: {width: 32}}   # your networks.py in this folder\n"
        "  tasks:\n"
        "    low: {class_path: Task, init_args: {data: {class_path: digits, init_args: {classes: [0, 1, 2]}}}}\n"
        "    high: {class_path: Task, init_args: {data: {class_path: digits, init_args: {classes: [3, 4, 5]}}}}\n"
        "  share: 0.3\n"
        "  evaluate: {low: {class_path: Task, init_args: {data: {class_path: digits, init_args: {train: false}}}}}",
    ),
    "generate": (
        generate,
        "isopath generate examples/configs/generated.yaml --out runs/generated\n\n"
        "A config spells the call:\n"
        "  model: {class_path: networks.Small, init_args: {width: 32}}   # your networks.py in this folder\n"
        "  task: {class_path: Task, init_args: {data: {class_path: digits}}}\n"
        "  diversity: 0.5\n"
        "  steps: 2000\n"
        "  evaluate: {digits: {class_path: Task, init_args: {data: {class_path: digits, init_args: {train: false}}}}}",
    ),
    "resume": (resume, "isopath resume runs/digits"),
    "evaluate": (evaluate, "isopath evaluate runs/digits --step 0"),
    "report": (report, "isopath report runs/digits"),
    "show": (show, "isopath show runs/digits"),
}


class _Format(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Types and defaults in the help, examples as they are written."""

    def format_help(self) -> str:
        """The help with types as a reader calls them."""
        return super().format_help().replace("<class 'Path'>", "path").replace("Path | null", "path | null")


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises a mistake in one line."""
        raise Mistake(f"{' '.join(message.split())} (isopath --help shows examples)") from ex


class Mistake(ValueError):
    """A command line that says something it cannot."""


def parser() -> ArgumentParser:
    """The parser of the whole command line, made from the verbs' signatures and docstrings."""
    about = "Change a trained network without breaking what it already does."
    example = "example:\n  isopath demo\n  isopath trace examples/configs/digits.yaml --out runs/digits"
    top = _Parser(prog="isopath", description=about, epilog=example, formatter_class=_Format, default_env=False)
    top.add_argument("--version", action="version", version=f"isopath {_version()}", help="Print the version and exit.")
    verbs = top.add_subcommands(dest="verb", required=True)
    for name, (function, worked) in VERBS.items():
        says = (function.__doc__ or "").split("\n")[0]
        sub = _Parser(description=says, epilog=f"example:\n  {worked}", formatter_class=_Format)
        sub.add_function_arguments(function, as_positional=True, skip={"overrides"})
        if name in ("trace", "connect", "pack", "generate"):
            says_set = "Replaces a key of the config, as in objective.1.weight=0.3; may be repeated."
            sub.add_argument("--set", dest="overrides", action="append", metavar="KEY=VALUE", help=says_set)
        verbs.add_subcommand(name, sub, help=says)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; gives 0, 2 for an error (a sentence on stderr), or 130 when interrupted.

    With `ISOPATH_DEBUG=1` an error shows its traceback.
    """
    chosen: Namespace | None = None
    with warnings.catch_warnings():
        warnings.showwarning = _noted
        try:
            chosen = parser().parse_args(arguments)
            given = chosen[chosen.verb]
            VERBS[chosen.verb][0](**given.as_dict())
        except KeyboardInterrupt:
            return _say(f"stopped; to go on: {_way_on(chosen)}", 130)
        except Exception as error:
            if os.environ.get("ISOPATH_DEBUG") == "1":
                raise
            return _say(_sentence(error, chosen), 2)
    return 0


def _sentence(error: Exception, chosen: Namespace | None) -> str:
    """An error as one line: what happened, and what to do."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    if _number(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full ({text}). What was written before is whole; make room, then: {_way_on(chosen)}"
    if isinstance(error, (ValueError, OSError, ImportError, TypeError, KeyError)) and text:
        return text
    return f"{type(error).__name__}: {text} (ISOPATH_DEBUG=1 shows the traceback)"


def _number(error: Exception) -> int | None:
    """The system's error number; safetensors has it in its text alone."""
    said = re.search(r"os error (\d+)", str(error))
    return int(said[1]) if said else getattr(error, "errno", None)


def _way_on(chosen: Namespace | None) -> str:
    """The command that goes on with an interrupted one."""
    if chosen is None or chosen.verb not in ("trace", "connect", "pack", "generate", "resume"):
        return "start it again"
    given: Any = chosen[chosen.verb]
    run = given.run if chosen.verb == "resume" else given.out or _folder(given.config)
    if not (run / "config.yaml").is_file():
        return "start it again"
    return f"isopath resume {run}"


def _folder(config: Path) -> Path:
    return Path("runs") / config.stem


def _version() -> str:
    from isopath.version import __version__

    return __version__


def _say(text: str, code: int) -> int:
    print(f"isopath: {text}", file=sys.stderr)
    return code


def _noted(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line."""
    print(f"isopath: note: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
