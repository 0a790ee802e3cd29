"""A canary patient: the name, ID and birth date stay between the PACS and the processor."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pydicom
import pytest
from rich.console import Console

from stream_processors.local.arrivals import Arrival
from stream_processors.local.demo import send, wait_for_outcomes
from stream_processors.local.stack import LocalStack, QuietTimes

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("orthanc_installed")]

NAME, PATIENT_ID, BIRTH_DATE = "KANARIENVOGEL^TESTPATIENT", "CANARY7719443", "19310713"
CANARIES = ("KANARIENVOGEL", PATIENT_ID, BIRTH_DATE)


def as_canary(truth: dict[str, Any], folder: Path) -> Arrival:
    """The study of a phantom, given to the canary patient."""
    folder.mkdir()
    files = []
    for source in map(Path, truth["files"]):
        dataset = pydicom.dcmread(source)
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, PATIENT_ID, BIRTH_DATE
        dataset.save_as(folder / source.name)
        files.append(folder / source.name)
    return Arrival(truth["study_instance_uid"], tuple(files))


def test_the_canary_is_nowhere_but_in_the_pacs(
    phantoms: list[dict[str, Any]], tmp_path: Path, console: Console
) -> None:
    """Logs, topics, status, settings and named temporary files never hold the canary; the report in the PACS does."""
    chosen = [next(truth for truth in phantoms if truth["modality"] == modality) for modality in ("ecg", "echo", "cmr")]
    arrivals = [as_canary(truth, tmp_path / f"send{number}") for number, truth in enumerate(chosen)]
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(arrivals[0].files[0].read_bytes()[:-1000])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    quiet = QuietTimes(echo_s=1.0, cmr_s=2.0)
    with LocalStack(tmp_path / "stack", quiet=quiet, processor_environment={"TMPDIR": str(scratch)}) as stack:
        storage = stack.orthanc.folder / "storage"
        send(stack, arrivals, console)
        account = wait_for_outcomes(stack, [arrival.study_instance_uid for arrival in arrivals], console)
        assert len(account.outcomes) == 3
        paired = [each["cross_modal"] for ends in account.outcomes.values() for each in ends if each.get("cross_modal")]
        assert paired, "ECG and cardiac MR of the canary were not compared: what that writes was not searched"
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "status.json").write_text(str(stack.plugin_status()))
        in_pacs = subprocess.run(["grep", "-rlaF", "KANARIENVOGEL", str(storage)], capture_output=True, check=False)
        assert in_pacs.stdout, "the check cannot fail: the canary never reached the PACS"
        shutil.copytree(stack.folder, outside / "stack", ignore=shutil.ignore_patterns(storage.name))
    for canary in CANARIES:
        found = subprocess.run(
            ["grep", "-rlaF", canary, str(outside), str(scratch)], capture_output=True, text=True, check=False
        )
        assert not found.stdout, f"{canary} in {found.stdout}"
