"""A clean phantom ECG as the files of carts and archives: one writer per layout.

Each writer stores whole steps of its own size, so that reading gives ``stored * step`` back exactly.
"""

# ruff: noqa: E501 - a line of markup stays one line
from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

from engines.records import LEAD_NAMES

RATE_HZ, STEP_UV = 500, 5.0
EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def steps(samples: int = 5000, seed: int = 1) -> dict[str, np.ndarray]:
    """Stored steps of twelve consistent leads, int64 [samples] by lead; even, so that halves are whole steps."""
    time = np.arange(samples) / RATE_HZ
    rng = np.random.default_rng(seed)
    eight = {
        lead: 4 * np.rint(60 * (index + 2) * np.sin(7 * time + index) + rng.normal(0, 2, samples))
        for index, lead in enumerate(EIGHT)
    }
    one, two = eight["I"], eight["II"]
    limb = {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return {lead: np.asarray((eight | limb)[lead], np.int64) for lead in LEAD_NAMES}


def expected_mv(stored: dict[str, np.ndarray], step_uv: float = STEP_UV) -> np.ndarray:
    """What reading has to give, float32 [12, N]."""
    return (np.stack([stored[lead] for lead in LEAD_NAMES]) * step_uv / 1000).astype(np.float32)


def cardiosoft(stored: dict[str, np.ndarray], *, unit: str = "uVperLsb", nested: bool = False) -> bytes:
    """CardioSoft XML as the UK Biobank has it."""
    count = max(map(len, stored.values()))
    waves = "".join(
        f'<WaveformData lead="{lead}">{",".join(map(str, values))}\n\t</WaveformData>'
        for lead, values in stored.items()
    )
    strip = (
        f'<StripData><NumberOfLeads>{len(stored)}</NumberOfLeads><SampleRate units="Hz">{RATE_HZ}</SampleRate>'
        f'<ChannelSampleCountTotal>{count}</ChannelSampleCountTotal><Resolution units="{unit}">{STEP_UV:g}</Resolution>{waves}</StripData>'
    )
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<CardiologyXML><ObservationType>RestECG</ObservationType>'
        "<ObservationDateTime><Hour>10</Hour><Minute>11</Minute><Second>12</Second><Day>3</Day><Month>2</Month><Year>2016</Year>"
        "</ObservationDateTime><ClinicalInfo><DeviceInfo><Desc>CardioSoft</Desc><SoftwareVer>V6.73</SoftwareVer></DeviceInfo></ClinicalInfo>"
        "<PatientInfo><Name><FamilyName>M\u00fcller</FamilyName><GivenName>Test</GivenName></Name><PID>CS-1</PID><Gender>Female</Gender>"
        "<BirthDateTime><Day>1</Day><Month>4</Month><Year>1950</Year></BirthDateTime></PatientInfo>"
        '<FilterSetting><Filter50Hz>Yes</Filter50Hz><LowPass units="Hz">100</LowPass><HighPass units="Hz">0.08</HighPass></FilterSetting>'
        "<Interpretation><Diagnosis><DiagnosisText>Poor data quality</DiagnosisText></Diagnosis></Interpretation>"
        '<RestingECGMeasurements><MedianSamples><WaveformData lead="I">1,2,3</WaveformData></MedianSamples></RestingECGMeasurements>'
        f"{f'<Strip>{strip}</Strip>' if nested else strip}</CardiologyXML>"
    ).encode("latin-1")


