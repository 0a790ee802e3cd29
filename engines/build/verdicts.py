"""What the parity gate said of a plan, kept beside it: one file with a verdict for each kind of device and driver.

A verdict that failed is never overwritten by one that passed: it stands until an operator clears the plan.
Used by ``engines.build.cache``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.build.gate import Gpu, Verdict
from engines.build.plan import Plan, place, verdict_path
from engines.errors import PlanRefused

_KEPT = 32
"""Newest verdicts that passed; a folder shared by many machines meets many drivers."""
_BYTES_MAX = 4_000_000


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    verdicts: tuple[Verdict, ...]


def read_verdicts(plan: Path) -> tuple[Verdict, ...]:
    """Return the verdicts beside a plan, none where it was never verified.

    Raises:
        PlanRefused: they cannot be read: one that failed may be among them.
    """
    try:
        with verdict_path(plan).open("rb") as stream:
            return _File.model_validate_json(stream.read(_BYTES_MAX)).verdicts
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        msg = f"the verdict beside {plan.name} cannot be read ({type(error).__name__}); clear the plan and build again"
        raise PlanRefused(msg) from error


def write_verdicts(plan: Path, verdicts: Sequence[Verdict]) -> None:
    """Write the verdicts beside a plan; the caller holds ``plan.locked``."""
    place(verdict_path(plan), (_File(verdicts=tuple(verdicts)).model_dump_json(indent=1) + "\n").encode())


def added(standing: Iterable[Verdict], verdict: Verdict) -> tuple[Verdict, ...]:
    """Return the verdicts with one more: those that failed all stay, of those that passed the newest of each kind."""
    all_of_them = (*standing, verdict)
    failed = [one for one in all_of_them if not one.passed]
    passed = {_kind(one): one for one in all_of_them if one.passed}
    return (*failed, *list(passed.values())[-_KEPT:])


def failure(verdicts: Iterable[Verdict]) -> Verdict | None:
    """Return the first verdict that failed, or None."""
    return next((verdict for verdict in verdicts if not verdict.passed), None)


def holding(verdicts: Iterable[Verdict], plan: Plan, device: Gpu) -> Verdict | None:
    """Return the verdict of this very plan on this kind of device with this driver, or None."""
    fitting = [one for one in verdicts if one.plan_sha256 == plan.sha256 and one.holds_for(device)]
    return fitting[-1] if fitting else None


def _kind(verdict: Verdict) -> tuple[str | None, str, str]:
    return verdict.plan_sha256, verdict.device, verdict.driver_version
