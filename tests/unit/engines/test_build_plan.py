"""A plan is kept whole with its sidecar, or not at all, and is never replaced."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.build import plan as plans
from engines.build.plan import PlanRecipe, PlanRecord, find_plan, read_plan, sidecar_path, write_plan
from engines.errors import PlanBuildFailed

RECIPE = PlanRecipe(
    schema_version=1,
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


def test_name_states_graph_version_and_target() -> None:
    """The file's name changes with the graph, the version and the target, and so do no two of them collide."""
    assert RECIPE.plan_name == "abababababababab-rtx-1.7.1.116-sm_89.plan"
    others = (_changed(graph_sha256="cd" * 32), _changed(version="1.8.0.1"), _changed(target="sm_120"))
    assert len({RECIPE.plan_name, *(other.plan_name for other in others)}) == 4


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
    record, found = read_plan(path)
    assert (record.recipe, found) == (RECIPE, content)


def test_same_recipe_keeps_the_standing_plan(tmp_path: Path) -> None:
    """A second plan of one recipe is not written: the first stays, byte for byte."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    assert write_plan(tmp_path, RECIPE, b"compiled again") == path
    assert read_plan(path)[1] == PLAN
    assert find_plan(tmp_path, RECIPE) == path


@pytest.mark.parametrize("change", [{"batch_maximum": 9}, {"graph_sha256": "ab" * 31 + "cd"}])
def test_other_recipe_is_not_overwritten(tmp_path: Path, change: dict[str, object]) -> None:
    """A plan of another recipe under the same name is left as it is; the error says what differs."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    with pytest.raises(PlanBuildFailed, match=rf"{next(iter(change))} .* \(wanted .*\); remove it"):
        write_plan(tmp_path, _changed(**change), b"other")
    assert read_plan(path) == (PlanRecord.model_validate_json(sidecar_path(path).read_bytes()), PLAN)


def test_altered_plan_is_not_taken(tmp_path: Path) -> None:
    """A plan that is not the one of its sidecar is neither read nor overwritten."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    path.write_bytes(PLAN[:-1] + b"!")
    for call in (lambda: read_plan(path), lambda: write_plan(tmp_path, RECIPE, PLAN)):
        with pytest.raises(PlanBuildFailed, match="not the plan its sidecar names"):
            call()
    assert path.read_bytes() == PLAN[:-1] + b"!"


@pytest.mark.parametrize("sidecar", [None, b"junk", b"{}"])
def test_plan_without_a_sidecar_is_not_taken(tmp_path: Path, sidecar: bytes | None) -> None:
    """A plan whose sidecar is missing or not valid is neither read nor overwritten."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    sidecar_path(path).unlink()
    if sidecar is not None:
        sidecar_path(path).write_bytes(sidecar)
    with pytest.raises(PlanBuildFailed, match="remove it and build again"):
        write_plan(tmp_path, RECIPE, b"other")
    assert path.read_bytes() == PLAN


def test_sidecar_takes_no_other_field(tmp_path: Path) -> None:
    """An unknown field, a missing one, or another precision makes a sidecar invalid."""
    path = write_plan(tmp_path, RECIPE, PLAN)
    stated = json.loads(sidecar_path(path).read_text())
    missing = {name: value for name, value in stated.items() if name != "tf32"}
    for wrong in ({**stated, "more": 1}, missing, {**stated, "precision": "fp16"}, {**stated, "tf32": True}):
        sidecar_path(path).write_text(json.dumps(wrong))
        with pytest.raises(PlanBuildFailed):
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
    assert read_plan(write_plan(tmp_path, RECIPE, PLAN))[1] == PLAN


def test_builds_at_once_do_not_mix(tmp_path: Path) -> None:
    """Of several builds at once one is kept, its plan with its own sidecar."""
    contents = [f"plan {number}".encode() * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda content: write_plan(tmp_path, RECIPE, content), contents))
    (path,) = paths
    assert read_plan(path)[1] in contents


def test_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """A folder that is a file gives one sentence that names it."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PlanBuildFailed, match=r"cannot be written to .*file \(File exists\)"):
        write_plan(tmp_path / "file", RECIPE, PLAN)


def test_plan_and_sidecar_are_durable_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar is in place before the plan."""
    placed: list[str] = []
    place = plans._place

    def watched(path: Path, content: bytes) -> None:
        placed.append(path.suffix)
        place(path, content)

    monkeypatch.setattr(plans, "_place", watched)
    write_plan(tmp_path, RECIPE, PLAN)
    assert placed == [".json", ".plan"]
