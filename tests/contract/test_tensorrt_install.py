"""``make tensorrt``: the files that name TensorRT agree, and nothing is installed that is not the file they name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

POM = "{http://maven.apache.org/POM/4.0.0}"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment of three lines: Python without TensorRT, its packages in ``packages``."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    (tmp_path / "packages").mkdir()
    script = f"""#!/bin/sh
case "$2" in
*sysconfig*) echo {tmp_path / "packages"} ;;
*tensorrt_bindings*) exit 1 ;;
*) exec {sys.executable} "$@" ;;
esac
"""
    _executable(folder / "bin" / "python", script)
    return folder


def _executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _install(root: Path, environment: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / "deploy" / "setup" / "tensorrt.sh", environment],
        env={"PATH": path, "HOME": str(environment)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_versions_agree(root: Path) -> None:
    """Libraries, checksum and bindings are of one version of TensorRT."""
    folder = root / "deploy" / "tensorrt"
    dependency = ET.parse(folder / "pom.xml").getroot().find(f"{POM}dependencies/{POM}dependency")
    assert dependency is not None
    group, artifact, version, classifier = (
        dependency.findtext(f"{POM}{name}") for name in ("groupId", "artifactId", "version", "classifier")
    )
    assert (group, artifact) == ("org.bytedeco", "tensorrt")
    digest, jar = (folder / "SHA256SUMS").read_text().split()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert jar == f"{artifact}-{version}-{classifier}.jar"
    (bindings,) = re.findall(
        r"^tensorrt-cu13-bindings==([\d.]+)", (folder / "requirements.txt").read_text(), re.MULTILINE
    )
    assert version is not None
    assert bindings.startswith(version.split("-")[0] + ".")


def test_library_that_was_altered_is_not_unpacked(root: Path, environment: Path, tmp_path: Path) -> None:
    """A download whose SHA-256 is not the committed one ends the script, and leaves nothing behind."""
    tools = tmp_path / "tools"
    tools.mkdir()
    jar = (root / "deploy" / "tensorrt" / "SHA256SUMS").read_text().split()[1]
    maven = f"""#!/bin/sh
for option; do case "$option" in -DoutputDirectory=*) folder=${{option#*=}} ;; esac; done
mkdir -p "$folder" && echo altered >"$folder/{jar}"
"""
    _executable(tools / "mvn", maven)
    done = _install(root, environment, f"{tools}:/usr/bin:/bin")
    assert done.returncode == 1
    assert "is not the one of deploy/tensorrt/SHA256SUMS" in done.stderr
    assert not list((tmp_path / "packages").iterdir())


def test_missing_parts_are_named_with_their_command(root: Path, environment: Path, tmp_path: Path) -> None:
    """Without an environment, or without Maven, the script says what to run."""
    done = _install(root, tmp_path / "nowhere", "/usr/bin:/bin")
    assert (done.returncode, "make serve-environment" in done.stderr) == (1, True)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "uname", "env", "sh", "id"):
        (found,) = [folder / name for folder in (Path("/usr/bin"),) if (folder / name).exists()]
        (tools / name).symlink_to(found)
    done = _install(root, environment, str(tools))
    assert (done.returncode, "apt-get install -y --no-install-recommends maven" in done.stderr) == (1, True)
