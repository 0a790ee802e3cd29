"""UK Biobank rest ECGs with tables of quantities, diagnoses, visits and bodies; pairs with short-axis archives."""

from __future__ import annotations

import pickle
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from engines.errors import InputRefused, RefusalCode
from engines.records import LEAD_NAMES, EcgRecord, SourceInstance
from training.data.pairs import pair_visits
from training.data.sources import ukbb_ecg
from training.data.sources.ukbb_ecg import UkbbOptions, cmr_loader, cmr_visits, ecg_visits, ukbb_ecgs
from training.data.sources.ukbb_fields import CARDIAC_FIELDS, THIRTEEN_TARGETS

EIDS = ("1000018", "1000027", "1000036", "1000045")
SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.1", series_instance_uid="2.25.2")


def cardiosoft(seed: int) -> bytes:
    """A file as GE CardioSoft writes it: twelve comma-separated leads with line breaks, a resolution, Latin-1."""
    samples = np.random.default_rng(seed).integers(-200, 200, (12, 40))
    leads = "".join(
        f'<WaveformData lead="{lead}">{",".join(map(str, row[:20]))},\n\t{",".join(map(str, row[20:]))}</WaveformData>'
        for lead, row in zip(LEAD_NAMES, samples, strict=True)
    )
    strip = f'<StripData><SampleRate units="Hz">500</SampleRate><Resolution units="uVperLsb">5</Resolution>{leads}</StripData>'
    return f'<?xml version="1.0" encoding="ISO-8859-1"?><CardiologyXML>{strip}</CardiologyXML>'.encode("latin-1")


def decode(content: bytes) -> EcgRecord:
    """The least decoder that reads ``cardiosoft``."""
    try:
        strip = ET.fromstring(content).find("StripData")
    except ET.ParseError:
        raise InputRefused(RefusalCode.UNDECODABLE, "no XML") from None
    assert strip is not None
    found = {each.get("lead"): each.text or "" for each in strip.iter("WaveformData")}
    rows = [[5e-3 * int(cell) for cell in found[lead].split(",")] for lead in LEAD_NAMES]
    return EcgRecord(signal_mv=np.array(rows, np.float32), sampling_rate_hz=500.0, source=SOURCE)


MAIN = """eid,53-2.0,31-0.0,21003-2.0,50-2.0,21002-2.0,21001-2.0,24100-2.0,24101-2.0,24103-2.0,24109-2.0,24181-2.0
1000018,2016-05-04,0,61,165,70.5,25.9,147.6,60.3,59.1,57,-18.2
1000027,2016-06-01,1,55,,,,210,140,33.3,41,
1000036,2017-01-09,1,70,180,88,27.2,150,60,60,,
1000045,,0,66,160,61,23.8,,,,,
"""
ILL = """eid,41270-0.0,41270-0.1,41270-0.2,41280-0.0,41280-0.1,41280-0.2
1000018,I10,I48,,2010-02-02,2019-03-03,
1000027,I500,I251,Z951,2012-02-02,2016-06-01,2016-06-01
1000036,,,,,,
1000045,I48,,,2015-01-01,,
"""