def aecg(stored: dict[str, np.ndarray], *, unit: str = "uV", origin: float = 0.0, sets: int = 1) -> bytes:
    """HL7 annotated ECG; ``sets`` spreads the leads over sequence sets."""
    names = list(stored)
    share = -(-len(names) // sets)
    parts = "".join(
        _sequence_set({lead: stored[lead] for lead in names[at : at + share]}, unit, origin)
        for at in range(0, len(names), share)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><!-- <RestingECG> --><AnnotatedECG xmlns="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><effectiveTime><center value="20160203101112"/></effectiveTime>'
        '<componentOf><timepointEvent><componentOf><subjectAssignment><subject><trialSubject><id root="1.2.3" extension="HL-1"/>'
        '<subjectDemographicPerson><name>AB</name><administrativeGenderCode code="M"/><birthTime value="19500401"/>'
        "</subjectDemographicPerson></trialSubject></subject></subjectAssignment></componentOf></timepointEvent></componentOf>"
        '<component><series><code code="RHYTHM"/><effectiveTime><low value="20160203101112.000"/></effectiveTime>'
        '<controlVariable><controlVariable><code code="MDC_ECG_CTL_VBL_ATTR_FILTER_LOW_PASS"/><component><controlVariable>'
        '<value xsi:type="PQ" value="150" unit="Hz"/></controlVariable></component></controlVariable></controlVariable>'
        f"{parts}<derivation><derivedSeries><code code='REPRESENTATIVE_BEAT'/>{_sequence_set(stored, 'mV', 9)}</derivedSeries></derivation>"
        "</series></component></AnnotatedECG>"
    ).encode()


def _sequence_set(stored: dict[str, np.ndarray], unit: str, origin: float) -> str:
    waves = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}"/><value xsi:type="SLIST_PQ"><origin value="{origin}" unit="{unit}"/>'
        f'<scale value="{STEP_UV}" unit="{unit}"/><digits>{" ".join(map(str, values))}</digits></value></sequence></component>'
        for lead, values in stored.items()
    )
    return (
        '<component><sequenceSet><component><sequence><code code="TIME_ABSOLUTE"/><value xsi:type="GLIST_TS">'
        f'<head value="20160203101112.000"/><increment value="{1000 / RATE_HZ:g}" unit="ms"/></value></sequence></component>{waves}</sequenceSet></component>'
    )


def muse(stored: dict[str, np.ndarray], *, unit: str = "MICROVOLTS", head: str = "", extra: str = "") -> bytes:
    """MUSE XML with the eight leads that MUSE stores."""
    leads = "".join(
        f"<LeadData><LeadSampleCountTotal>{len(values)}</LeadSampleCountTotal><LeadAmplitudeUnitsPerBit>{STEP_UV:g}</LeadAmplitudeUnitsPerBit>"
        f"<LeadAmplitudeUnits>{unit}</LeadAmplitudeUnits><LeadID>{lead}</LeadID><LeadOffsetFirstSample>0</LeadOffsetFirstSample>"
        f"<LeadSampleSize>2</LeadSampleSize><LeadOff>{'TRUE' if lead == 'V6' else 'FALSE'}</LeadOff>"
        f"<WaveFormData>{base64.encodebytes(values.astype('<i2').tobytes()).decode()}</WaveFormData></LeadData>"
        for lead, values in stored.items()
        if lead in EIGHT
    )
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">'
        f"{head}<RestingECG><PatientDemographics><PatientID>MU-1</PatientID><DateofBirth>04-01-1950</DateofBirth><Gender>MALE</Gender>"
        "<PatientLastName>Doe</PatientLastName><PatientFirstName>Jo</PatientFirstName></PatientDemographics>"
        "<TestDemographics><AcquisitionDevice>MAC55</AcquisitionDevice><AcquisitionTime>10:11:12</AcquisitionTime>"
        f"<AcquisitionDate>02-03-2016</AcquisitionDate></TestDemographics>{extra}"
        "<Waveform><WaveformType>Median</WaveformType><SampleBase>500</SampleBase><SampleExponent>0</SampleExponent></Waveform>"
        f"<Waveform><WaveformType>Rhythm</WaveformType><SampleBase>{RATE_HZ}</SampleBase><SampleExponent>0</SampleExponent>"
        f"<HighPassFilter>16</HighPassFilter><LowPassFilter>40</LowPassFilter><ACFilter>50</ACFilter>{leads}</Waveform></RestingECG>"
    ).encode("latin-1")


