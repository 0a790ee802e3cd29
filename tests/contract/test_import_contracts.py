"""The import directions hold, and a planted violation of each turns the check red."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("orthanc_plugin", "engines", "stream_processors", "training")
VIOLATIONS = {
    "layers: a worker imports a worker": (
        "stream_processors/planted.py",
        "import training.phantoms\n",
        "Workers import owners",
    ),
    "layers: an owner imports a worker": ("engines/planted.py", "import stream_processors\n", "Workers import owners"),
    "layers: an owner imports an owner": (
        "engines/planted.py",
        "import orthanc_plugin.wire\n",
        "Workers import owners",
    ),
    "one-door": ("stream_processors/planted.py", "import orthanc_plugin.announcer\n", "wire only"),
    "training-needs-no-wire": ("training/planted.py", "import orthanc_plugin.wire\n", "never touches the wire"),
    "serving-without-torch": ("engines/planted.py", "import torch\n", "imports torch"),
    "kafka-in-one-module": ("stream_processors/planted.py", "import kafka\n", "Only the Kafka log"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter in a copy of the packages."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(folder), "PATH": ""},
    )


@pytest.fixture
def packages(root: Path, tmp_path: Path) -> Path:
    """A copy of the packages and their contracts."""
    shutil.copy(root / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "bundles"))
    return tmp_path


def test_the_contracts_hold(packages: Path) -> None:
    """The packages as they are break no import contract."""
    result = lint(packages)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_planted_violation_is_red(packages: Path, violation: str) -> None:
    """Each contract notices an import that breaks it."""
    path, line, contract = VIOLATIONS[violation]
    (packages / path).write_text(line)
    result = lint(packages)
    assert result.returncode == 1
    broken = [text for text in result.stdout.splitlines() if text.endswith("BROKEN")]
    assert any(contract in text for text in broken), result.stdout