def write(root: Path, name: str, text: str) -> None:
    """A table."""
    (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def ukbb(tmp_path: Path) -> Path:
    """Four participants, one folder deeper two of them; a repeat visit and an exercise ECG lie beside."""
    for seed, eid in enumerate(EIDS):
        folder = tmp_path / ("a" if seed < 2 else ".")
        folder.mkdir(exist_ok=True)
        (folder / f"{eid}_20205_2_0.xml").write_bytes(cardiosoft(seed))
    (tmp_path / "1000018_20205_3_0.xml").write_bytes(cardiosoft(9))
    (tmp_path / "1000018_6025_2_0.xml").write_bytes(b"exercise")
    write(tmp_path, "ukb1.csv", MAIN)
    write(tmp_path, "ukb2.csv", ILL)
    return tmp_path


def test_the_eighty_two_fields_have_the_names_of_the_showcase() -> None:
    """24100 to 24181 in order; the thirteen of the published towers are among them."""
    assert list(CARDIAC_FIELDS) == [str(field) for field in range(24100, 24182)]
    assert len(set(CARDIAC_FIELDS.values())) == 82
    expected = {
        "24100": "lvedv",
        "24101": "lvesv",
        "24103": "lvef",
        "24104": "cardiac_output",
        "24105": "lv_mass",
        "24109": "rvef",
        "24110": "la_maximum_volume",
        "24117": "raef",
        "24118": "ascending_aorta_maximum_area",
        "24123": "descending_aorta_distensibility",
        "24124": "wall_thickness_aha1",
        "24139": "wall_thickness_aha16",
        "24140": "wall_thickness",
        "24157": "circumferential_strain",
        "24174": "radial_strain",
        "24180": "longitudinal_strain_segment6",
        "24181": "longitudinal_strain",
    }
    assert {field: CARDIAC_FIELDS[field] for field in expected} == expected
    assert set(THIRTEEN_TARGETS) <= set(CARDIAC_FIELDS.values())
    assert len(THIRTEEN_TARGETS) == 13


def test_a_folder_is_read_with_its_tables(ukbb: Path) -> None:
    """Records by participant; quantities, body and day of the visit; what is empty is absent."""
    found = ukbb_ecgs(ukbb, decode)
    assert [entry.patient for entry in found.entries] == list(EIDS)
    first, second, third, fourth = found.entries
    assert first.recorded == date(2016, 5, 4)
    assert first.targets == {"lvedv": 147.6, "lvesv": 60.3, "lvef": 59.1, "rvef": 57.0, "longitudinal_strain": -18.2}
    assert "rvef" not in third.targets
    assert first.demographics == {"age_years": 61, "height_cm": 165, "weight_kg": 70.5, "bmi_kg_m2": 25.9, "male": 0.0}
    assert second.demographics == {"age_years": 55.0, "male": 1.0}
    assert (fourth.recorded, dict(fourth.targets), dict(fourth.labels)) == (None, {}, {})
    for seed, entry in enumerate(found.entries):
        np.testing.assert_array_equal(found.load(entry.key).signal_mv, decode(cardiosoft(seed)).signal_mv)
    assert pickle.loads(pickle.dumps(found.load))(first.key).sampling_rate_hz == 500.0


def test_diseases_are_prevalent_or_incident_by_the_day_of_the_visit(ukbb: Path) -> None:
    """A code of the day itself was there before; one of years later is incident; no code is no disease."""
    first, second, third, _ = ukbb_ecgs(ukbb, decode).entries
    assert not first.labels["atrial_fibrillation"]
    assert first.labels["incident_atrial_fibrillation"]
    assert second.labels["heart_failure"]
    assert second.labels["coronary_artery_disease"]
    assert not second.labels["myocardial_infarction"]
    assert "incident_heart_failure" not in second.labels
    assert not any(third.labels.values())
    assert len(third.labels) == 16
    assert dict(ukbb_ecgs(ukbb, decode, UkbbOptions(outcomes=False)).entries[1].labels) == {}


@pytest.mark.parametrize("codes", ['"[""I500"", ""I251""]"', "I500|I251", "\"['I50.0', 'I25.1']\""])
def test_the_research_platform_writes_all_codes_in_one_cell(ukbb: Path, codes: str) -> None:
    """The n-th date belongs to the n-th code, wherever empty columns stand."""
    header = "participant.eid,participant.p41270,participant.p41280_a0,participant.p41280_a1,participant.p41280_a2\n"
    write(ukbb, "ukb2.csv", f"{header}1000027,{codes},2012-02-02,2020-06-01,\n")
    second = ukbb_ecgs(ukbb, decode).entry("1000027_2")
    assert second.labels["heart_failure"]
    assert not second.labels["coronary_artery_disease"]
    assert second.labels["incident_coronary_artery_disease"]


def test_defect_11_a_label_of_ejection_fraction_comes_from_the_ejection_fraction(ukbb: Path) -> None:
    """24103, not the end-systolic volume of 24101 that stands beside it; columns may stand in any order."""
    turned = "\n".join(",".join(reversed(line.split(","))) for line in MAIN.splitlines()) + "\n"
    write(ukbb, "ukb1.csv", turned)
    entries = ukbb_ecgs(ukbb, decode).entries
    assert [entry.targets.get("lvef") for entry in entries] == [59.1, 33.3, 60.0, None]
    assert [entry.targets.get("lvesv") for entry in entries] == [60.3, 140.0, 60.0, None]


def test_a_visit_that_is_asked_for_is_taken(ukbb: Path) -> None:
    """The repeat visit has its own file, and its own columns."""
    write(ukbb, "ukb1.csv", MAIN.replace("-2.0", "-3.0"))
    found = ukbb_ecgs(ukbb, decode, UkbbOptions(instance=3))
    assert [entry.key for entry in found.entries] == ["1000018_3"]
    np.testing.assert_array_equal(found.load("1000018_3").signal_mv, decode(cardiosoft(9)).signal_mv)


def test_who_has_withdrawn_is_left_out(ukbb: Path) -> None:
    """Of one all others stay with their own ECGs; when all have withdrawn there is no data set."""
    write(ukbb, "w12345_20250101.csv", "1000027\n")
    found = ukbb_ecgs(ukbb, decode)
    assert [entry.patient for entry in found.entries] == ["1000018", "1000036", "1000045"]
    np.testing.assert_array_equal(found.load("1000036_2").signal_mv, decode(cardiosoft(2)).signal_mv)
    write(ukbb, "w12345_20250102.csv", "\n".join(EIDS))
    with pytest.raises(ValueError, match="all 4 participants with an ECG have withdrawn"):
        ukbb_ecgs(ukbb, decode)


def _tables(**texts: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for name, text in texts.items():
            write(root, f"{name}.csv", text)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: [path.unlink() for path in root.rglob("*_20205_2_*")],
            r"no file <eid>_20205_2_0.xml .* it has 3_0",
        ),
        (lambda root: (root / "a/1000045_20205_2_0.xml").write_bytes(b""), "1 ECGs are there twice"),
        (lambda root: [path.unlink() for path in root.glob("*.csv")], "no table has field 41270 or 41280 or 53"),
        (_tables(ukb2="eid,41270-0.0\n1000018,I10\n"), "no table has field 41280"),
        (_tables(ukb1=MAIN.replace("53-2.0", "54-2.0")), "no table has field 53"),
        (_tables(ukb1=MAIN.replace(",241", ",251")), "a field of 24100 to 24181 at instance 2"),
        (_tables(ukb3=MAIN), "field 53 is in ukb1.csv and in ukb3.csv"),
        (_tables(ukb1=MAIN + MAIN.splitlines()[1] + "\n"), "ukb1.csv line 6 repeats a participant"),
        (_tables(ukb1=MAIN.replace("147.6", "large")), "ukb1.csv line 2, field 24100 is no number"),
        (_tables(ukb1=MAIN.replace("2016-05-04", "4 May")), "line 2, field 53 is no day"),
        (_tables(ukb1=MAIN.replace("33.3", "0.333")), "in percent are expected"),
        (_tables(ukb1=MAIN.replace("04,0,", "04,2,")), "field 31 is neither 0 nor 1"),
        (_tables(ukb2=ILL.replace("I10,", ",")), "1 dates have no code"),
        (_tables(ukb2=ILL.replace("I10", "flu")), "no code of ICD-10"),
        (_tables(ukb2=ILL.replace("2010-02-02", "soon")), "ukb2.csv line 2, field 41280 is no day"),
        (_tables(ukb2=ILL.replace(",,,,,", ",,")), "line 4 has 4 cells; the header has 7"),
        (_tables(list="1000018\n"), "bare list of numbers"),
    ],
)
def test_a_wrong_folder_is_named(ukbb: Path, spoil: Callable[[Path], object], message: str) -> None:
    """Files, tables, columns, lines and cells; no message holds a participant."""
    spoil(ukbb)
    with pytest.raises(ValueError, match=message) as error:
        ukbb_ecgs(ukbb, decode)
    assert not any(eid in str(error.value) for eid in EIDS)


