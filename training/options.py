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
    """Return the command line, as a page says how it is made again."""
    return " ".join(["purkinje-train", *sys.argv[1:]])
