"""What a compiled plan is, and how it lies in a folder: one file, with a sidecar that says what it was made from and for.

The sidecar is written first and the plan appears last, under its name, in one step: a plan that exists is complete and
has its sidecar. A whole plan is never replaced. A plan is executable code: its digest is verified before its content is
handed to anyone. Called by ``engines.build.cache`` and ``engines.cli``; ``engines.build.compile`` compiles.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.bundle.parts import FileDigest, Sha256
from engines.errors import PlanBuildFailed, PlanRefused

Precision = Literal["fp32", "fp16", "bf16"]
RuntimeName = Literal["tensorrt", "tensorrt-rtx"]

_GRAPH_LETTERS = 16
_KEY_LETTERS = 8
"""Of the two digests in the name of a plan; the sidecar holds all of the first and what gives the second."""
_SHORT = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}
_SIDECAR_BYTES_MAX = 65_536
_SCRATCH = ".plan-"
_FOLDER_WAIT_S = 60.0
_POLL_S = 0.05


class PlanRecipe(BaseModel):
    """What a plan is made from and for; two plans of one recipe may stand for each other.

    Args:
        runtime: what compiled it and must run it.
        version: of that runtime; a plan runs with no other.
        target: compute capability, the only one it runs on.
        precision: of the layers that take it; the graph says which.
        tf32: whether float32 products may be computed in TF32.
        batch_minimum, batch_optimum, batch_maximum: batch sizes it takes; it is fastest at the optimum.
        graph_sha256: digest of the bundle's ONNX graph, as in the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    runtime: RuntimeName
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+-]*$", max_length=40)]
    target: Annotated[str, Field(pattern=r"^sm_\d+$")]
    precision: Precision
    tf32: bool
    batch_minimum: Annotated[int, Field(ge=1)]
    batch_optimum: Annotated[int, Field(ge=1)]
    batch_maximum: Annotated[int, Field(ge=1)]
    graph_sha256: Sha256

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.batch_minimum <= self.batch_optimum <= self.batch_maximum:
            msg = f"batch {self.batch_minimum}, {self.batch_optimum}, {self.batch_maximum}; expected them in this order"
            raise ValueError(msg)
        return self

    @property
    def key(self) -> str:
        """SHA-256 of the whole recipe as canonical JSON: two recipes that differ anywhere have two keys."""
        stated = {name: getattr(self, name) for name in PlanRecipe.model_fields}
        canonical = json.dumps(stated, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def plan_name(self) -> str:
        """Name of the plan's file: graph, runtime with version, target, precision, and the key for all the rest."""
        runtime = f"{_SHORT[self.runtime]}-{self.version}"
        graph, key = self.graph_sha256[:_GRAPH_LETTERS], self.key[:_KEY_LETTERS]
        return f"{graph}-{runtime}-{self.target}-{self.precision}-{key}.plan"


class PlanRecord(PlanRecipe):
    """The sidecar: a recipe and the digest of the plan that came of it."""

    plan: FileDigest

    @property
    def recipe(self) -> PlanRecipe:
        """Without the digest."""
        return PlanRecipe.model_validate(self.model_dump(exclude={"plan"}))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan whose content is the one its sidecar names: only ``read_plan`` and the cache make one.

    Args:
        recipe: what it was made from and for.
        content: to be deserialised by the runtime of the recipe; executable code.
        sha256: digest of the content, verified.
    """

    recipe: PlanRecipe
    content: bytes
    sha256: str


def sidecar_path(plan: Path) -> Path:
    """Return the path of a plan's sidecar."""
    return plan.with_suffix(".json")


def verdict_path(plan: Path) -> Path:
    """Return the path of what the parity gate said of a plan."""
    return plan.with_suffix(".verdict.json")


def find_plan(folder: Path, recipe: PlanRecipe) -> Path | None:
    """Return the plan of a recipe where the folder has it whole, or None.

    Raises:
        PlanRefused: a plan of another recipe, or an altered one, stands under this name.
    """
    path = folder / recipe.plan_name
    if not path.exists():
        return None
    require_recipe(read_plan(path), recipe, path.name)
    return path


def require_recipe(plan: Plan, recipe: PlanRecipe, name: str) -> None:
    """Check that a plan was made from and for what is wanted.

    Raises:
        PlanRefused: it is stale (another version), foreign (another device) or of another graph or profile.
    """
    found = plan.recipe
    if found == recipe:
        return
    changed = sorted(field for field, value in found if value != getattr(recipe, field))
    stated = ", ".join(f"{field} {getattr(found, field)} (wanted {getattr(recipe, field)})" for field in changed)
    msg = f"{name} stands there with {stated}; remove it, or name another folder"
    raise PlanRefused(msg)


def read_record(path: Path) -> PlanRecord:
    """Return the sidecar of a plan; the plan itself is not looked at.

    Raises:
        PlanRefused: it is missing, unreadable or not valid.
    """
    try:
        return PlanRecord.model_validate_json(_bounded(sidecar_path(path), _SIDECAR_BYTES_MAX))
    except (OSError, ValidationError) as error:
        raise _unreadable(path, error) from error


def read_plan(path: Path) -> Plan:
    """Return a plan, its digest verified now.

    Raises:
        PlanRefused: a file is missing or unreadable, the sidecar is not valid, or the plan is not the one it names.
    """
    record = read_record(path)
    try:
        content = _bounded(path, record.plan.bytes)
    except OSError as error:
        raise _unreadable(path, error) from error
    if _digest(content) != record.plan:
        msg = f"{path.name} is not the plan its sidecar names; remove it and build again"
        raise PlanRefused(msg)
    return Plan(recipe=record.recipe, content=content, sha256=record.plan.sha256)


def write_plan(folder: Path, recipe: PlanRecipe, content: bytes, *, replace_altered: bool = False) -> Path:
    """Write a plan and its sidecar, unless the folder has a whole plan of this recipe.

    Args:
        folder: made where missing.
        recipe: of the plan.
        content: compiled.
        replace_altered: write over what stands under this name and is not a whole plan of this recipe.

    Returns:
        The plan's file.

    Raises:
        PlanRefused: a plan of another recipe, or an altered one, stands under this name.
        PlanBuildFailed: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as descriptor:
            standing = _standing(folder, recipe, replace_altered=replace_altered)
            return standing or _written(folder, recipe, content, descriptor)
    except OSError as error:
        raise unwritable(folder, recipe.plan_name, error) from error


def place(path: Path, content: bytes) -> None:
    """Write a file whole and durable, or not at all; the caller holds ``locked``."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_SCRATCH) as scratch:
        fresh = Path(scratch) / path.name
        with fresh.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)