def test_an_implausible_ejection_fraction_is_left_out(ukbb: Path) -> None:
    """A failed analysis is not a heart that ejects everything; the other quantities stay."""
    write(ukbb, "ukb1.csv", MAIN.replace("59.1", "99.9"))
    targets = ukbb_ecgs(ukbb, decode).entries[0].targets
    assert "lvef" not in targets
    assert targets["rvef"] == 57.0


def test_a_damaged_or_huge_file_is_refused(ukbb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the decoder, by the file system and by its size."""
    found = ukbb_ecgs(ukbb, decode)
    (ukbb / "1000036_20205_2_0.xml").write_bytes(b"<CardiologyXML>")
    (ukbb / "1000045_20205_2_0.xml").unlink()
    monkeypatch.setattr(ukbb_ecg, "LARGEST_FILE_BYTES", 100)
    for key, code in (("1000045_2", RefusalCode.UNDECODABLE), ("1000036_2", RefusalCode.UNDECODABLE)):
        with pytest.raises(InputRefused) as refusal:
            found.load(key)
        assert refusal.value.code is code
    with pytest.raises(InputRefused) as refusal:
        found.load("1000018_2")
    assert refusal.value.code is RefusalCode.LIMITS_EXCEEDED


def test_ecgs_and_archives_of_a_visit_make_pairs(ukbb: Path) -> None:
    """By participant and day; who lacks images, an ECG or a day is in none, and moves nobody."""
    for eid in ("1000018", "1000036", "1000045", "1000054"):
        with zipfile.ZipFile(ukbb / f"{eid}_20209_2_0.zip", "w") as archive:
            archive.writestr("manifest.csv", "filename\n")
    with zipfile.ZipFile(ukbb / "1000027_20209_3_0.zip", "w"):
        pass
    ecgs = ukbb_ecgs(ukbb, decode)
    pairs = pair_visits(ecg_visits(ecgs), cmr_visits(ukbb, ecgs), window_days=0)
    assert [(pair.ecg.key, pair.cmr.key) for pair in pairs] == [("1000018_2", "1000018_2"), ("1000036_2", "1000036_2")]
    with pytest.raises(InputRefused, match="none named CINE_segmented_SAX"):
        cmr_loader(ukbb)("1000018_2")
    with pytest.raises(ValueError, match="1 archives of short-axis images, none of a participant with an ECG"):
        cmr_visits(ukbb, ecgs, UkbbOptions(instance=3, index=0))
