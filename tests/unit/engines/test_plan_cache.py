"""Plans are found by their whole recipe, verified before they are handed out, built once, and bounded in size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines import cli
from engines.build import lease as leases
from engines.build.cache import PlanCache, StandingPlan
from engines.build.gate import Verdict
from engines.build.lease import is_leased, leased
from engines.build.plan import PlanRecipe, sidecar_path, verdict_path, write_plan
from engines.build.room import make_room
from engines.errors import PlanBuildFailed, PlanRefused

RECIPE = PlanRecipe(
    runtime="tensorrt",
    version="10.15.1.29",
    target="sm_90",
    precision="fp16",
    tf32=False,
    batch_minimum=1,
    batch_optimum=8,
    batch_maximum=32,
    graph_sha256="ab" * 32,
)
PLAN = b"a compiled plan"
LEASE_S = 2.0
"""Long enough for a machine that is busy, short enough to wait for."""


@dataclass(frozen=True)
class Gpu:
    """A device as the verdict knows it."""

    name: str = "NVIDIA H100"
    driver_version: str = "580.1"


def _changed(**changes: object) -> PlanRecipe:
    return PlanRecipe.model_validate({**RECIPE.model_dump(), **changes})


def _never() -> bytes:
    pytest.fail("built although a plan stands")


def _verdict(standing: StandingPlan, *reasons: str, device: Gpu | None = None) -> Verdict:
    device = device or Gpu()
    return Verdict(
        passed=not reasons,
        reasons=reasons,
        bundle="tiny 0.1.0",
        graph_sha256=standing.plan.recipe.graph_sha256,
        plan_sha256=standing.plan.sha256,
        runtime="tensorrt",
        version="10.15.1.29",
        precision="fp16",
        device=device.name,
        driver_version=device.driver_version,
        golden_records=2,
        inputs=200,
        seed=0,
        differences=(),
        reference_runtime="onnxruntime",
        reference_version="1",
        when_utc=datetime(2025, 1, 2, tzinfo=UTC),
    )


@pytest.fixture
def said() -> list[str]:
    """What the cache tells the operator."""
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> PlanCache:
    """An empty cache."""
    return PlanCache(tmp_path / "plans", log=said.append)


@pytest.fixture
def standing(cache: PlanCache) -> StandingPlan:
    """A plan in it."""
    return cache.get_or_build(RECIPE, lambda: PLAN)


def test_plan_is_built_once_and_then_found(cache: PlanCache) -> None:
    """An empty cache has nothing; what was built is handed out with its digest and not built again."""
    assert cache.get(RECIPE) is None
    built = cache.get_or_build(RECIPE, lambda: PLAN)
    assert (built.built, built.plan.content, built.plan.recipe) == (True, PLAN, RECIPE)
    found = cache.get_or_build(RECIPE, _never)
    assert (found.built, found.plan) == (False, built.plan)
    assert cache.get(RECIPE) == found


@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": "ab" * 31 + "cd"},
        {"runtime": "tensorrt-rtx"},
        {"version": "10.15.1.30"},
        {"target": "sm_89"},
        {"precision": "bf16"},
        {"tf32": True},
        {"batch_minimum": 2},
        {"batch_optimum": 9},
        {"batch_maximum": 33},
    ],
)
def test_every_part_of_the_recipe_is_the_key(
    cache: PlanCache, standing: StandingPlan, change: dict[str, object]
) -> None:
    """A plan of another graph, runtime, version, device, precision or batch profile is another plan."""
    other = _changed(**change)
    assert cache.get(other) is None
    assert cache.get_or_build(other, lambda: b"other").plan.content == b"other"
    assert cache.get_or_build(RECIPE, _never).plan.content == PLAN


def _flip_plan(path: Path) -> None:
    path.write_bytes(PLAN[:-1] + b"!")


def _lengthen_plan(path: Path) -> None:
    path.write_bytes(PLAN + b"!")


def _lose_sidecar(path: Path) -> None:
    sidecar_path(path).unlink()


def _break_sidecar(path: Path) -> None:
    sidecar_path(path).write_bytes(b"{")


def _foreign(**changes: object) -> Callable[[Path], None]:
    """Another plan, whole with its sidecar, under this name."""

    def substitute(path: Path) -> None:
        other = write_plan(path.parent / "elsewhere", _changed(**changes), PLAN)
        other.replace(path)
        sidecar_path(other).replace(sidecar_path(path))

    return substitute


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip_plan, "is not the plan its sidecar names"),
        (_lengthen_plan, "is not the plan its sidecar names"),
        (_lose_sidecar, "no plan and sidecar that can be read"),
        (_break_sidecar, "no plan and sidecar that can be read"),
        (_foreign(version="10.9.0.34"), r"version 10.9.0.34 \(wanted 10.15.1.29\)"),
        (_foreign(target="sm_80"), r"target sm_80 \(wanted sm_90\)"),
    ],
)
def test_altered_stale_and_foreign_plans_are_not_handed_out(
    cache: PlanCache, standing: StandingPlan, said: list[str], damage: Callable[[Path], None], reason: str
) -> None:
    """What is not the plan of the recipe is refused with the reason, and built again where it can be."""
    damage(standing.path)
    with pytest.raises(PlanRefused, match=reason):
        cache.get(RECIPE)
    rebuilt = cache.get_or_build(RECIPE, lambda: b"built again")
    assert (rebuilt.built, rebuilt.plan.content) == (True, b"built again")
    assert any("it is built again" in sentence for sentence in said)
    assert cache.get_or_build(RECIPE, _never).plan == rebuilt.plan


def test_build_that_fails_leaves_nothing(cache: PlanCache, tmp_path: Path) -> None:
    """An error of the compiler is passed on, no plan stands, and the next call may build."""

    def refusing() -> bytes:
        raise PlanBuildFailed("does not take the graph")

    with pytest.raises(PlanBuildFailed, match="does not take"):
        cache.get_or_build(RECIPE, refusing)
    assert cache.get(RECIPE) is None
    assert cache.get_or_build(RECIPE, lambda: PLAN).built


def test_missing_plan_is_explained(cache: PlanCache, standing: StandingPlan) -> None:
    """Whoever finds no plan is told which others of this graph stand there."""
    with pytest.raises(PlanRefused, match=r"no abab.*sm_89.* of this graph there are: tensorrt 10.15.1.29 sm_90 fp16"):
        cache.to_serve(_changed(target="sm_89"), Gpu())
    with pytest.raises(PlanRefused, match="there are: none"):
        cache.to_serve(_changed(graph_sha256="cd" * 32), Gpu())


# verdicts


def test_plan_serves_only_with_a_verdict_of_this_device_and_driver(cache: PlanCache, standing: StandingPlan) -> None:
    """A plan serves where it passed on this kind of device with this driver; another asks for another verdict."""
    with pytest.raises(PlanRefused, match=r"never verified on NVIDIA H100 with driver 580\.1"):
        cache.to_serve(RECIPE, Gpu())
    assert cache.verdict(standing.plan, Gpu()) is None
    verdict = _verdict(standing)
    assert cache.record(standing.plan, verdict)
    assert cache.verdict(standing.plan, Gpu()) == verdict
    assert cache.to_serve(RECIPE, Gpu()) == standing.plan
    for other in (Gpu(driver_version="590.2"), Gpu(name="NVIDIA H200")):
        assert cache.verdict(standing.plan, other) is None
        with pytest.raises(PlanRefused, match="never verified"):
            cache.to_serve(RECIPE, other)
    cache.record(standing.plan, _verdict(standing, device=Gpu(driver_version="590.2")))
    assert cache.to_serve(RECIPE, Gpu()) == cache.to_serve(RECIPE, Gpu(driver_version="590.2"))


def test_failed_plan_is_refused_until_it_is_cleared(cache: PlanCache, standing: StandingPlan, tmp_path: Path) -> None:
    """A plan whose gate failed is not handed out to anybody, in any process, and not built again before it is cleared."""
    cache.record(standing.plan, _verdict(standing, "ef: largest difference is 7"))
    cache.record(standing.plan, _verdict(standing))  # a later pass does not undo it
    for one in (cache, PlanCache(tmp_path / "plans")):
        for call in (
            lambda one=one: one.get(RECIPE),
            lambda one=one: one.get_or_build(RECIPE, _never),
            lambda one=one: one.to_serve(RECIPE, Gpu(driver_version="590.2")),
        ):
            with pytest.raises(PlanRefused, match=r"failed its parity gate on NVIDIA H100 .2025-01-02.: ef: largest"):
                call()
        found = one.verdict(standing.plan, Gpu())
        assert found is not None
        assert not found.passed
    cache.clear()
    assert cache.get_or_build(RECIPE, lambda: PLAN).built


def test_verdict_belongs_to_the_bytes(cache: PlanCache, standing: StandingPlan) -> None:
    """A plan built again is other bytes: the verdict that passed does not hold for it."""
    cache.record(standing.plan, _verdict(standing))
    _flip_plan(standing.path)
    again = cache.get_or_build(RECIPE, lambda: b"built again")
    assert cache.verdict(again.plan, Gpu()) is None
    with pytest.raises(ValueError, match="expected one on"):
        cache.record(again.plan, _verdict(standing))


def test_verdict_that_cannot_be_read_refuses_the_plan(cache: PlanCache, standing: StandingPlan) -> None:
    """A damaged verdict may have been one that failed: the plan is refused until it is cleared."""
    cache.record(standing.plan, _verdict(standing))
    verdict_path(standing.path).write_bytes(b"{}")
    for call in (lambda: cache.get(RECIPE), lambda: cache.get_or_build(RECIPE, _never)):
        with pytest.raises(PlanRefused, match=r"verdict beside .* cannot be read"):
            call()
    assert "cannot be read" in cache.entries()[0].verdict


def test_verdict_is_json_beside_the_plan(cache: PlanCache, standing: StandingPlan) -> None:
    """The file has the plan's name and says whether it passed, why not, on what, against what and when."""
    cache.record(standing.plan, _verdict(standing, "ef: flips"))
    (stated,) = json.loads(standing.path.with_suffix(".verdict.json").read_text())["verdicts"]
    assert (stated["passed"], stated["reasons"], stated["plan_sha256"]) == (False, ["ef: flips"], standing.plan.sha256)
    assert stated["when_utc"] == "2025-01-02T00:00:00Z"