def philips(stored: dict[str, np.ndarray], *, labels: str = " ".join(LEAD_NAMES), duration_ms: int = 11_000) -> bytes:
    """Philips Sierra XML, XLI-compressed, in UTF-16; the last second stands for the calibration."""
    one, two, three = stored["I"], stored["II"], stored["III"]
    residuals = dict(stored) | {
        "III": two - one - three,
        "aVR": -stored["aVR"] - (one + two) // 2,
        "aVL": (one - three) // 2 - stored["aVL"],
        "aVF": (two + three) // 2 - stored["aVF"],
    }
    packed = b"".join(_xli(residuals[lead]) for lead in stored)
    return (
        '<?xml version="1.0" encoding="utf-16"?><restingecgdata xmlns="http://www3.medical.philips.com"><documentinfo>'
        "<documenttype>PhilipsECG</documenttype><documentversion>1.04</documentversion></documentinfo>"
        '<dataacquisition date="2016-02-03" time="10:11:12"><machine detaildescription="1.0">PageWriter</machine><signalcharacteristics>'
        f"<samplingrate>{RATE_HZ}</samplingrate><resolution>{STEP_UV:g}</resolution><hipass>0.05</hipass><lowpass>150</lowpass>"
        "<acsetting>50</acsetting><notchfiltered>True</notchfiltered><acquisitiontype>STD-12</acquisitiontype>"
        "<numberchannelsallocated>12</numberchannelsallocated></signalcharacteristics></dataacquisition><patient><generalpatientdata>"
        "<patientid>PH-1</patientid><name><lastname>---</lastname><firstname>---</firstname></name><age><dateofbirth>1950-04-01</dateofbirth></age>"
        "<sex>Female</sex></generalpatientdata></patient><waveforms>"
        f'<parsedwaveforms dataencoding="Base64" compression="XLI" numberofleads="12" leadlabels="{labels}" durationperchannel="{duration_ms}">'
        f"{base64.b64encode(packed).decode()}</parsedwaveforms></waveforms></restingecgdata>"
    ).encode("utf-16")


def _xli(values: np.ndarray) -> bytes:
    """One lead: second differences as high bytes then low bytes, each byte a literal 10-bit code, behind eight bytes of header."""
    start = 2 * values[1] - values[0] - values[2]
    coded = np.full(len(values), 64)
    coded[:2] = values[:2]
    coded[2:-1] = 2 * values[2:-1] - values[1:-2] - values[3:] + 64
    words = coded.astype("<i2").view("<u2")
    bits = "".join(f"{byte:010b}" for byte in (*(words >> 8).tolist(), *(words & 255).tolist()))
    bits += "0" * (-len(bits) % 8)
    chunk = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return len(chunk).to_bytes(4, "little") + b"\1\0" + int(start).to_bytes(2, "little", signed=True) + chunk


def wfdb(
    stored: dict[str, np.ndarray], folder: Path, *, kind: int = 16, gain: str | None = None, unit: str = "mV"
) -> Path:
    """A WFDB record of one signal file; the header's path."""
    gain = f"{1000 / STEP_UV:g}(8)" if gain is None else gain
    values = np.stack(list(stored.values()), axis=1) + 8
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rec.dat").write_bytes(_packed(values, kind))
    lines = [f"rec {len(stored)} {RATE_HZ} {len(values)} 10:11:12 03/02/2016"]
    lines += [
        f"rec.dat {kind} {gain}/{unit} 16 0 {values[0, index]} {_checksum(values[:, index])} 0 {lead}"
        for index, lead in enumerate(stored)
    ]
    header = folder / "rec.hea"
    header.write_text("\n".join([*lines, "# Age: 66", "# Sex: Female"]) + "\n")
    return header


def _checksum(values: np.ndarray) -> int:
    return (int(values.sum()) + 2**15) % 2**16 - 2**15


def _packed(values: np.ndarray, kind: int) -> bytes:
    flat = values.ravel()
    if kind in {16, 61, 32}:
        return flat.astype({16: "<i2", 61: ">i2", 32: "<i4"}[kind]).tobytes()
    if kind == 24:
        return flat.astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()
    pairs = flat.reshape(-1, 2) & 0xFFF
    return (
        np.stack([pairs[:, 0] & 255, (pairs[:, 0] >> 8) | ((pairs[:, 1] >> 8) << 4), pairs[:, 1] & 255], axis=1)
        .astype("u1")
        .tobytes()
    )
