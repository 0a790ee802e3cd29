"""Runs every benchmark of this folder and prints one table; ``make bench``.

A benchmark is a program ``bench_*.py`` that takes ``--out FILE`` and writes one JSON object there: ``name``, ``rows``
(a list of flat objects) and ``environment``. It checks that all sides are correct before it measures, and never fails
for being slow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 1800
ON_GPU = "bench_gpu"
"""Has a command and a form of its own: ``make bench-gpu``."""


def main() -> int:
    """Run the chosen benchmarks; 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--only", nargs="*", default=None, help="names without bench_ and .py")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    programs = [
        path
        for path in sorted(HERE.glob("bench_*.py"))
        if path.stem != ON_GPU and (options.only is None or path.stem[6:] in options.only)
    ]
    results = [run(program, options.out / f"{program.stem[6:]}.json") for program in programs]
    (options.out / "results.md").write_text("\n".join(markdown(result) for result in results if result is not None))
    return 1 if None in results else 0


def run(program: Path, out: Path) -> dict[str, Any] | None:
    """Run one benchmark, show its table, return its result."""
    console = Console(width=160)
    console.rule(program.stem)
    command = [sys.executable, "-m", f"tests.benchmarks.{program.stem}", "--out", str(out.resolve())]
    done = subprocess.run(command, check=False, timeout=TIMEOUT_S, cwd=HERE.parents[1])
    if done.returncode != 0 or not out.exists():
        console.print(f"{program.name} ended with {done.returncode}", style="red")
        return None
    result: dict[str, Any] = json.loads(out.read_text())
    console.print(table(result))
    return result


def table(result: dict[str, Any]) -> Table:
    """The rows of one benchmark."""
    columns = list(result["rows"][0])
    shown = Table(title=result["name"])
    for column in columns:
        shown.add_column(column)
    for row in result["rows"]:
        shown.add_row(*(cell(row[column]) for column in columns))
    return shown


def markdown(result: dict[str, Any]) -> str:
    """The same as a Markdown section, with the versions it was measured on."""
    columns = list(result["rows"][0])
    lines = [f"## {result['name']}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell(row[column]) for column in columns)} |" for row in result["rows"]]
    versions = ", ".join(f"{name} {value}" for name, value in result["environment"].items())
    return "\n".join([*lines, "", f"Measured on: {versions}.", ""])


def cell(value: Any) -> str:
    """A value for a table: three significant digits are enough."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
