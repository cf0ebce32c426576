"""Which changes of the code make a benchmark's row stale."""

import ast

import pytest
from benchmarks.harness import _Running

START = """
from a import f

def step(x):
    \"\"\"Half of it.\"\"\"
    y = f(x)
    return y / 2
"""
SAME = {
    "docstring and comment": START.replace("Half of it.", "Divided by two.").replace("y = f(x)", "y = f(x)  # here"),
    "guard": START.replace("    y = f", "    if x < 0:\n        raise ValueError(x)\n    y = f"),
    "guard with a message": START.replace(
        "    y = f", "    if x < 0:\n        said = str(x)\n        raise ValueError(said)\n    y = f"
    ),
    "assertion": START.replace("    return", "    assert y\n    return"),
    "check": START.replace("import f", "import check_x, f").replace("    y = f", "    check_x(x)\n    y = f"),
    "own check": START + "\ndef check_y(y):\n    if not y:\n        raise ValueError(y)\n",
    "error in other words": START.replace(
        "    y = f(x)", "    try:\n        y = f(x)\n    except IndexError as e:\n        raise ValueError from e"
    ),
}  # fmt: skip
OTHER = {
    "number": START.replace("/ 2", "/ 3"),
    "call": START.replace("y = f(x)", "y = f(x + 1)"),
    "branch": START.replace("    return", "    if x < 0:\n        y = -y\n    return"),
    "guard with another way out": START.replace(
        "    return", "    if x < 0:\n        raise ValueError\n    else:\n        y = 1\n    return"
    ),
    "check that gives something": START + "\ndef check_y(y):\n    return y + 1\n",
    "error that is swallowed": START.replace(
        "    y = f(x)", "    try:\n        y = f(x)\n    except IndexError:\n        y = 0"
    ),
    "import": START.replace("from a", "from b"),
}  # fmt: skip


def seen(text):
    return ast.dump(_Running().visit(ast.parse(text)))


@pytest.mark.parametrize("name", SAME)
def test_what_runs_nothing_where_nothing_is_wrong(name):
    assert SAME[name] != START
    assert seen(SAME[name]) == seen(START)


@pytest.mark.parametrize("name", OTHER)
def test_what_runs(name):
    assert seen(OTHER[name]) != seen(START)
