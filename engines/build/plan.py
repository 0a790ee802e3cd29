"""Keeps compiled plans: one file each, with a sidecar that says what it was made from and for.

The sidecar is written first and the plan appears last, under its name, in one step: a plan that exists is complete and
has its sidecar. A plan is never replaced. Called by ``engines.cli``; ``engines.build.rtx`` compiles.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.bundle.manifest import FileDigest, Sha256
from engines.errors import PlanBuildFailed

_DIGEST_LETTERS = 16
"""Of the graph's digest in the name of a plan; the sidecar holds all of it."""


class PlanRecipe(BaseModel):
    """What a plan is made from and for; two plans of one recipe may stand for each other.

    ``graph_sha256`` is the digest of the ONNX graph, as in the manifest of its bundle; ``version`` is the one of the
    runtime that compiled and must run it; ``target`` is the compute capability, the only one it runs on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1]
    runtime: Literal["tensorrt-rtx"]
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+-]*$")]
    target: Annotated[str, Field(pattern=r"^sm_\d+$")]
    precision: Literal["fp32"]
    tf32: Literal[False]
    batch_minimum: Annotated[int, Field(ge=1)]
    batch_optimum: Annotated[int, Field(ge=1)]
    batch_maximum: Annotated[int, Field(ge=1)]
    graph_sha256: Sha256

    @property
    def plan_name(self) -> str:
        """Name of the plan's file: graph, runtime with version, target."""
        return f"{self.graph_sha256[:_DIGEST_LETTERS]}-rtx-{self.version}-{self.target}.plan"


class PlanRecord(PlanRecipe):
    """The sidecar: a recipe and the digest of the plan that came of it."""

    plan: FileDigest

    @property
    def recipe(self) -> PlanRecipe:
        """Without the digest."""
        return PlanRecipe.model_validate(self.model_dump(exclude={"plan"}))


def sidecar_path(plan: Path) -> Path:
    """Return the path of a plan's sidecar."""
    return plan.with_suffix(".json")


def find_plan(folder: Path, recipe: PlanRecipe) -> Path | None:
    """Return the plan of a recipe where the folder has it whole, or None.

    Raises:
        PlanBuildFailed: a plan of another recipe, or an altered one, stands under this name.
    """
    path = folder / recipe.plan_name
    if not path.exists():
        return None
    found = read_plan(path)[0].recipe
    if found != recipe:
        changed = sorted(name for name, value in found if value != getattr(recipe, name))
        stated = ", ".join(f"{name} {getattr(found, name)} (wanted {getattr(recipe, name)})" for name in changed)
        msg = f"{path.name} stands there with {stated}; remove it, or name another folder"
        raise PlanBuildFailed(msg)
    return path


def read_plan(path: Path) -> tuple[PlanRecord, bytes]:
    """Return a plan and its sidecar, verified now.

    Raises:
        PlanBuildFailed: a file is missing or unreadable, the sidecar is not valid, or the plan is not the one it names.
    """
    try:
        record = PlanRecord.model_validate_json(sidecar_path(path).read_bytes())
        plan = path.read_bytes()
    except (OSError, ValidationError) as error:
        msg = (
            f"{path.name} has no plan and sidecar that can be read ({type(error).__name__}); remove it and build again"
        )
        raise PlanBuildFailed(msg) from error
    if _digest(plan) != record.plan:
        msg = f"{path.name} is not the plan its sidecar names; remove it and build again"
        raise PlanBuildFailed(msg)
    return record, plan


def write_plan(folder: Path, recipe: PlanRecipe, plan: bytes) -> Path:
    """Write a plan and its sidecar, unless the folder has a plan of this recipe.

    Args:
        folder: made where missing.
        recipe: of the plan.
        plan: compiled.

    Returns:
        The plan's file.

    Raises:
        PlanBuildFailed: a plan of another recipe, or an altered one, stands under this name; the folder cannot be
            written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as descriptor:
            return find_plan(folder, recipe) or _written(folder, recipe, plan, descriptor)
    except OSError as error:
        msg = f"{recipe.plan_name} cannot be written to {folder} ({error.strerror}); check the folder"
        raise PlanBuildFailed(msg) from error


def _written(folder: Path, recipe: PlanRecipe, plan: bytes, descriptor: int) -> Path:
    record = PlanRecord(**recipe.model_dump(), plan=_digest(plan))
    path = folder / recipe.plan_name
    _place(sidecar_path(path), (record.model_dump_json(indent=1) + "\n").encode())
    _place(path, plan)
    os.fsync(descriptor)
    return path


def _place(path: Path, content: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".plan-") as scratch:
        fresh = Path(scratch) / path.name
        with fresh.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the folder, so that of two builds at once neither mixes its sidecar with the other's plan."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _digest(content: bytes) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
