"""The kind of TensorRT is chosen at run time; where it is missing, the error says what to install."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engines.build import flavour as choosing
from engines.build.flavour import listener, load_flavour
from engines.build.plan import RuntimeName
from engines.errors import DeviceUnavailable
from tests.doubles.cuda import CudaDouble, Gpu
from tests.doubles.plans import needs_rtx
from tests.doubles.tensorrt_builder import BuilderDouble, Severity

MODULES: dict[RuntimeName, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
NAMES = tuple(MODULES)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules by name; every other TensorRT is not there. An exception is raised where it is imported."""
    there: dict[str, Any] = {}
    real = importlib.import_module

    def found(name: str, package: str | None = None) -> Any:
        if not name.startswith("tensorrt"):
            return real(name, package)
        module = there.get(name, ModuleNotFoundError(f"No module named {name!r}"))
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(choosing.importlib, "import_module", found)
    return there


@pytest.mark.parametrize("name", NAMES)
def test_first_module_that_is_there_is_taken(name: RuntimeName, installed: dict[str, Any]) -> None:
    """The full package goes before the bindings alone, and the bindings are enough."""
    full, bindings = MODULES[name]
    installed[bindings] = BuilderDouble(version="10.1.0")
    assert load_flavour(name).module is installed[bindings]
    installed[full] = BuilderDouble(version="11.2.0")
    flavour = load_flavour(name)
    assert (flavour.module, flavour.version, flavour.name) == (installed[full], "11.2.0", name)


@pytest.mark.parametrize("name", NAMES)
def test_missing_library_names_the_command(name: RuntimeName, installed: dict[str, Any]) -> None:
    """Neither module there, or one whose library cannot be loaded: the reasons and the command are said."""
    full, bindings = MODULES[name]
    installed[bindings] = OSError("libnvinfer.so.10: cannot open shared object file")
    with pytest.raises(DeviceUnavailable) as caught:
        load_flavour(name)
    text = str(caught.value)
    assert f"No module named '{full}'; libnvinfer.so.10: cannot open" in text
    assert f"pip install 'purkinje[{'rtx' if name == 'tensorrt-rtx' else 'tensorrt'}]'" in text
    assert ("make tensorrt" in text) == (name == "tensorrt")


def test_folder_of_the_same_name_is_not_taken(installed: dict[str, Any]) -> None:
    """A folder named ``tensorrt`` on the path imports as an empty package: it is passed over."""
    installed["tensorrt"] = ModuleType("tensorrt")
    with pytest.raises(DeviceUnavailable, match="tensorrt is there without a builder"):
        load_flavour("tensorrt")
    installed["tensorrt_bindings"] = BuilderDouble()
    assert load_flavour("tensorrt").module is installed["tensorrt_bindings"]


def test_too_old_library_is_refused(installed: dict[str, Any]) -> None:
    """TensorRT before 10 has other networks: the error says what is needed."""
    installed["tensorrt"] = BuilderDouble(version="8.6.1")
    with pytest.raises(DeviceUnavailable, match=r"TensorRT 8.6.1 is too old; 10 or newer is needed: pip install"):
        load_flavour("tensorrt")


def test_tensorrt_asks_its_probe(installed: dict[str, Any]) -> None:
    """TensorRT compiles for what the probe finds; the probe is asked when a target is, and not at import."""
    installed["tensorrt"] = BuilderDouble(gpu=False)
    asked: list[str] = []

    def probe() -> str:
        asked.append("probe")
        return "sm_86"

    flavour = load_flavour("tensorrt", probe)
    assert not asked
    assert flavour.targets() == ("sm_86",)
    flavour.require_target("sm_86")
    with pytest.raises(ValueError, match="'sm_90'; expected one of sm_86"):
        flavour.require_target("sm_90")
    assert asked == ["probe"] * 3


def test_first_gpu_is_the_default_probe(monkeypatch: pytest.MonkeyPatch, installed: dict[str, Any]) -> None:
    """Nothing said, TensorRT compiles for the first GPU; without one the reason reaches the caller."""
    installed["tensorrt"] = BuilderDouble()
    monkeypatch.setattr(choosing, "open_cuda", lambda: CudaDouble(Gpu(major=8, minor=6), Gpu()))
    assert load_flavour("tensorrt").targets() == ("sm_86",)
    monkeypatch.setattr(choosing, "open_cuda", CudaDouble)
    with pytest.raises(DeviceUnavailable, match="no driver is installed"):
        load_flavour("tensorrt").targets()


@needs_rtx
def test_rtx_needs_no_gpu() -> None:
    """TensorRT-RTX lists what it compiles for, the targets of this product among them, and asks no probe."""

    def probe() -> str:
        msg = "asked"
        raise AssertionError(msg)

    flavour = load_flavour("tensorrt-rtx", probe)
    assert {"sm_80", "sm_86", "sm_89", "sm_120"} <= set(flavour.targets())
    assert "sm_90" not in flavour.targets()
    with pytest.raises(ValueError, match=r"expected one of .*sm_89.* has no others"):
        flavour.require_target("sm_90")
    for wrong in ("89", "SM89", "sm_NONE", "sm_CURRENT", ""):
        with pytest.raises(ValueError, match="expected one of"):
            flavour.require_target(wrong)


def test_one_listener_for_a_library() -> None:
    """A library keeps the first logger it is given: everybody gets the same one."""
    trt = BuilderDouble()
    assert listener(trt) is listener(trt)
    assert listener(trt) is not listener(BuilderDouble())


def test_listener_keeps_errors_and_the_node_that_is_parsed() -> None:
    """Errors are kept in one line each, warnings are not; the node announced last is known; attending forgets both."""
    ear = listener(BuilderDouble())
    ear.log(Severity.VERBOSE, "Parsing node: back to grid [ScatterElements]")
    ear.log(Severity.WARNING, "slow")
    ear.log(Severity.ERROR, "in two\n lines")
    ear.log(Severity.INTERNAL_ERROR, "worse")
    assert (ear.parsing, ear.errors) == (("back to grid", "ScatterElements"), ["in two lines", "worse"])
    ear.attend(None)
    assert (ear.parsing, ear.errors) == (("", ""), [])


def test_nothing_is_imported_before_it_is_needed(root: Path) -> None:
    """Importing the command line loads no TensorRT, no cuda-python and no ONNX."""
    names = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings", "cuda", "onnx")
    code = f"import sys, engines.cli, engines.build.compile; sys.exit(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60).returncode == 0


def test_products_and_recipes_name_the_same_runtimes() -> None:
    """Every runtime a recipe may name can be loaded."""
    products: Mapping[Any, Any] = choosing._PRODUCTS
    assert set(products) == set(NAMES)