@contextmanager
def locked(folder: Path, wait_s: float = _FOLDER_WAIT_S) -> Iterator[int]:
    """Hold a folder for the moment of writing, so that no two writers mix their files; yields its descriptor.

    Raises:
        OSError: the folder cannot be opened, or another process held it all the time.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _flock(descriptor, wait_s)
        _sweep(folder)
        yield descriptor
    finally:
        os.close(descriptor)


def _flock(descriptor: int, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise OSError(errno.EBUSY, f"another process has held it for {wait_s:g} s") from None
            time.sleep(_POLL_S)
        else:
            return


def _sweep(folder: Path) -> None:
    """Remove what a killed writer left: whoever holds the folder is the only one who writes."""
    for scratch in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)


def _standing(folder: Path, recipe: PlanRecipe, *, replace_altered: bool) -> Path | None:
    try:
        return find_plan(folder, recipe)
    except PlanRefused:
        if not replace_altered:
            raise
    (folder / recipe.plan_name).unlink()  # its sidecar is written anew
    return None


def _written(folder: Path, recipe: PlanRecipe, content: bytes, descriptor: int) -> Path:
    record = PlanRecord(**recipe.model_dump(), plan=_digest(content))
    path = folder / recipe.plan_name
    place(sidecar_path(path), (record.model_dump_json(indent=1) + "\n").encode())
    place(path, content)
    os.fsync(descriptor)
    return path


def _bounded(path: Path, limit: int) -> bytes:
    """At most one byte more than expected: enough to see that it is too long."""
    with path.open("rb") as stream:
        return stream.read(limit + 1)


def _unreadable(path: Path, error: Exception) -> PlanRefused:
    reason = type(error).__name__
    return PlanRefused(f"{path.name} has no plan and sidecar that can be read ({reason}); remove it and build again")


def unwritable(folder: Path, name: str, error: OSError) -> PlanBuildFailed:
    """Return what to raise where a folder of plans cannot be written to."""
    return PlanBuildFailed(f"{name} cannot be written to {folder} ({error.strerror}); check the folder")


def _digest(content: bytes) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
