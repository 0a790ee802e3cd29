"""A plan is kept whole with its sidecar, or not at all, and is never replaced."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engines.build import plan as plans
from engines.build.plan import Plan, PlanRecipe, PlanRecord, find_plan, locked, read_plan, sidecar_path, write_plan
from engines.errors import PlanBuildFailed, PlanRefused

RECIPE = PlanRecipe(
    schema_version=2,
    runtime="tensorrt-rtx",
    version="1.7.1.116",
    target="sm_89",
    precision="fp32",
    tf32=False,
    batch_minimum=1,
    batch_optimum=2,
    batch_maximum=8,
    graph_sha256="ab" * 32,
)
PLAN = b"a compiled plan"


def _changed(**changes: object) -> PlanRecipe:
    return PlanRecipe.model_validate({**RECIPE.model_dump(), **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": "cd" * 32},
        {"graph_sha256": "ab" * 31 + "cd"},
        {"runtime": "tensorrt"},
        {"version": "1.8.0.1"},
        {"target": "sm_120"},
        {"precision": "fp16"},
        {"tf32": True},
        {"batch_minimum": 2},
        {"batch_optimum": 3},
        {"batch_maximum": 9},
    ],
)
def test_name_and_key_change_with_every_part(change: dict[str, object]) -> None:
    """The key is that of the whole recipe, and so no two recipes share a name."""
    assert RECIPE.key != _changed(**change).key
    assert RECIPE.plan_name != _changed(**change).plan_name


def test_name_states_graph_runtime_target_and_precision() -> None:
    """The file's name says what a person looks for; the last letters are those of the key."""
    assert RECIPE.plan_name == f"abababababababab-rtx-1.7.1.116-sm_89-fp32-{RECIPE.key[:8]}.plan"
    other = _changed(runtime="tensorrt", version="10.15.1", precision="bf16")
    assert other.plan_name == f"abababababababab-trt-10.15.1-sm_89-bf16-{other.key[:8]}.plan"


def test_key_is_stable() -> None:
    """The key depends on the recipe alone, also where it is read from a sidecar."""
    canonical = json.dumps(RECIPE.model_dump(), sort_keys=True, separators=(",", ":"))
    assert RECIPE.key == hashlib.sha256(canonical.encode()).hexdigest()
    record = PlanRecord.model_validate({**RECIPE.model_dump(), "plan": {"sha256": "ef" * 32, "bytes": 1}})
    assert (record.key, record.plan_name) == (RECIPE.key, RECIPE.plan_name)


@pytest.mark.parametrize("change", [{"batch_optimum": 9}, {"batch_minimum": 3}, {"batch_minimum": 0}])
def test_batch_sizes_are_in_order(change: dict[str, object]) -> None:
    """A recipe whose batch sizes are not positive and in order is refused."""
    with pytest.raises(ValidationError):
        _changed(**change)


def test_sidecar_says_what_the_plan_is(tmp_path: Path) -> None:
    """The sidecar holds the digests of plan and graph, version, target, batch sizes and precision, as JSON."""
    path = write_plan(tmp_path / "new" / "folder", RECIPE, PLAN)
    stated = json.loads(sidecar_path(path).read_text())
    assert stated.pop("plan") == {"sha256": hashlib.sha256(PLAN).hexdigest(), "bytes": len(PLAN)}
    assert stated == RECIPE.model_dump()
    assert path.read_bytes() == PLAN
    assert sorted(path.parent.iterdir()) == sorted([path, sidecar_path(path)])


@settings(deadline=None, max_examples=20)  # each example waits for the disk
@given(st.binary(min_size=1, max_size=200))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Reading gives the plan and the recipe that were written."""
    path = write_plan(tmp_path_factory.mktemp("plans"), RECIPE, content)
    assert read_plan(path) == Plan(recipe=RECIPE, content=content, sha256=hashlib.sha256(content).hexdigest())


def test_same_recipe_keeps_the_standing_plan(tmp_path: Path) -> None:
    """A second plan of one recipe is not written: the first stays, byte for byte."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    assert write_plan(tmp_path, RECIPE, b"compiled again") == path
    assert read_plan(path).content == PLAN
    assert find_plan(tmp_path, RECIPE) == path


@pytest.mark.parametrize("change", [{"batch_maximum": 9}, {"version": "1.6"}, {"target": "sm_86"}])
def test_other_recipe_under_this_name_is_not_taken(tmp_path: Path, change: dict[str, object]) -> None:
    """A plan of another recipe under this name is neither taken nor overwritten; the error says what differs."""
    other = write_plan(tmp_path / "other", _changed(**change), b"other")
    path = tmp_path / RECIPE.plan_name
    other.rename(path)
    sidecar_path(other).rename(sidecar_path(path))
    for call in (lambda: find_plan(tmp_path, RECIPE), lambda: write_plan(tmp_path, RECIPE, PLAN)):
        with pytest.raises(PlanRefused, match=rf"{next(iter(change))} .* \(wanted .*\); remove it"):
            call()
    assert path.read_bytes() == b"other"
    assert read_plan(write_plan(tmp_path, RECIPE, PLAN, replace_altered=True)).content == PLAN


