"""ECG files: each format is known by its content, read to the stored step, and refused under a typed code where it is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.decode.ecg_file import FORMAT_NAMES, read_ecg_file
from engines.decode.ecg_leads import lead_named
from engines.errors import InputRefused, RefusalCode
from engines.records import LEAD_NAMES
from tests.doubles import ecg_files as files

LIMB = ("III", "aVR", "aVL", "aVF")
STORED = files.steps()
ELEVEN_SECONDS = files.steps(5500)
SMALL = {lead: values // 8 * 2 for lead, values in STORED.items()}
XML: dict[str, tuple[Callable[..., bytes], dict[str, np.ndarray]]] = {
    "CardioSoft XML": (files.cardiosoft, STORED),
    "HL7 aECG": (files.aecg, STORED),
    "MUSE XML": (files.muse, STORED),
    "Philips XML": (files.philips, ELEVEN_SECONDS),
}


def written(data: bytes, folder: Path) -> Path:
    """A file whose name says nothing."""
    path = folder / "file"
    path.write_bytes(data)
    return path


def refusal_of(path: Path) -> InputRefused:
    """The refusal that reading ends in."""
    with pytest.raises(InputRefused) as caught:
        read_ecg_file(path)
    return caught.value


def test_every_format_has_a_test() -> None:
    """The registry holds the formats tested here, DICOM and WFDB, and no other."""
    assert set(FORMAT_NAMES) == {*XML, "DICOM", "WFDB"}


@pytest.mark.parametrize("name", XML)
def test_each_xml_is_recognised_and_read_to_the_step(name: str, tmp_path: Path) -> None:
    """Content decides the format; leads, rate, amplitude and the moment are those that were written; 10 s are kept."""
    write, stored = XML[name]
    found = read_ecg_file(written(write(stored), tmp_path))
    assert found.format == name
    assert found.record.sampling_rate_hz == files.RATE_HZ
    assert found.record.signal_mv == pytest.approx(files.expected_mv(stored)[:, :5000], abs=1e-6)
    assert found.origin.acquired_at is not None
    assert found.origin.acquired_at.isoformat() == "2016-02-03T10:11:12"
    assert (found.origin.birth_date, found.origin.sex is None) == ("19500401", False)
    assert found.steps_mv["V1"] == pytest.approx(files.STEP_UV / 1000)


def test_who_the_files_name(tmp_path: Path) -> None:
    """Patients and filters are those of each file; dashes are no name."""
    found = {name: read_ecg_file(written(write(stored), tmp_path)) for name, (write, stored) in XML.items()}
    assert {name: each.origin.patient_id for name, each in found.items()} == {
        "CardioSoft XML": "CS-1",
        "HL7 aECG": "HL-1",
        "MUSE XML": "MU-1",
        "Philips XML": "PH-1",
    }
    assert [each.origin.patient_name for each in found.values()] == ["M\u00fcller^Test", "AB", "Doe^Jo", None]
    assert [each.record.lowpass_hz for each in found.values()] == [100, 150, 40, 150]
    assert [each.record.highpass_hz for each in found.values()] == [0.08, None, 0.16, 0.05]
    assert [each.notch_hz for each in found.values()] == [50, None, 50, 50]


def test_muse_computes_the_limb_leads_and_says_so(tmp_path: Path) -> None:
    """MUSE stores eight leads; the other four are named as computed, and the cart's own complaint is passed on."""
    record = read_ecg_file(written(files.muse(STORED), tmp_path)).record
    assert record.derived_leads == set(LIMB)
    assert any("computed from I and II" in each for each in record.warnings)
    assert any("electrodes off: V6" in each for each in record.warnings)
    assert any("above 40 Hz" in each for each in record.warnings)


def test_muse_free_text_may_be_unescaped(tmp_path: Path) -> None:
    """A bare ampersand or bracket in a diagnosis does not cost the ECG."""
    data = files.muse(STORED, extra="<Diagnosis>A & B, QRS < 120 ms</Diagnosis>")
    assert read_ecg_file(written(data, tmp_path)).record.signal_mv.shape == (12, 5000)


def test_cardiosoft_variants(tmp_path: Path) -> None:
    """A nested strip is found, lower-case leads are leads, and the cart's own verdict is passed on."""
    lower = {lead.lower(): values for lead, values in STORED.items()}
    found = read_ecg_file(written(files.cardiosoft(lower, nested=True), tmp_path)).record
    assert found.signal_mv == pytest.approx(files.expected_mv(STORED), abs=1e-6)
    assert any("poor" in each for each in found.warnings)