# size


def _aged(path: Path, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(path.with_suffix(".used"), (then, then))


def test_least_recently_used_plans_make_room(tmp_path: Path, said: list[str]) -> None:
    """Over the limit the plans that were not used for longest go, with all that lies beside them."""
    cache = PlanCache(tmp_path, bytes_max=250, log=said.append)
    first, second = (cache.get_or_build(_changed(target=target), lambda: b"x" * 100) for target in ("sm_80", "sm_86"))
    cache.record(second.plan, _verdict(second))
    for path, age_s in ((first.path, 1000), (second.path, 2000)):
        _aged(path, age_s)
    new = cache.get_or_build(_changed(target="sm_89"), lambda: b"x" * 100)
    assert new.path.exists()
    assert first.path.exists()
    assert not list(tmp_path.glob(f"{second.path.stem}.[!l]*"))
    assert said == [f"{second.path.name} was removed to make room"]


def test_use_makes_a_plan_young(tmp_path: Path) -> None:
    """A plan that is handed out is used: another goes first."""
    cache = PlanCache(tmp_path, bytes_max=250)
    recipes = [_changed(target=target) for target in ("sm_80", "sm_86")]
    plans = [cache.get_or_build(recipe, lambda: b"x" * 100) for recipe in recipes]
    _aged(plans[0].path, 2000)
    _aged(plans[1].path, 1000)
    cache.get(recipes[0])
    cache.get_or_build(_changed(target="sm_89"), lambda: b"x" * 100)
    assert plans[0].path.exists()
    assert not plans[1].path.exists()


def test_plans_in_use_and_being_built_stay(tmp_path: Path, said: list[str]) -> None:
    """Neither the plan just built, nor one just handed out, nor one being built again makes room."""
    cache = PlanCache(tmp_path, bytes_max=50, log=said.append)
    handed_out = cache.get_or_build(_changed(target="sm_80"), lambda: b"x" * 100)
    in_the_works = cache.get_or_build(_changed(target="sm_86"), lambda: b"x" * 100)
    _aged(in_the_works.path, 2000)
    with leased(tmp_path, in_the_works.path.stem, lease_s=10, log=said.append):
        built = cache.get_or_build(_changed(target="sm_89"), lambda: b"x" * 100)
    assert all(one.path.exists() for one in (handed_out, in_the_works, built))
    assert "over their limit" in said[-1]


def test_plan_for_which_room_is_made_stays(standing: StandingPlan, said: list[str]) -> None:
    """Also where the clock of the disk is behind, the plan just built does not make room for itself."""
    _aged(standing.path, 2000)
    make_room(standing.path, 0, lease_s=30, log=said.append)
    assert standing.path.exists()


def test_failure_is_not_forgotten_to_make_room(tmp_path: Path) -> None:
    """A failed plan may go to make room; that it failed stays, so that it is not built again and again."""
    cache = PlanCache(tmp_path, bytes_max=150)
    failed = cache.get_or_build(RECIPE, lambda: b"x" * 100)
    cache.record(failed.plan, _verdict(failed, "wrong"))
    _aged(failed.path, 2000)
    cache.get_or_build(_changed(target="sm_80"), lambda: b"x" * 100)
    assert not failed.path.exists()
    with pytest.raises(PlanRefused, match="wrong"):
        cache.get_or_build(RECIPE, _never)
    assert [entry.bytes_count for entry in cache.entries()] == [0, 100]


# processes


def _worker(folder: Path, *, build_s: float = 0.0, lease_s: float = 30.0, user_id: str = "") -> subprocess.Popen[str]:
    arguments = [str(folder), RECIPE.model_dump_json(), str(build_s), str(lease_s), *([user_id] if user_id else [])]
    command = [sys.executable, "-m", "tests.doubles.plan_worker", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _said(worker: subprocess.Popen[str]) -> list[str]:
    with worker:
        assert worker.stdout is not None
        return worker.stdout.read().splitlines()


def _await_building(worker: subprocess.Popen[str]) -> None:
    assert worker.stdout is not None
    assert worker.stdout.readline() == "building\n"


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that builds for very long, seen at it."""
    worker = _worker(tmp_path, build_s=600, lease_s=LEASE_S)
    _await_building(worker)
    yield worker
    worker.kill()
    worker.wait()


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    """Of two workers that start together one builds; both have the same plan."""
    first, second = (_said(worker) for worker in [_worker(tmp_path, build_s=2) for _ in range(2)])
    assert sum(line == "building" for line in (*first, *second)) == 1
    assert {first[-1].split()[0], second[-1].split()[0]} == {"built", "found"}
    assert first[-1].split()[1:] == second[-1].split()[1:]


def test_plan_of_a_killed_builder_is_built_at_once(tmp_path: Path, builder: subprocess.Popen[str]) -> None:
    """A kill -9 in the middle of a build leaves no plan, and the next worker builds without waiting for the lease."""
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert not list(tmp_path.glob("*.plan"))
    start = time.monotonic()
    said: list[str] = []
    assert PlanCache(tmp_path, lease_s=60, log=said.append).get_or_build(RECIPE, lambda: PLAN).built
    assert time.monotonic() - start < 30
    assert said == []


def test_waiting_worker_follows_a_killed_builder(tmp_path: Path, builder: subprocess.Popen[str]) -> None:
    """A worker that was waiting when the builder was killed builds."""
    waiting = _worker(tmp_path, lease_s=60)
    assert waiting.stdout is not None
    assert waiting.stdout.readline().startswith(f"waiting for process {builder.pid} on ")
    builder.send_signal(signal.SIGKILL)
    assert _said(waiting) == ["building", f"built plan of {waiting.pid}"]


def test_builder_that_stands_still_is_taken_over(tmp_path: Path, builder: subprocess.Popen[str]) -> None:
    """A stopped builder gives no sign of life: after the lease another says so and builds; a late plan is not written."""
    builder.send_signal(signal.SIGSTOP)
    said: list[str] = []
    start = time.monotonic()
    taken = PlanCache(tmp_path, lease_s=LEASE_S, log=said.append).get_or_build(RECIPE, lambda: PLAN)
    assert taken.built
    assert time.monotonic() - start > LEASE_S * 0.9
    assert [sentence.split()[0] for sentence in said] == ["waiting", "process"]
    assert f"gave no sign of life for {LEASE_S:g} s; taking over" in said[1]


def test_builder_that_is_alive_is_waited_for(tmp_path: Path, builder: subprocess.Popen[str]) -> None:
    """A build that takes much longer than the lease is not taken over while its process lives."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PlanCache(tmp_path, lease_s=LEASE_S).get_or_build, RECIPE, lambda: PLAN)
        time.sleep(2 * LEASE_S)
        assert not waiting.done()
        builder.kill()
        assert waiting.result(30).built


def test_late_builder_leaves_the_plan_that_stands(tmp_path: Path) -> None:
    """Whoever was taken over and wakes again keeps the plan of the other."""
    late = _worker(tmp_path, build_s=1.5, lease_s=LEASE_S)
    _await_building(late)
    late.send_signal(signal.SIGSTOP)
    taken = PlanCache(tmp_path, lease_s=LEASE_S).get_or_build(RECIPE, lambda: PLAN)
    late.send_signal(signal.SIGCONT)
    assert _said(late)[-1].endswith(PLAN.decode())
    assert PlanCache(tmp_path).get_or_build(RECIPE, _never).plan == taken.plan


def _lease_of_another_machine(folder: Path) -> Path:
    name = Path(RECIPE.plan_name).stem
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.lease-7"
    path.write_text(json.dumps({"machine": "elsewhere", "host": "far", "pid": 1}))
    return path


def test_lease_of_a_machine_that_went_away_runs_out(tmp_path: Path) -> None:
    """A lease of another machine, whose locks cannot be seen from here, is taken over when it has run out."""
    path = _lease_of_another_machine(tmp_path)
    said: list[str] = []
    assert PlanCache(tmp_path, lease_s=0.5, log=said.append).get_or_build(RECIPE, lambda: PLAN).built
    assert "process 1 on far gave no sign of life for 0.5 s" in said[-1]
    assert not path.exists()


def test_lease_of_a_machine_that_lives_is_kept(tmp_path: Path) -> None:
    """A lease of another machine that beats is waited for, however its clock is set."""
    path = _lease_of_another_machine(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PlanCache(tmp_path, lease_s=LEASE_S).get_or_build, RECIPE, lambda: PLAN)
        for beat in range(20):
            os.utime(path, (beat, beat))  # 1970: only the change counts
            time.sleep(LEASE_S / 10)
        assert not waiting.done()
        path.write_bytes(b"")  # given back
        assert waiting.result(30).built


def test_many_threads_hold_a_lease_one_at_a_time(tmp_path: Path) -> None:
    """However many come and go, one at a time is inside, and one small file is what remains."""
    inside: list[int] = []
    most: list[int] = []

    def turn(number: int) -> None:
        with leased(tmp_path, "name", lease_s=30, log=lambda _: None):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.002)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(turn, range(60)))
    assert max(most) == 1
    assert len(most) == 60
    (remaining,) = tmp_path.iterdir()
    assert remaining.read_bytes() == b""


