"""Runs the Python examples of the README and of the documentation, and checks the links between the pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SETUP = (ROOT / "docs" / "setup.py.txt").read_text(encoding="utf-8")


def examples(text: str) -> str:
    """Every Python block of a page, in order, as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def broken(page: Path, text: str) -> list[str]:
    """Relative links and images that lead nowhere."""
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    return [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]


def main() -> int:
    """Exit status 1 if anything fails."""
    failures = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        failures += [f"{page.name}: no such file: {target}" for target in broken(page, text)]
        program = examples(text)
        if program:
            print(f"{page.name}: running {program.count(chr(10))} lines")
            exec(compile(SETUP + program, str(page), "exec"), {"__name__": "example"})
    print("\n".join(failures))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
