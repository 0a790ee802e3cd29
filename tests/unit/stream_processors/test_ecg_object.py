"""ECG files as DICOM objects: valid, equal to the file when decoded again, and the same object each time."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from engines.decode.ecg import GENERAL, TWELVE_LEAD, decode_ecg
from engines.decode.ecg_file import read_ecg_file
from engines.errors import InputRefused, RefusalCode
from stream_processors.cli import main
from stream_processors.pacs.ecg_object import Identity, ecg_object, part10_bytes
from tests.doubles import ecg_files as files
from tests.doubles.archive import Archive

STORED = files.steps()
SOMEBODY = Identity(patient_id="P-1", patient_name="Doe^Jane", accession_number="A-1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each format."""
    folder = tmp_path_factory.mktemp("ecg")
    contents = {
        "cardiosoft": files.cardiosoft(STORED),
        "aecg": files.aecg(STORED),
        "muse": files.muse(STORED),
        "philips": files.philips(files.steps(5500)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents} | {"wfdb": files.wfdb(STORED, folder / "record")}


@pytest.mark.parametrize("name", ["cardiosoft", "aecg", "muse", "philips", "wfdb"])
def test_decoding_what_was_sent_gives_what_the_file_holds(name: str, made: dict[str, Path]) -> None:
    """Signal to a millionth of a millivolt, rate, computed leads and filters are those of the file."""
    sent = decode_ecg([io.BytesIO(part10_bytes(ecg_object(made[name], SOMEBODY)))])
    held = read_ecg_file(made[name]).record
    assert np.abs(sent.signal_mv - held.signal_mv).max() < 1e-6
    assert (sent.sampling_rate_hz, sent.derived_leads) == (held.sampling_rate_hz, held.derived_leads)
    assert (sent.highpass_hz, sent.lowpass_hz) == (held.highpass_hz, held.lowpass_hz)
    assert sent.source.sop_class_uid == TWELVE_LEAD


@pytest.mark.parametrize(
    "name", ["hl7_aecg/fda_subject1_0.xml", "wfdb/cinc2021/E07500.hea", "wfdb/ptbdb_s0010_re/s0010_re.hea"]
)
def test_real_files_survive(name: str, sample_data: Path) -> None:
    """Real files come back to a microvolt; 38 s at 1000 Hz need the General ECG object."""
    path = sample_data / "ecg" / name
    sent = decode_ecg([io.BytesIO(part10_bytes(ecg_object(path, SOMEBODY)))])
    held = read_ecg_file(path).record
    assert np.abs(sent.signal_mv - held.signal_mv).max() < 1e-6
    assert sent.source.sop_class_uid == (GENERAL if held.signal_mv.shape[1] > 16_384 else TWELVE_LEAD)


def test_missing_samples_stay_missing(tmp_path: Path) -> None:
    """A sample that the file marks as invalid is padding in the object and not a number when decoded."""
    header = files.wfdb(STORED, tmp_path)
    data = bytearray((tmp_path / "rec.dat").read_bytes())
    data[0:2] = (-(2**15)).to_bytes(2, "little", signed=True)
    (tmp_path / "rec.dat").write_bytes(data)
    sent = decode_ecg([io.BytesIO(part10_bytes(ecg_object(header, SOMEBODY)))])
    assert np.isnan(sent.signal_mv[0, 0])
    assert np.isnan(sent.signal_mv).sum() == 1


def test_large_amplitudes_get_a_coarser_step(tmp_path: Path) -> None:
    """What 16 bits do not hold in the file's step is stored in a coarser one, to a part in 30,000."""
    large = {lead: values * 50 for lead, values in STORED.items()}
    (tmp_path / "file").write_bytes(files.aecg(large))
    sent = decode_ecg([io.BytesIO(part10_bytes(ecg_object(tmp_path / "file", SOMEBODY)))])
    expected = files.expected_mv(large)
    assert np.abs(sent.signal_mv - expected).max() < np.abs(expected).max() / 60_000


@pytest.mark.parametrize("name", ["muse", "philips", "wfdb"])
def test_the_object_is_valid(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    """The validator dciodvfy finds no error."""
    program = shutil.which("dciodvfy")
    if program is None:
        assert os.environ.get("CI") != "true", "dciodvfy is missing; apt-get install dicom3tools"
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    path = tmp_path / "ecg.dcm"
    path.write_bytes(part10_bytes(ecg_object(made[name], SOMEBODY)))
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []
    assert done.returncode == 0


def test_who_it_is(made: dict[str, Path]) -> None:
    """The file names the patient; options win; an ECG of nobody is not sent."""
    plain = ecg_object(made["muse"], Identity())
    assert (plain.PatientID, plain.PatientName, plain.PatientSex, plain.StudyDate) == (
        "MU-1",
        "Doe^Jo",
        "M",
        "20160203",
    )
    stated = ecg_object(made["muse"], SOMEBODY)
    assert (stated.PatientID, stated.PatientName, stated.AccessionNumber) == ("P-1", "Doe^Jane", "A-1")
    with pytest.raises(ValueError, match="--patient-id"):
        ecg_object(made["wfdb"], Identity())


def test_the_same_ecg_is_the_same_study(made: dict[str, Path]) -> None:
    """Two objects of a file are equal to the bit; another patient makes another study."""
    first, again = (part10_bytes(ecg_object(made["aecg"], SOMEBODY)) for _ in range(2))
    assert first == again
    other = ecg_object(made["aecg"], Identity(patient_id="P-2"))
    assert other.StudyInstanceUID != dcmread(io.BytesIO(first)).StudyInstanceUID


def test_what_no_object_holds_is_refused(sample_data: Path) -> None:
    """100 Hz is below what a DICOM ECG may have; a DICOM file needs no conversion."""
    with pytest.raises(InputRefused) as caught:
        ecg_object(sample_data / "ecg/wfdb/ptbxl_04827_lr/04827_lr.hea", SOMEBODY)
    assert caught.value.code is RefusalCode.SAMPLING_RATE_UNSUPPORTED
    with pytest.raises(ValueError, match="without --ecg"):
        ecg_object(sample_data / "ecg/dicom/mortara_12lead_1000hz.dcm", SOMEBODY)


@pytest.fixture(scope="module")
def archive() -> Iterator[Archive]:
    """An archive that takes 12-lead ECGs."""
    opened = Archive((TWELVE_LEAD, str(ExplicitVRLittleEndian)))
    yield opened
    opened.close()


def test_the_command_sends_it(archive: Archive, made: dict[str, Path]) -> None:
    """`purkinje send --ecg` stores the object, a second time under the same UID; nobody's ECG is told and red."""
    address = ["--port", str(archive.port), "--called", archive.ae_title]
    for _ in range(2):
        done = CliRunner().invoke(main, ["send", "--ecg", str(made["wfdb"]), "--patient-id", "P-1", *address])
        assert done.exit_code == 0, done.output
        assert "1 sent" in done.output
    assert list(archive.stored) == [ecg_object(made["wfdb"], Identity(patient_id="P-1")).SOPInstanceUID]
    refused = CliRunner().invoke(main, ["send", "--ecg", str(made["wfdb"]), "--ecg", str(made["muse"]), *address])
    assert refused.exit_code == 1
    assert "--patient-id" in refused.output
    assert "1 sent, 1 skipped" in refused.output
    assert CliRunner().invoke(main, ["send"]).exit_code == 2