def test_late_claim_gives_way(tmp_path: Path) -> None:
    """Whoever adds a generation that others have passed meanwhile does not hold the lease."""
    with leased(tmp_path, "name", lease_s=30, log=lambda _: None):
        current = max(tmp_path.iterdir())
        current.rename(tmp_path / "name.lease-9")
        assert leases._claimed(tmp_path, "name", 5) is None
        assert is_leased(tmp_path, "name", lease_s=30)


def test_holder_that_never_ends_stops_beating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that hangs for longer than any build takes is taken over although its process lives."""
    monkeypatch.setattr(leases, "_BUILD_MAX_S", 0.0)
    said: list[str] = []
    with (
        leased(tmp_path, "name", lease_s=0.5, log=said.append),
        leased(tmp_path, "name", lease_s=0.5, log=said.append),
    ):
        assert "taking over name" in said[-1]


# folders that cannot be written to


@pytest.fixture
def delivered() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        Path(folder).chmod(0o755)


def test_delivered_folder_is_read(delivered: Path) -> None:
    """Plans that an image delivers are read by a user who cannot write there; what is missing is refused in a sentence."""
    nobody = "65534" if os.geteuid() == 0 else ""
    PlanCache(delivered).get_or_build(RECIPE, lambda: PLAN)
    delivered.chmod(0o555)
    assert _said(_worker(delivered, user_id=nobody)) == ["found a compiled plan"]
    delivered.chmod(0o755)
    PlanCache(delivered).clear()
    delivered.chmod(0o555)
    (line,) = _said(_worker(delivered, user_id=nobody))
    assert line == f"refused: {RECIPE.plan_name} cannot be written to {delivered} (Permission denied); check the folder"


def test_verdict_on_a_delivered_plan_holds_for_the_process(
    cache: PlanCache, standing: StandingPlan, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a verdict cannot be written it holds for this process, one that failed too, and the operator is told."""

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("engines.build.cache.write_verdicts", read_only)
    assert not cache.record(standing.plan, _verdict(standing))
    assert cache.to_serve(RECIPE, Gpu()) == standing.plan
    assert "cannot be kept" in said[-1]
    assert not cache.record(standing.plan, _verdict(standing, "wrong"))
    with pytest.raises(PlanRefused, match="wrong"):
        cache.get(RECIPE)


