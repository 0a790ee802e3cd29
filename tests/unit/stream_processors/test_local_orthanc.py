"""The launcher of a local Orthanc: what it says when something is missing, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream_processors.local import orthanc as local
from stream_processors.local.orthanc import LocalOrthanc, OrthancMissing, find_orthanc


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed: the error carries one command that installs everything."""
    monkeypatch.setattr(local.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(local, "_PLUGIN_FOLDERS", ())
    with pytest.raises(OrthancMissing, match="sudo apt-get install orthanc orthanc-python orthanc-dicomweb"):
        find_orthanc()


def test_only_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Orthanc and one plugin are there: only the other plugin is asked for."""
    monkeypatch.setattr(local.shutil, "which", lambda *_, **__: "/usr/sbin/Orthanc")
    (tmp_path / "libOrthancPython.so").touch()
    monkeypatch.setattr(local, "_PLUGIN_FOLDERS", (str(tmp_path),))
    with pytest.raises(OrthancMissing, match=r"install orthanc-dicomweb$"):
        find_orthanc()


def test_the_configuration_stays_on_loopback_and_in_the_folder(tmp_path: Path) -> None:
    """Remote access is off, everything lies in the given folder, and our section is what was asked for."""
    orthanc = LocalOrthanc(tmp_path, plugin={"Log": "sqlite:///x"}, configuration={"StableAge": 7})
    written = orthanc._full_configuration([Path("/p.so")])
    assert written["RemoteAccessAllowed"] is False
    assert written["Purkinje"] == {"Log": "sqlite:///x"}
    assert written["StableAge"] == 7
    folders = [written[key] for key in ("StorageDirectory", "IndexDirectory", "TemporaryDirectory")]
    assert all(Path(folder).is_relative_to(tmp_path.resolve()) for folder in folders)
    assert json.dumps(written)


def test_without_plugin_no_script_is_loaded(tmp_path: Path) -> None:
    """The plain arm of a comparison has neither our script nor our section."""
    written = LocalOrthanc(tmp_path)._full_configuration([])
    assert not {"PythonScript", "Purkinje"} & set(written)
