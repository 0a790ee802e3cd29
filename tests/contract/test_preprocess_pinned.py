"""Preprocessing is pinned: changing its code without a new ``preprocess_version`` is red.

A released bundle was trained behind one version of this code. ``test_preprocess_pinned.json`` holds, per kind of study, the
newest version and a digest of the syntax tree of every module the kind passes through; docstrings and comments do not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from engines.bundle.reader import load_bundle, released_bundle
from engines.preprocess.registry import prepare
from engines.records import Modality

PINNED = Path(__file__).with_name("test_preprocess_pinned.json")
KINDS = ("echo", "cmr", "ecg")
NOT_RELEASED = ("cmr_volume",)
"""Kinds that no released bundle was trained behind: free to change until one is."""
PACKAGE = "engines.preprocess"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a module without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def imported(tree: ast.Module) -> set[str]:
    """Names of the modules of the package that a module imports."""
    modules = (node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module is not None)
    return {module.removeprefix(f"{PACKAGE}.") for module in modules if module.startswith(f"{PACKAGE}.")}


def modules_of(kind: str, folder: Path) -> list[str]:
    """Every module that a kind passes through, from its own on; the registry's own branches lead to all kinds."""
    reached, ahead = {"registry"}, {kind}
    while ahead:
        name = ahead.pop()
        reached.add(name)
        ahead |= imported(tree_of(folder / f"{name}.py")) - reached
    return sorted(reached - {"spec"})


def spec_classes(kind: str, folder: Path) -> list[ast.ClassDef]:
    """The parameters of a kind: its class in ``spec.py``, and those of further versions, which derive from it."""
    classes = [node for node in tree_of(folder / "spec.py").body if isinstance(node, ast.ClassDef)]
    name = f"{kind.capitalize()}Spec"
    return [node for node in classes if node.name == name or name in map(ast.unparse, node.bases)]


def versions_of(kind: str, folder: Path) -> dict[str, int]:
    """The one version that each spec of a kind accepts."""
    return {
        spec.name: int(ast.unparse(node.annotation).removeprefix("Literal[").removesuffix("]"))
        for spec in spec_classes(kind, folder)
        for node in spec.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "preprocess_version"
    }


def version_of(kind: str, folder: Path) -> int:
    """The newest version of a kind."""
    return max(versions_of(kind, folder).values())


def digest_of(kind: str, folder: Path) -> str:
    """Digest of everything that decides what a kind becomes, except the version itself."""
    parts = [f"{name}\n{ast.dump(tree_of(folder / f'{name}.py'))}" for name in modules_of(kind, folder)]
    fields = [ast.unparse(node) for spec in spec_classes(kind, folder) for node in spec.body]
    parts.append("\n".join(field for field in fields if not field.startswith("preprocess_version")))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def state(folder: Path) -> dict[str, dict[str, object]]:
    """What the file would have to say of the code in a folder."""
    return {
        kind: {"preprocess_version": version_of(kind, folder), "code_sha256": digest_of(kind, folder)} for kind in KINDS
    }


def complaint(kind: str, folder: Path, pinned: dict[str, dict[str, object]]) -> str | None:
    """What is wrong and what to do, or None."""
    found, wanted = state(folder)[kind], pinned[kind]
    if found == wanted:
        return None
    modules = ", ".join(f"{name}.py" for name in modules_of(kind, folder))
    repin = f"python {Path(__file__).relative_to(Path(__file__).parents[2])}"
    if found["preprocess_version"] == wanted["preprocess_version"]:
        return (
            f"the preprocessing of {kind} changed ({modules} or its spec), but preprocess_version is still "
            f"{wanted['preprocess_version']}. Bump it in engines/preprocess/spec.py, in the recipe and in the tests that "
            f"write specs, train and release the bundle again, then pin the new code: {repin}"
        )
    return f"preprocess_version of {kind} is {found['preprocess_version']}, pinned is {wanted['preprocess_version']}: {repin}"


@pytest.fixture
def pinned() -> dict[str, dict[str, object]]:
    """What was pinned."""
    found: dict[str, dict[str, object]] = json.loads(PINNED.read_text())
    return found


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A copy of the preprocessing code to change."""
    return Path(shutil.copytree(root / "engines" / "preprocess", tmp_path / "preprocess"))


def change(path: Path, old: str, new: str) -> None:
    """Replace text that is known to be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_is_the_pinned_one(kind: str, root: Path, pinned: dict[str, dict[str, object]]) -> None:
    """Code and version of each kind are those that the released bundles were trained behind."""
    wrong = complaint(kind, root / "engines" / "preprocess", pinned)
    assert wrong is None, wrong