# the commands


def _call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, ["cache", *map(str, arguments)])
    return result.exit_code, result.output


def test_list_shows_what_stands(cache: PlanCache, standing: StandingPlan, tmp_path: Path) -> None:
    """Each plan is a line: graph, runtime, version, target, precision, batch, size, last use, verdict."""
    cache.get_or_build(_changed(target="sm_80", precision="fp32"), lambda: PLAN)
    cache.record(standing.plan, _verdict(standing))
    (tmp_path / "plans" / "notes.plan").write_bytes(b"not ours")
    code, output = _call("list", tmp_path / "plans")
    head, *lines = output.splitlines()
    assert code == 0
    assert head.split()[:6] == ["graph", "runtime", "version", "target", "precision", "batch"]
    for text in ("abababababababab", "tensorrt", "10.15.1.29", "sm_90", "fp16", "1-8-32", "passed", "unverified"):
        assert text in output
    assert "notes" not in output
    assert len(lines) == 2


def test_list_shows_why_a_plan_is_refused(cache: PlanCache, standing: StandingPlan, tmp_path: Path) -> None:
    """An altered plan, a failed one and one without a sidecar say so in their line."""
    _flip_plan(standing.path)
    failed = cache.get_or_build(_changed(target="sm_80"), lambda: PLAN)
    cache.record(failed.plan, _verdict(failed, "ef: flips"))
    lost = cache.get_or_build(_changed(target="sm_86"), lambda: PLAN)
    _lose_sidecar(lost.path)
    output = _call("list", tmp_path / "plans")[1]
    for text in ("is not the plan its sidecar names", "failed its parity gate", "ef: flips", "can be read"):
        assert text in output


