"""Every module of the engines imports in a bare process: no torch ever, no runtime until one is opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import importlib, json, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Absent())
import engines
names = [module.name for module in pkgutil.walk_packages(engines.__path__, "engines.")]
for name in names:
    importlib.import_module(name)
heavy = {"torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "sklearn", "highdicom", "pynetdicom"}
heavy |= {"cuda", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"}
print(json.dumps({"modules": names, "heavy": sorted(heavy & set(sys.modules))}))
"""


def _imported(root: Path, blocked: str) -> dict[str, list[str]]:
    import json

    done = subprocess.run(
        [sys.executable, "-c", PROBE, blocked], cwd=root, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_module_imports_torch_or_a_runtime(root: Path) -> None:
    """Importing every module of the engines loads neither torch nor a runtime."""
    found = _imported(root, "[]")
    assert {"engines.cli", "engines.selftest", "engines.runtime.openvino_runner"} <= set(found["modules"])
    assert found["heavy"] == []


@pytest.mark.parametrize("blocked", ['["onnxruntime", "openvino", "torch", "onnx", "tensorrt", "cuda"]'])
def test_modules_import_without_the_runtimes(root: Path, blocked: str) -> None:
    """On a machine where no runtime is installed every module still imports."""
    assert _imported(root, blocked)["heavy"] == []
