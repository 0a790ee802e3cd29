"""What the commands of ``purkinje-train`` share: options that hold several numbers, and the command as it was typed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click


def numbers(kind: type[int | float], count: int) -> Callable[..., Any]:
    """Return an option callback that reads ``count`` numbers with commas between them."""

    def read(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            found = tuple(kind(part) for part in value.split(","))
        except ValueError:
            found = ()
        if len(found) != count:
            raise click.BadParameter(f"found {value!r}; expected {count} numbers with commas between them")
        return found

    return read


def as_typed() -> str:
    """Return the command for the page; where its files lie on this machine decides no number."""
    given = sys.argv[1:]
    hidden = {place for at, each in enumerate(given) if each == "--out" for place in (at, at + 1)}
    return " ".join(["purkinje-train", *(each for at, each in enumerate(given) if at not in hidden)])