def test_empty_folder_is_said(tmp_path: Path) -> None:
    """A folder without plans is said to have none."""
    assert _call("list", tmp_path) == (0, f"no plans in {tmp_path}\n")
    assert _call("clear", tmp_path) == (0, "nothing was removed\n")


def test_clear_says_what_it_removed(cache: PlanCache, standing: StandingPlan, tmp_path: Path) -> None:
    """One plan by its name, then all: nothing of them remains, and other files are left alone."""
    other = cache.get_or_build(_changed(target="sm_80"), lambda: PLAN)
    cache.record(other.plan, _verdict(other, "wrong"))
    notes = tmp_path / "plans" / "notes.json"
    notes.write_text("mine")
    assert _call("clear", tmp_path / "plans", standing.path.name) == (0, f"removed {standing.path.stem}\n")
    assert other.path.exists()
    assert _call("clear", tmp_path / "plans") == (0, f"removed {other.path.stem}\n")
    assert list((tmp_path / "plans").iterdir()) == [notes]
    code, output = _call("clear", tmp_path / "plans", "nonsense")
    assert code == 2
    assert "no plan nonsense" in output


def test_clear_by_age(cache: PlanCache, standing: StandingPlan, tmp_path: Path) -> None:
    """Only what was not used for so many days is removed."""
    old = cache.get_or_build(_changed(target="sm_80"), lambda: PLAN)
    _aged(old.path, 3 * 86_400 + 60)
    assert _call("clear", tmp_path / "plans", "--older-than", 3) == (0, f"removed {old.path.stem}\n")
    assert standing.path.exists()


def test_clear_leaves_what_is_being_built(cache: PlanCache, standing: StandingPlan, said: list[str]) -> None:
    """A plan that somebody builds just now is left alone, and that is said."""
    with leased(standing.path.parent, standing.path.stem, lease_s=30, log=said.append):
        assert cache.clear() == ()
    assert said == [f"{standing.path.stem} is being built and stays"]
    assert cache.clear() == (standing.path.stem,)
