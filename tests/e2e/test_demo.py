"""What a newcomer does: the demo, as the installed program, with its files and its promises."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("orthanc_installed")]


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as a user does."""
    program = Path(sys.executable).with_name("purkinje")
    return subprocess.run([program, "demo", *options], capture_output=True, text=True, check=False, timeout=240)


def test_demo_on_phantoms(tmp_path: Path) -> None:
    """Three studies in, three reports out with numbers and intervals; the summary tells what the files say; nothing stays."""
    before = {process.pid for process in psutil.process_iter()}
    result = demo("--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {entry["modality"] for entry in summary} == {"cmr", "echo", "ecg"}
    for entry in summary:
        assert entry["outcome"] in {"reported", "abstained"}
        report = pydicom.dcmread(tmp_path / "reports" / f"{entry['report_sop_instance_uid']}.dcm")
        assert report.StudyInstanceUID == entry["study_instance_uid"]
        assert report.VerificationFlag == "UNVERIFIED"
        for measurement in entry["measurements"]:
            low, high = measurement["interval"]["low"], measurement["interval"]["high"]
            assert low <= measurement["value"] <= high
    answered = [entry for entry in summary if entry["modality"] == "cmr" and entry["outcome"] == "reported"]
    pictures = list((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == len(answered) == 1
    with Image.open(pictures[0]) as picture:
        assert picture.mode == "RGB"
        assert np.ptp(np.asarray(picture)) > 100
    left = [
        p
        for p in psutil.process_iter(["name"])
        if p.pid not in before and p.info["name"] in {"Orthanc", "java", "purkinje"}
    ]
    assert not left


def test_demo_on_real_files(sample_data: Path, tmp_path: Path) -> None:
    """A real clip, a real short-axis cine and a real ECG each end in a stored report: a number, or a reasoned abstention."""
    folder = tmp_path / "input"
    folder.mkdir()
    for name in ("us/echo_a4c_acuson_sequoia_65f_jpegbaseline.dcm", "ecg/dicom/mortara_12lead_1000hz.dcm"):
        (folder / Path(name).name).write_bytes((sample_data / name).read_bytes())
    with tarfile.open(sample_data / "cmr" / "SCD0000101_SC-HF-I-1" / "dicom.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    result = demo("--input", str(folder), "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {entry["modality"] for entry in summary} == {"cmr", "echo", "ecg"}
    for entry in summary:
        assert entry["report_sop_instance_uid"]
        if entry["outcome"] == "reported":
            assert entry["measurements"] or entry["probabilities"]
        else:
            assert entry["outcome"] in {"abstained", "refused"}
            assert entry["reason"]


@pytest.mark.parametrize("given", ["/nowhere/at/all"])
def test_demo_says_what_is_wrong_with_the_input(given: str) -> None:
    """A path that does not exist is an error in one line, without a traceback."""
    result = demo("--input", given)
    assert result.returncode != 0
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr
