"""What was measured, what was left out and what was wrong: one JSON file and one table, written as they come.

A benchmark may be ended at any moment; what was measured until then stands in the files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Clock = Callable[[], float]
Row = Mapping[str, Any]


@dataclass
class Section:
    """One table.

    Args:
        name: of the section.
        title: in words.
        budget_s: time it may take; what is not begun by then is left out.
        rows: what was measured; all have the same columns.
        left_out: what was not measured, and why.
        wrong: what computes something else: it scores nothing.
        seconds: it took.
    """

    name: str
    title: str
    budget_s: float
    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


class Recorder:
    """Fills a section and writes after every line.

    Args:
        section: to fill.
        write: writes all sections.
        ends_s: of the clock, when the section's time is over.
        clock: seconds.
        say: is told every line.
    """

    def __init__(
        self, section: Section, write: Callable[[], None], ends_s: float, clock: Clock, say: Callable[[str], None]
    ) -> None:
        self.section = section
        self._write = write
        self._ends_s = ends_s
        self._clock = clock
        self._say = say

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left; negative once it is used up."""
        return self._ends_s - self._clock()

    def row(self, **values: Any) -> None:
        """Add a measured line."""
        self.section.rows.append(values)
        self._told(", ".join(f"{name} {cell(value)}" for name, value in values.items()))

    def leave_out(self, what: str, why: object) -> None:
        """Say what is not measured; the same is said once."""
        entry = (what, sentence(why))
        if entry not in self.section.left_out:
            self.section.left_out.append(entry)
            self._told(f"left out: {what}: {entry[1]}")

    def reject(self, what: str, why: object) -> None:
        """Say what is wrong and scores nothing."""
        self.section.wrong.append((what, sentence(why)))
        self._told(f"WRONG: {what}: {sentence(why)}")

    def has_time(self, what: str, needed_s: float = 0.0) -> bool:
        """Whether something may begin; where not, it is left out for want of time."""
        if self.left_s > needed_s:
            return True
        self.leave_out(what, f"the section's {self.section.budget_s:.0f} s are used up")
        return False

    def _told(self, line: str) -> None:
        self._say(f"  {line}")
        self._write()


class Results:
    """All sections of one run.

    Args:
        folder: receives ``results.json`` and ``results.md``.
        environment: versions and device, for the record.
        total_s: time of all sections together.
        clock: seconds.
        say: is told what happens.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, Any],
        *,
        total_s: float,
        clock: Clock = time.monotonic,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._clock = clock
        self._say = say
        self._ends_s = clock() + total_s
        self._finished = False
        self.sections: list[Section] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def any_wrong(self) -> bool:
        """Whether anything computes something else."""
        return any(section.wrong for section in self.sections)

    @contextmanager
    def section(self, name: str, title: str, budget_s: float) -> Iterator[Recorder]:
        """Open a section; what goes wrong in it is written down and costs the other sections nothing."""
        started_s = self._clock()
        section = Section(name=name, title=title, budget_s=max(0.0, min(budget_s, self._ends_s - started_s)))
        self.sections.append(section)
        recorder = Recorder(section, self.write, started_s + section.budget_s, self._clock, self._say)
        self._say(f"{title} (at most {section.budget_s:.0f} s)")
        try:
            yield recorder
        except KeyboardInterrupt:
            recorder.leave_out("the rest of the section", "it was interrupted")
            raise
        except Exception as error:  # noqa: BLE001 - whatever a library does: the other sections are still measured
            recorder.leave_out("the rest of the section", f"{type(error).__name__}: {error}")
        finally:
            section.seconds = round(self._clock() - started_s, 1)
            self.write()

    def finish(self) -> None:
        """Say that nothing was cut off."""
        self._finished = True
        self.write()

    def write(self) -> None:
        """Write both files, each whole or not at all."""
        stated = {
            "name": "Engines on a GPU",
            "started_utc": self._started,
            "finished": self._finished,
            "environment": self._environment,
            "sections": [asdict(section) for section in self.sections],
        }
        _place(self._folder / "results.json", json.dumps(stated, indent=1) + "\n")
        _place(self._folder / "results.md", self._markdown())

    def _markdown(self) -> str:
        versions = ", ".join(f"{name} {value}" for name, value in self._environment.items())
        state = "" if self._finished else "\n\nNot finished: what stands here was measured before it was cut off."
        head = f"# Engines on a GPU\n\nMeasured on {self._started}: {versions}.{state}\n"
        return "\n".join([head, *map(markdown, self.sections)])


def markdown(section: Section) -> str:
    """One section as Markdown."""
    lines = [f"## {section.title}", "", f"{section.seconds:.0f} s of {section.budget_s:.0f} s.", ""]
    if section.rows:
        columns = list(section.rows[0])
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(cell(row[column]) for column in columns)} |" for row in section.rows]
        lines.append("")
    for title, entries in (("Wrong, scores nothing", section.wrong), ("Left out", section.left_out)):
        if entries:
            lines += [f"{title}:", "", *(f"- {what}: {why}" for what, why in entries), ""]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value for a table: three significant digits are enough."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def sentence(error: object) -> str:
    """One line of a length that fits a table."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SENTENCE_MAX else f"{text[: _SENTENCE_MAX - 3]}..."


_SENTENCE_MAX = 300


def _place(path: Path, content: str) -> None:
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_text(content, encoding="utf-8")
    fresh.replace(path)
