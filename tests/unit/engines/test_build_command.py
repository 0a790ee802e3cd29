"""``purkinje-engine build`` compiles a bundle for the GPU of the machine, or ahead of time for others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engines import cli
from engines.build.flavour import Flavour, load_flavour
from engines.build.plan import read_plan, read_record
from engines.bundle.reader import RELEASED, Bundle, load_bundle
from tests.doubles import bundles
from tests.doubles.plans import needs_rtx
from tests.doubles.tensorrt_builder import BuilderDouble


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny ECG bundle."""
    return load_bundle(bundles.write_tiny(tmp_path_factory.mktemp("bundles") / "ecg"))


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> BuilderDouble:
    """TensorRT on a machine with an H100."""
    trt = BuilderDouble()
    flavour = Flavour(name="tensorrt", title="TensorRT", module=trt, version=trt.__version__, probe=lambda: "sm_90")
    monkeypatch.setattr(cli, "load_flavour", lambda name: flavour if name == "tensorrt" else load_flavour(name))
    return trt


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["build", *map(str, arguments)])


@needs_rtx
def test_plans_ahead_of_time(bundle: Bundle, tmp_path: Path) -> None:
    """Each target gets a plan, a sidecar that names what it is from and for, and the compiler's log."""
    folder = tmp_path / "plans"
    result = _call(bundle.path, "--rtx", "sm_80,sm_120", "--out", folder, "--batch", 1, 2, 4, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    *lines, first, second = result.output.splitlines()
    version = load_flavour("tensorrt-rtx").version
    for text, line, target in zip((first, second), lines, ("sm_80", "sm_120"), strict=True):
        plan = read_plan(Path(text))
        recipe = plan.recipe
        assert (recipe.runtime, recipe.target, recipe.version) == ("tensorrt-rtx", target, version)
        assert (recipe.batch_minimum, recipe.batch_optimum, recipe.batch_maximum) == (1, 2, 4)
        assert (recipe.precision, recipe.tf32, recipe.graph_sha256) == ("fp16", False, bundle.weights_sha256)
        assert line == f"{target}: {len(plan.content) / 1e6:.2f} MB, fp16, batch 1 to 4"
        assert Path(text).with_suffix(".log").read_text()


@needs_rtx
def test_what_stands_there_is_kept(bundle: Bundle, tmp_path: Path) -> None:
    """A second build of the same keeps the plan byte for byte; one of other batch sizes stands beside it."""
    arguments = (bundle.path, "--rtx", "sm_89", "--out", tmp_path)
    first = Path(_call(*arguments).output.splitlines()[-1])
    before = first.read_bytes()
    assert "stands there already" in _call(*arguments).output
    other = Path(_call(*arguments, "--batch", 1, 1, 2).output.splitlines()[-1])
    assert other != first
    assert first.read_bytes() == before


def test_plan_for_the_gpu_of_the_machine(bundle: Bundle, h100: BuilderDouble, tmp_path: Path) -> None:
    """``--target`` compiles with TensorRT, once."""
    arguments = (bundle.path, "--target", "sm_90", "--out", tmp_path)
    result = _call(*arguments)
    assert result.exit_code == 0, result.output
    record = read_record(Path(result.output.splitlines()[-1]))
    assert (record.runtime, record.version, record.target) == ("tensorrt", "10.15.1.29", "sm_90")
    assert _call(*arguments).exit_code == 0
    assert len(h100.builds) == 1


def test_wrong_use_is_explained(bundle: Bundle, h100: BuilderDouble, tmp_path: Path) -> None:
    """Wrong targets, sizes and precisions are usage errors, not tracebacks, and nothing is compiled."""
    wrong: list[tuple[Any, ...]] = [
        (bundle.path,),
        (bundle.path, "--target", "sm_90", "--rtx", "sm_89"),
        (bundle.path, "--target", "sm_80"),
        (bundle.path, "--target", "sm_90", "--batch", 3, 2, 1),
        (RELEASED / "cmr_risk", "--target", "sm_90", "--precision", "fp16"),
    ]
    for arguments in wrong:
        result = _call(*arguments, "--out", tmp_path / "plans")
        assert result.exit_code == 2, result.output
        assert ("expected one of --target and --rtx" in result.output) == (arguments in wrong[:2])
        assert "expected" in result.output or "build it in fp32" in result.output
    assert not h100.networks
    assert not (tmp_path / "plans").exists()


@needs_rtx
def test_wrong_target_of_many_compiles_none(bundle: Bundle, tmp_path: Path) -> None:
    """One target of a list that does not exist stops the command before the first build."""
    result = _call(bundle.path, "--rtx", "sm_89,sm_90", "--out", tmp_path / "plans")
    assert result.exit_code == 2
    assert "expected one of" in result.output
    assert not (tmp_path / "plans").exists()


@pytest.mark.parametrize(("option", "extra"), [("--rtx", "rtx"), ("--target", "tensorrt")])
def test_missing_library_names_the_extra(
    option: str, extra: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the library the command says in one line what to install."""
    for module in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    result = _call(bundle.path, option, "sm_89", "--out", tmp_path / "plans")
    assert result.exit_code == 1
    assert result.output.startswith("Error: TensorRT")
    assert f"pip install 'purkinje[{extra}]'" in result.output
