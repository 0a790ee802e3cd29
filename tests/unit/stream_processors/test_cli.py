"""The command line: light, readable, honest in its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stream_processors.cli import main
from stream_processors.events import Failure
from stream_processors.publisher import Publisher, utc_now
from tests.doubles.archive import free_port
from tests.doubles.log import FaultyLog
from tests.doubles.pacs import FakePacs, claim_of


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: FaultyLog) -> pytest.MonkeyPatch:
    """Settings whose log exists and whose PACS does not answer."""
    for name in list(os.environ):
        if name.startswith("PURKINJE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PURKINJE_SITE_URL", "https://hospital.example")
    monkeypatch.setenv("PURKINJE_LOG", f"sqlite://{tmp_path}/log.db")
    monkeypatch.setenv("PURKINJE_PACS__REST__URL", f"http://127.0.0.1:{free_port()}")
    return monkeypatch


def test_help_needs_none_of_the_heavy_libraries() -> None:
    """``purkinje --help`` answers without numpy, pydicom, highdicom, pydantic or a runtime."""
    heavy = ("numpy", "pydicom", "pynetdicom", "highdicom", "pydantic", "httpx", "structlog", "onnxruntime", "openvino")
    code = (
        "import sys\nfrom stream_processors.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_explains_itself() -> None:
    """Each command has a help text of at least one sentence."""
    names = ["run", "send", "status", "check", "settings", "replay", "dead-letter"]
    listed = CliRunner().invoke(main, ["--help"]).output
    for name in names:
        assert f"  {name}" in listed
        shown = CliRunner().invoke(main, [name, "--help"])
        assert shown.exit_code == 0
        assert "." in shown.output


def test_settings_are_shown_masked(env: pytest.MonkeyPatch) -> None:
    """The effective settings are JSON without secrets."""
    env.setenv("PURKINJE_PACS__REST__USERNAME", "u")
    env.setenv("PURKINJE_PACS__REST__PASSWORD", "hunter2")
    done = CliRunner().invoke(main, ["settings"])
    assert done.exit_code == 0
    assert json.loads(done.output)["pacs"]["rest"]["password"] == "**********"
    assert "hunter2" not in done.output


def test_wrong_settings_are_told_with_exit_code_2(env: pytest.MonkeyPatch) -> None:
    """Whoever misspells a variable reads its name and what is known."""
    env.setenv("PURKINJE_GRUOP", "x")
    done = CliRunner().invoke(main, ["settings"])
    assert done.exit_code == 2
    assert "PURKINJE_GRUOP" in done.output


def test_status_without_a_pacs_says_so(env: pytest.MonkeyPatch) -> None:
    """What does not answer is named, what does is shown all the same."""
    done = CliRunner().invoke(main, ["status", "--json"])
    found = json.loads(done.output)
    assert done.exit_code == 1
    assert found["pacs"]["ok"] is False
    assert found["log"]["ok"] is True
    assert found["lag"] == {f"purkinje.study.ready.{name}.v1": 0 for name in ("cmr", "echo", "ecg")}
    assert found["dead_letters"] == 0
    assert "ConnectError" in CliRunner().invoke(main, ["status"]).output


def test_dead_letters_are_listed_and_redriven(env: pytest.MonkeyPatch, log: FaultyLog) -> None:
    """The list shows the reason; after redriving it is empty and the message lies on its topic again."""
    claim = claim_of(FakePacs(), "ecg")
    log.append(claim.topic, key=claim.study_instance_uid, headers=claim.headers(), value=claim.value())
    (record,) = log.read(claim.topic)
    failure = Failure(
        error="builtins.KeyError",
        message="",
        attempts=1,
        first_failed_utc=utc_now(),
        last_failed_utc=utc_now(),
        code_version="0.1.0",
    )
    Publisher(log).bury(record, failure)
    (row,) = json.loads(CliRunner().invoke(main, ["dead-letter", "list", "--json"]).output)
    assert (row["id"], row["error"]) == (f"{claim.topic}/0/{record.offset}", "builtins.KeyError")
    assert "KeyError" in CliRunner().invoke(main, ["dead-letter", "list"]).output
    other = CliRunner().invoke(main, ["dead-letter", "redrive", "--yes", "--id", "nothing"])
    assert "0 announced again" in other.output
    declined = CliRunner().invoke(main, ["dead-letter", "redrive"], input="n\n")
    assert declined.exit_code == 1
    done = CliRunner().invoke(main, ["dead-letter", "redrive", "--yes", "--error", "KeyError", "--since", "1h"])
    assert "1 announced again" in done.output
    assert json.loads(CliRunner().invoke(main, ["dead-letter", "list", "--json"]).output) == []
    assert len(list(log.read(claim.topic))) == 2


def test_sending_to_nobody_fails_with_a_message(tmp_path: Path, sample_data: Path) -> None:
    """A PACS that does not answer is one sentence and an exit code."""
    file = sample_data / "ecg" / "dicom" / "mortara_12lead_1000hz.dcm"
    done = CliRunner().invoke(main, ["send", str(file), "--port", str(free_port()), "--timeout-s", "1"])
    assert done.exit_code == 1
    assert "cannot be reached" in done.output


def test_sending_nothing_usable_is_not_well(tmp_path: Path) -> None:
    """A folder without DICOM files sends nothing and says why."""
    (tmp_path / "notes.txt").write_text("hello")
    done = CliRunner().invoke(main, ["send", str(tmp_path)])
    assert done.exit_code == 1
    assert "DICM prefix" in done.output
    assert "0 sent, 1 skipped, 0 not sent" in done.output