def test_altered_plan_is_not_taken(tmp_path: Path) -> None:
    """A plan that is not the one of its sidecar is neither read nor overwritten."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    path.write_bytes(PLAN[:-1] + b"!")
    for call in (lambda: read_plan(path), lambda: write_plan(tmp_path, RECIPE, PLAN)):
        with pytest.raises(PlanRefused, match="not the plan its sidecar names"):
            call()
    assert path.read_bytes() == PLAN[:-1] + b"!"
    assert read_plan(write_plan(tmp_path, RECIPE, b"again", replace_altered=True)).content == b"again"


def test_whole_plan_is_never_replaced(tmp_path: Path) -> None:
    """Also whoever may replace what is altered leaves a whole plan as it is."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    assert write_plan(tmp_path, RECIPE, b"late", replace_altered=True) == path
    assert read_plan(path).content == PLAN


@pytest.mark.parametrize("sidecar", [None, b"junk", b"{}"])
def test_plan_without_a_sidecar_is_not_taken(tmp_path: Path, sidecar: bytes | None) -> None:
    """A plan whose sidecar is missing or not valid is neither read nor overwritten."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    sidecar_path(path).unlink()
    if sidecar is not None:
        sidecar_path(path).write_bytes(sidecar)
    with pytest.raises(PlanRefused, match="remove it and build again"):
        write_plan(tmp_path, RECIPE, b"other")
    assert path.read_bytes() == PLAN


def test_sidecar_takes_no_other_field(tmp_path: Path) -> None:
    """An unknown field, a missing one, an unknown precision, or another schema makes a sidecar invalid."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    stated = json.loads(sidecar_path(path).read_text())
    missing = {name: value for name, value in stated.items() if name != "tf32"}
    for wrong in ({**stated, "more": 1}, missing, {**stated, "precision": "int8"}, {**stated, "schema_version": 1}):
        sidecar_path(path).write_text(json.dumps(wrong))
        with pytest.raises(PlanRefused):
            read_plan(path)


@pytest.mark.parametrize("step", [1, 2])
def test_interrupted_write_leaves_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A write that dies at any step leaves no plan and no scratch, and the next one succeeds."""
    calls, replace = 0, Path.replace

    def dying(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            write_plan(tmp_path, RECIPE, PLAN)
    assert find_plan(tmp_path, RECIPE) is None
    assert all(path.suffix == ".json" for path in tmp_path.iterdir())
    assert read_plan(write_plan(tmp_path, RECIPE, PLAN)).content == PLAN


def test_builds_at_once_do_not_mix(tmp_path: Path) -> None:
    """Of several builds at once one is kept, its plan with its own sidecar."""
    contents = [f"plan {number}".encode() * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda content: write_plan(tmp_path, RECIPE, content), contents))
    (path,) = paths
    assert read_plan(path).content in contents


def test_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """A folder that is a file gives one sentence that names it."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PlanBuildFailed, match=r"cannot be written to .*file \(File exists\)"):
        write_plan(tmp_path / "file", RECIPE, PLAN)


def test_plan_and_sidecar_are_durable_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar is in place before the plan."""
    placed: list[str] = []
    place = plans.place

    def watched(path: Path, content: bytes) -> None:
        placed.append(path.suffix)
        place(path, content)

    monkeypatch.setattr(plans, "place", watched)
    write_plan(tmp_path, RECIPE, PLAN)
    assert placed == [".json", ".plan"]


def test_scratch_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    """What a writer left that was killed is gone after the next write."""
    (tmp_path / ".plan-dead").mkdir()
    (tmp_path / ".plan-dead" / RECIPE.plan_name).write_bytes(b"half")
    path = write_plan(tmp_path, RECIPE, PLAN)
    assert sorted(tmp_path.iterdir()) == sorted([path, sidecar_path(path)])


def test_folder_that_another_holds_is_not_waited_for_endlessly(tmp_path: Path) -> None:
    """A writer that stands still while it holds the folder makes the others give up in time, and they say so."""
    with (
        locked(tmp_path),
        pytest.raises(OSError, match=r"another process has held it for 0\.1 s"),
        locked(tmp_path, 0.1),
    ):
        pytest.fail("held twice")


def test_writer_waits_for_the_folder(tmp_path: Path) -> None:
    """A writer waits until the folder is free."""
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            waiting = pool.submit(write_plan, tmp_path, RECIPE, PLAN)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
        assert read_plan(waiting.result(30)).content == PLAN