def test_aecg_origin_and_unit(tmp_path: Path) -> None:
    """The origin is added in its unit and a scale in millivolt is a thousand times one in microvolt."""
    found = read_ecg_file(written(files.aecg(STORED, unit="mV", origin=3.0), tmp_path)).record
    assert found.signal_mv == pytest.approx(1000 * files.expected_mv(STORED) + 3.0, rel=1e-6)


@pytest.mark.parametrize("kind", [16, 24, 32, 61, 212])
def test_wfdb_formats_agree_with_the_package(kind: int, tmp_path: Path) -> None:
    """Each signal format gives what the wfdb package gives and what was written; baseline and checksum count."""
    package = pytest.importorskip("wfdb")
    found = read_ecg_file(files.wfdb(SMALL, tmp_path, kind=kind))
    reference = package.rdrecord(str(tmp_path / "rec")) if kind != 61 else None
    assert found.format == "WFDB"
    assert found.record.warnings == ()
    assert found.record.signal_mv == pytest.approx(files.expected_mv(SMALL), abs=1e-6)
    if reference is not None:
        assert found.record.signal_mv == pytest.approx(reference.p_signal.T, abs=1e-6)
    assert (found.origin.sex, str(found.origin.acquired_at)) == ("F", "2016-02-03 10:11:12")


def test_wfdb_marks_and_checksums(tmp_path: Path) -> None:
    """The format's invalid value is no amplitude, and an altered sample is told from its checksum."""
    header = files.wfdb(STORED, tmp_path)
    data = bytearray((tmp_path / "rec.dat").read_bytes())
    data[0:2] = (-(2**15)).to_bytes(2, "little", signed=True)
    (tmp_path / "rec.dat").write_bytes(data)
    record = read_ecg_file(header).record
    assert np.isnan(record.signal_mv[0, 0])
    assert np.isnan(record.signal_mv).sum() == 1
    assert record.warnings == ("The checksums of leads I differ from the header's.",)


def test_lead_order_does_not_matter(tmp_path: Path) -> None:
    """MIMIC has aVF before aVL and PTB-XL writes AVR: leads are found by name."""
    order = ["I", "II", "III", "aVR", "aVF", "aVL", "V6", "V5", "V4", "V3", "V2", "V1"]
    shuffled = {lead.upper(): STORED[lead] for lead in order}
    assert read_ecg_file(files.wfdb(shuffled, tmp_path)).record.signal_mv == pytest.approx(
        files.expected_mv(STORED), abs=1e-6
    )


def test_uids_follow_from_the_content(tmp_path: Path) -> None:
    """The same bytes in another place get the same UIDs; another sample gets others."""
    first = read_ecg_file(files.wfdb(STORED, tmp_path / "a")).record.source
    again = read_ecg_file(files.wfdb(STORED, tmp_path / "b")).record.source
    other = read_ecg_file(files.wfdb(STORED | {"V1": STORED["V1"] + 4}, tmp_path / "c")).record.source
    assert first == again
    assert first.sop_instance_uid not in {other.sop_instance_uid, first.series_instance_uid}


def without(*leads: str) -> dict[str, np.ndarray]:
    """The stored leads but some."""
    return {lead: values for lead, values in STORED.items() if lead not in leads}