MUTATIONS = [
    ("cmr", "ventricle.py", "RING_MM = 6.0", "RING_MM = 9.0"),
    ("cmr", "cavity.py", "BEND_COST = 0.1", "BEND_COST = 0.2"),
    ("cmr", "heart_phases.py", "SMOOTHING = 0.04", "SMOOTHING = 0.05"),
    ("cmr", "cmr.py", "(first + last) // 2", "(first + last + 1) // 2"),
    ("echo", "echo_sector.py", "iterations=3", "iterations=2"),
    ("echo", "echo_clean.py", "_SEEN_MIN = 0.2", "_SEEN_MIN = 0.3"),
    ("echo", "echo_overlay.py", "side = spec.overlay_stroke_px + 1", "side = spec.overlay_stroke_px"),
    ("echo", "echo_quality.py", "_SIDES_FROM, _SIDES_TO = 0.15", "_SIDES_FROM, _SIDES_TO = 0.16"),
    ("ecg", "ecg_window.py", '"highpass"', '"lowpass"'),
]


@pytest.mark.parametrize(("kind", "module", "old", "new"), MUTATIONS)
def test_changed_code_is_red(kind: str, module: str, old: str, new: str, copy: Path) -> None:
    """One changed number is red for the kinds that pass through it, green for the others, and says what to do."""
    before = state(copy)
    change(copy / module, old, new)
    wrong = {each: complaint(each, copy, before) for each in KINDS}
    assert {each for each, found in wrong.items() if found} == {kind}
    assert "Bump it in engines/preprocess/spec.py" in str(wrong[kind])
    assert "python tests/contract/test_preprocess_pinned.py" in str(wrong[kind])


def test_shared_code_is_red_for_all_it_serves(copy: Path) -> None:
    """Resampling serves echo and CMR: changing it touches both, not the ECG."""
    before = state(copy)
    change(copy / "resample.py", "(count - 1) / 2.0", "count / 2.0")
    assert {kind for kind in KINDS if complaint(kind, copy, before)} == {"echo", "cmr"}


def test_a_new_parameter_is_red(copy: Path) -> None:
    """A field more in the spec changes what the numbers mean."""
    before = state(copy)
    change(
        copy / "spec.py", "    saturated_run_ms: Positive\n", "    saturated_run_ms: Positive\n    another: Positive\n"
    )
    assert {kind for kind in KINDS if complaint(kind, copy, before)} == {"ecg"}


def test_words_are_free(copy: Path) -> None:
    """Docstrings, comments and layout may change at any time."""
    before = state(copy)
    for module in copy.glob("*.py"):
        text = module.read_text().replace('"""', '"""Reworded: ', 1) if module.stat().st_size else '"""New."""\n'
        module.write_text(f"# a comment\n{text}\n\n# another\n")
    assert state(copy) == before


def test_a_bumped_version_asks_to_be_pinned(copy: Path) -> None:
    """With the version bumped the only thing left to do is to pin it; then all is green again."""
    before = state(copy)
    change(copy / "cmr.py", "(first + last) // 2", "(first + last + 1) // 2")
    text = (copy / "spec.py").read_text()
    head, _, tail = text.partition("class CmrSpec")
    (copy / "spec.py").write_text(f"{head}class CmrSpec{tail.replace('Literal[2]', 'Literal[3]', 1)}")
    wrong = str(complaint("cmr", copy, before))
    assert wrong.startswith("preprocess_version of cmr is 3, pinned is 2")
    assert complaint("cmr", copy, state(copy)) is None


def test_every_module_counts(root: Path) -> None:
    """No module of the package is passed through by nobody."""
    folder = root / "engines" / "preprocess"
    reached = {"spec", "__init__"}.union(*(modules_of(kind, folder) for kind in (*KINDS, *NOT_RELEASED)))
    assert reached == {path.stem for path in folder.glob("*.py")}


def test_the_parsed_version_is_the_real_one(root: Path) -> None:
    """What is read from the source is what the running spec accepts."""
    from engines.preprocess import spec

    for kind in KINDS:
        for name, version in versions_of(kind, root / "engines" / "preprocess").items():
            assert get_args(getattr(spec, name).model_fields["preprocess_version"].annotation) == (version,)


def test_an_older_version_stays_what_it_was() -> None:
    """While a released echo bundle is of version 1, its golden records become the very arrays that were released."""
    bundle = load_bundle(released_bundle(Modality.ECHO))
    for case in bundle.golden():
        found = prepare(case.record, bundle.manifest.preprocess).arrays["clip"]
        assert np.array_equal(found, case.prepared["clip"])


if __name__ == "__main__":
    PINNED.write_text(json.dumps(state(Path(__file__).parents[2] / "engines" / "preprocess"), indent=2) + "\n")
