"""The plans of one folder: found by their whole recipe, built once, kept with the gate's verdict, bounded in size.

A plan that is altered, or was made for another version or device, is never handed out; ``get_or_build`` builds it
again. Of several processes that want the same plan at once one builds and the others wait (``engines.build.lease``). A
plan whose parity gate failed stays refused until an operator clears it; one without a verdict for this device and
driver may be opened to be verified, and not to serve.

Whoever can write to the folder can run code in every process that reads it: digests find damage, not an attacker. The
folder belongs to the service alone. One that cannot be written to, delivered by an image, is read as it is.

Called by ``engines.cli`` and by whoever opens a plan for serving.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engines.build.gate import Gpu, Verdict
from engines.build.lease import Log, is_leased, leased
from engines.build.plan import (
    Plan,
    PlanRecipe,
    locked,
    read_plan,
    read_record,
    require_recipe,
    unwritable,
    write_plan,
)
from engines.build.room import exists, last_used, make_room, touch
from engines.build.verdicts import added, failure, holding, read_verdicts, write_verdicts
from engines.errors import PlanRefused

BYTES_MAX = 8_000_000_000
LEASE_S = 60.0
_STEM = re.compile(r"[0-9a-f]{16}-(?:rtx|trt)-[0-9A-Za-z_.+-]+")

Build = Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class StandingPlan:
    """A plan of the folder, its digest verified; whether it may serve is for ``PlanCache.verdict`` to say.

    ``built`` says whether this call built it.
    """

    plan: Plan
    path: Path
    built: bool


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """One plan as a person wants to see it.

    Args:
        name: of the plan's file, without its suffix.
        recipe: None where the sidecar cannot be read.
        bytes_count: size of the plan, 0 where only its verdict stands.
        verdict: ``passed``, ``unverified``, or why it is refused.
        last_used: when it was handed out last, or else written.
    """

    name: str
    recipe: PlanRecipe | None
    bytes_count: int
    verdict: str
    last_used: datetime


class PlanCache:
    """Plans in a folder.

    Args:
        folder: made where missing, when something is written.
        bytes_max: of all plans together; the least recently used are removed first.
        lease_s: a process that builds and gives no sign of life for so long is taken over.
        log: is told one sentence for what an operator may wonder about.
    """

    def __init__(
        self, folder: Path, bytes_max: int = BYTES_MAX, *, lease_s: float = LEASE_S, log: Log = lambda _: None
    ) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._lease_s = lease_s
        self._log = log
        self._unwritten: dict[str, tuple[Verdict, ...]] = {}

    def get(self, recipe: PlanRecipe) -> StandingPlan | None:
        """Return the plan of a recipe, its digest verified now, or None where there is none.

        Raises:
            PlanRefused: it is altered, it was made from or for something else, or its gate failed.
        """
        path = self._folder / recipe.plan_name
        self._require_no_failure(path)
        try:
            plan = read_plan(path)
        except PlanRefused:
            if exists(path):
                raise
            return None
        require_recipe(plan, recipe, path.name)
        touch(path)
        return StandingPlan(plan=plan, path=path, built=False)

    def get_or_build(self, recipe: PlanRecipe, build: Build) -> StandingPlan:
        """Return the plan of a recipe; build it where there is none that is whole.

        Args:
            recipe: of the plan.
            build: compiles it. Called at most once, and not where another process builds the same plan meanwhile.

        Raises:
            PlanRefused: its gate failed.
            PlanBuildFailed: as ``build``; or the folder cannot be written to.
        """
        standing = self._whole(recipe)
        if standing is not None:
            return standing
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with leased(self._folder, Path(recipe.plan_name).stem, lease_s=self._lease_s, log=self._log):
                return self._whole(recipe) or self._built(recipe, build)
        except OSError as error:
            raise unwritable(self._folder, recipe.plan_name, error) from error

    def to_serve(self, recipe: PlanRecipe, device: Gpu) -> Plan:
        """Return a plan that passed its gate on this kind of device with this driver.

        Raises:
            PlanRefused: there is none, it is altered, or it was not verified, or did not pass.
        """
        standing = self.get(recipe)
        if standing is None:
            raise PlanRefused(self.missing(recipe))
        if self.verdict(standing.plan, device) is None:
            msg = (
                f"{standing.path.name} was never verified on {device.name} with driver {device.driver_version}; "
                "run `purkinje-engine verify` with it"
            )
            raise PlanRefused(msg)
        return standing.plan

    def missing(self, recipe: PlanRecipe) -> str:
        """Say in one sentence that there is no such plan, and which others of the same graph there are."""
        recipes = [entry.recipe for entry in self.entries() if entry.recipe is not None and entry.bytes_count]
        others = [
            f"{one.runtime} {one.version} {one.target} {one.precision} batch {_batch(one)}"
            for one in recipes
            if one.graph_sha256 == recipe.graph_sha256 and one != recipe
        ]
        return f"no {recipe.plan_name} in {self._folder}; of this graph there are: {', '.join(others) or 'none'}"

    def verdict(self, plan: Plan, device: Gpu) -> Verdict | None:
        """Return what the gate said of a plan: that it failed anywhere, or that it passed on this device and driver.

        Raises:
            PlanRefused: the verdict cannot be read.
        """
        verdicts = self._verdicts(self._folder / plan.recipe.plan_name)
        return failure(verdicts) or holding(verdicts, plan, device)

    def record(self, plan: Plan, verdict: Verdict) -> bool:
        """Keep what the gate said of a plan.

        Returns:
            Whether it stands in the folder; in one that cannot be written to it holds for this object only.

        Raises:
            ValueError: the verdict is of another plan.
        """
        if (verdict.plan_sha256, verdict.graph_sha256) != (plan.sha256, plan.recipe.graph_sha256):
            msg = f"a verdict on plan {verdict.plan_sha256}; expected one on {plan.sha256}"
            raise ValueError(msg)
        path = self._folder / plan.recipe.plan_name
        try:
            with locked(self._folder):
                write_verdicts(path, added(read_verdicts(path), verdict))
        except OSError as error:
            self._unwritten[path.name] = added(self._unwritten.get(path.name, ()), verdict)
            self._log(f"the verdict on {path.name} cannot be kept in {self._folder} ({error.strerror})")
            return False
        return True

    def entries(self) -> tuple[PlanEntry, ...]:
        """Return all plans, and the verdicts whose plan was removed, the least recently used first; digests are verified."""
        entries = [self._entry(self._folder / f"{stem}.plan") for stem in self._stems()]
        return tuple(sorted(entries, key=lambda entry: entry.last_used))

    def clear(self, *, name: str | None = None, older_than_days: float | None = None) -> tuple[str, ...]:
        """Remove plans with their verdicts, failed ones too; what is being built is left alone.

        Args:
            name: only this one, with or without ``.plan``.
            older_than_days: only what was not used for so long.

        Returns:
            The names of what was removed.

        Raises:
            ValueError: there is no plan of this name.
            PlanBuildFailed: the folder cannot be written to.
        """
        stems = self._stems()
        if name is not None:
            wanted = name.removesuffix(".plan")
            if wanted not in stems:
                msg = f"no plan {wanted} in {self._folder}; expected one of {', '.join(stems) or 'none'}"
                raise ValueError(msg)
            stems = (wanted,)
        removed = [stem for stem in stems if self._is_idle(stem, older_than_days)]
        try:
            with locked(self._folder):
                for stem in removed:
                    self._remove(stem)
        except OSError as error:
            raise unwritable(self._folder, "the folder", error) from error
        return tuple(removed)

    def _whole(self, recipe: PlanRecipe) -> StandingPlan | None:
        """Return the plan of a recipe; one that is not whole counts as none, one whose gate failed is refused."""
        self._require_no_failure(self._folder / recipe.plan_name)
        try:
            return self.get(recipe)
        except PlanRefused as refusal:
            self._log(f"{refusal}: it is built again")
            return None

    def _built(self, recipe: PlanRecipe, build: Build) -> StandingPlan:
        path = write_plan(self._folder, recipe, build(), replace_altered=True)
        touch(path)
        make_room(path, self._bytes_max, lease_s=self._lease_s, log=self._log)
        return StandingPlan(plan=read_plan(path), path=path, built=True)

    def _require_no_failure(self, path: Path) -> None:
        failed = failure(self._verdicts(path))
        if failed is not None:
            msg = (
                f"{path.name} failed its parity gate on {failed.device} ({failed.when_utc:%Y-%m-%d}): "
                f"{'; '.join(failed.reasons)}; clear it to build it again"
            )
            raise PlanRefused(msg)

    def _verdicts(self, path: Path) -> tuple[Verdict, ...]:
        return (*read_verdicts(path), *self._unwritten.get(path.name, ()))

    def _is_idle(self, stem: str, older_than_days: float | None) -> bool:
        if is_leased(self._folder, stem, lease_s=self._lease_s):
            self._log(f"{stem} is being built and stays")
            return False
        age_s = time.time() - last_used(self._folder / f"{stem}.plan")
        return older_than_days is None or age_s > older_than_days * 86_400.0

    def _remove(self, stem: str) -> None:
        """Remove the plan first, then all that lies beside it: sidecar, verdict, log, lease."""
        (self._folder / f"{stem}.plan").unlink(missing_ok=True)
        for path in list(self._folder.glob(f"{stem}.*")):
            path.unlink(missing_ok=True)
        self._unwritten.pop(f"{stem}.plan", None)

    def _stems(self) -> tuple[str, ...]:
        names = (*self._folder.glob("*.plan"), *self._folder.glob("*.verdict.json"))
        stems = {path.name.removesuffix(".plan").removesuffix(".verdict.json") for path in names}
        return tuple(sorted(stem for stem in stems if _STEM.fullmatch(stem)))

    def _entry(self, path: Path) -> PlanEntry:
        try:
            recipe = read_record(path).recipe
        except PlanRefused:
            recipe = None
        return PlanEntry(
            name=path.stem,
            recipe=recipe,
            bytes_count=path.stat().st_size if exists(path) else 0,
            verdict="; ".join(self._faults(path)) or ("passed" if self._verdicts(path) else "unverified"),
            last_used=datetime.fromtimestamp(last_used(path), UTC),
        )

    def _faults(self, path: Path) -> Iterator[str]:
        try:
            self._require_no_failure(path)
            read_plan(path)
        except PlanRefused as refusal:
            yield str(refusal)


def _batch(recipe: PlanRecipe) -> str:
    return f"{recipe.batch_minimum}-{recipe.batch_optimum}-{recipe.batch_maximum}"