def cut(lead: str) -> dict[str, np.ndarray]:
    """One lead ends early."""
    return STORED | {lead: STORED[lead][:4000]}


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><CardiologyXML>&b;</CardiologyXML>'
NO_ROTATION = " ".join(("II", "I", *LEAD_NAMES[2:]))
DAMAGED: dict[str, tuple[Callable[[], bytes], RefusalCode]] = {
    "nothing": (lambda: b"", RefusalCode.UNDECODABLE),
    "a text": (lambda: b"hello world\n", RefusalCode.UNDECODABLE),
    "another XML": (lambda: b"<svg></svg>", RefusalCode.UNDECODABLE),
    "entities": (BOMB.encode, RefusalCode.UNDECODABLE),
    "too many elements": (lambda: b"<CardiologyXML>" + b"<a/>" * 500_000, RefusalCode.LIMITS_EXCEEDED),
    "cardiosoft truncated": (lambda: files.cardiosoft(STORED)[:-3000], RefusalCode.UNDECODABLE),
    "cardiosoft missing lead": (lambda: files.cardiosoft(without("V3")), RefusalCode.LEADS_MISSING),
    "cardiosoft wrong names": (
        lambda: files.cardiosoft({f"ch{lead}": v for lead, v in STORED.items()}),
        RefusalCode.NO_TWELVE_LEAD_GROUP,
    ),
    "cardiosoft without unit": (lambda: files.cardiosoft(STORED, unit=""), RefusalCode.UNIT_UNKNOWN),
    "cardiosoft short lead": (lambda: files.cardiosoft(cut("V2")), RefusalCode.PIXEL_DATA_INCONSISTENT),
    "cardiosoft words": (lambda: files.cardiosoft(STORED).replace(b'"V1">', b'"V1">x,'), RefusalCode.UNDECODABLE),
    "cardiosoft infinite": (lambda: files.cardiosoft(STORED).replace(b'"V1">', b'"V1">inf,'), RefusalCode.UNDECODABLE),
    "cardiosoft without rate": (
        lambda: files.cardiosoft(STORED).replace(b">500<", b"><"),
        RefusalCode.SAMPLING_RATE_UNSUPPORTED,
    ),
    "exercise": (lambda: b"<CardiologyXML><FullDisclosureData/></CardiologyXML>", RefusalCode.NO_TWELVE_LEAD_GROUP),
    "aecg truncated": (lambda: files.aecg(STORED)[:-30], RefusalCode.UNDECODABLE),
    "aecg missing lead": (lambda: files.aecg(without("II")), RefusalCode.LEADS_MISSING),
    "aecg unit": (lambda: files.aecg(STORED, unit="mmHg"), RefusalCode.UNIT_UNKNOWN),
    "aecg without scale": (lambda: files.aecg(STORED).replace(b"<scale", b"<other"), RefusalCode.UNIT_UNKNOWN),
    "aecg one after the other": (lambda: files.aecg(STORED, sets=4), RefusalCode.LEADS_NOT_SIMULTANEOUS),
    "aecg short lead": (lambda: files.aecg(cut("V2")), RefusalCode.PIXEL_DATA_INCONSISTENT),
    "aecg without rate": (
        lambda: files.aecg(STORED).replace(b"increment", b"step"),
        RefusalCode.SAMPLING_RATE_UNSUPPORTED,
    ),
    "aecg without rhythm": (lambda: files.aecg(STORED).replace(b"RHYTHM", b"OTHER"), RefusalCode.NO_TWELVE_LEAD_GROUP),
    "muse truncated": (lambda: files.muse(STORED)[:-300], RefusalCode.UNDECODABLE),
    "muse missing lead": (lambda: files.muse(without("V6")), RefusalCode.LEADS_MISSING),
    "muse unit": (lambda: files.muse(STORED, unit=""), RefusalCode.UNIT_UNKNOWN),
    "muse no base64": (
        lambda: files.muse(STORED).replace(b"<WaveFormData>", b"<WaveFormData>*"),
        RefusalCode.UNDECODABLE,
    ),
    "muse cut": (
        lambda: files.muse(STORED).replace(b"CountTotal>5000", b"CountTotal>5001"),
        RefusalCode.PIXEL_DATA_INCONSISTENT,
    ),
    "muse late lead": (
        lambda: files.muse(STORED).replace(b"FirstSample>0", b"FirstSample>5", 1),
        RefusalCode.LEADS_NOT_SIMULTANEOUS,
    ),
    "philips truncated": (lambda: files.philips(ELEVEN_SECONDS)[:-200], RefusalCode.UNDECODABLE),
    "philips order": (lambda: files.philips(ELEVEN_SECONDS, labels=NO_ROTATION), RefusalCode.UNDECODABLE),
    "philips missing lead": (
        lambda: files.philips(ELEVEN_SECONDS, labels="I II III aVR aVL aVF V1 V2"),
        RefusalCode.LEADS_MISSING,
    ),
    "philips short": (lambda: files.philips(STORED), RefusalCode.PIXEL_DATA_INCONSISTENT),
    "philips boasting": (
        lambda: files.philips(STORED, duration_ms=10),
        RefusalCode.LIMITS_EXCEEDED,
    ),
    "philips compression": (
        lambda: files.philips(STORED).replace("XLI".encode("utf-16-le"), "ZIP".encode("utf-16-le")),
        RefusalCode.UNDECODABLE,
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    """Each damaged or foreign file is refused under its own code."""
    make, expected = DAMAGED[name]
    assert refusal_of(written(make(), tmp_path)).code is expected


def test_damaged_wfdb(tmp_path: Path) -> None:
    """A signal file cut short, absent, elsewhere or in another format, a gain of 0, a foreign unit: each has its code."""
    header = files.wfdb(STORED, tmp_path)
    text, data = header.read_text(), (tmp_path / "rec.dat").read_bytes()

    def code(changed: str, content: bytes = data) -> RefusalCode:
        header.write_text(changed)
        (tmp_path / "rec.dat").write_bytes(content)
        return refusal_of(header).code

    assert code(text, data[:-100]) is RefusalCode.PIXEL_DATA_INCONSISTENT
    assert code(text.replace("rec.dat", "gone.dat")) is RefusalCode.PIXEL_DATA_INCONSISTENT
    assert code(text.replace("rec.dat", "../rec.dat")) is RefusalCode.UNDECODABLE
    assert code(text.replace("rec.dat 16 ", "rec.dat 310 ")) is RefusalCode.UNDECODABLE
    assert code(text.replace("rec.dat 16 ", "rec.dat 16x4 ")) is RefusalCode.UNDECODABLE
    assert code(text.replace("rec.dat 16 ", "rec.dat 16:9 ")) is RefusalCode.LEADS_NOT_SIMULTANEOUS
    assert code(text.replace("200(8)/mV", "0")) is RefusalCode.UNIT_UNKNOWN
    assert code(text.replace("/mV", "/mmHg")) is RefusalCode.UNIT_UNKNOWN
    assert code(text.replace(" V3\n", " V3R\n")) is RefusalCode.LEADS_MISSING
    assert code(text.replace("rec 12", "rec/2 12")) is RefusalCode.UNDECODABLE
    assert code(text.replace(" 500 5000 ", " 500 999999999 ")) is RefusalCode.LIMITS_EXCEEDED


@pytest.mark.parametrize("lead", LEAD_NAMES)
def test_each_spelling_of_a_lead(lead: str) -> None:
    """Any case, with or without the word and its author; right-sided and other leads stay unnamed."""
    assert {lead_named(f"Lead {lead}"), lead_named(lead.lower()), lead_named(f"{lead} (Einthoven)\0")} == {lead}
    assert [lead_named(other) for other in ("V3R", "X", "V", "V7", "IV", "")] == [None] * 6


REAL = {
    "dicom/mortara_12lead_1000hz.dcm": ("DICOM", 1000.0, 10000),
    "dicom/ecgtoolkit_12lead_500hz.dcm": ("DICOM", 500.0, 4999),
    "hl7_aecg/fda_subject1_0.xml": ("HL7 aECG", 500.0, 5000),
    "philips_xml/pagewriter_touch_1_04.xml": ("Philips XML", 500.0, 5000),
    "wfdb/cinc2021/E07500.hea": ("WFDB", 500.0, 5000),
    "wfdb/cinc2021/HR06000.hea": ("WFDB", 500.0, 5000),
    "wfdb/cinc2021/JS20000.hea": ("WFDB", 500.0, 5000),
    "wfdb/ptbdb_s0010_re/s0010_re.hea": ("WFDB", 1000.0, 38400),
    "wfdb/ptbxl_04827_lr/04827_lr.hea": ("WFDB", 100.0, 1000),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str, sample_data: Path) -> None:
    """Real files have the stated rate and length, obey Einthoven and Goldberger to two steps, and no checksum differs."""
    found = read_ecg_file(sample_data / "ecg" / name)
    one, two, three, avr, avl, avf = found.record.signal_mv[:6].astype(float)
    assert (found.format, found.record.sampling_rate_hz, found.record.signal_mv.shape[1]) == REAL[name]
    assert np.abs(one + three - two).max() < 0.0051
    assert np.abs(avr + avl + avf).max() < 0.0101
    assert not any("checksum" in each for each in found.record.warnings)


@pytest.mark.parametrize("name", ["E07500", "HR06000", "JS20000"])
def test_real_wfdb_agrees_with_the_package(name: str, sample_data: Path) -> None:
    """A MATLAB signal file behind its offset gives what the wfdb package gives."""
    package = pytest.importorskip("wfdb")
    path = sample_data / "ecg" / "wfdb" / "cinc2021" / name
    reference = package.rdrecord(str(path))
    assert read_ecg_file(path.with_suffix(".hea")).record.signal_mv == pytest.approx(reference.p_signal.T, abs=1e-6)


def test_real_odd_files(sample_data: Path) -> None:
    """Empty and minimal documents and records of other signals are refused for what they lack."""
    folder = sample_data / "ecg"
    assert refusal_of(folder / "hl7_aecg/odd/empty.xml").code is RefusalCode.NO_TWELVE_LEAD_GROUP
    assert refusal_of(folder / "hl7_aecg/odd/minimum_aecg.xml").code is RefusalCode.LEADS_MISSING
    assert refusal_of(folder / "wfdb/mimic_041s_multiseg/041s01.hea").code is RefusalCode.LEADS_MISSING
    assert refusal_of(folder / "wfdb/mimic_041s_multiseg/041s.hea").code is RefusalCode.UNDECODABLE
