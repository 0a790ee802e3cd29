"""UK Biobank archives and tables: read as they come, never unpacked, never naming a participant."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from structlog.testing import capture_logs

from engines.errors import InputRefused, RefusalCode
from engines.records import CineStack
from tests.doubles.hearts import small_mr_scan, small_stack, small_subject
from training.data.sources import ukbb_cmr
from training.data.sources.cmr_studies import CmrOptions, open_cmr_studies, usable_studies
from training.phantoms.dicom import Patient, Study, write_cmr

Files = dict[str, bytes]
EIDS = ("1000018", "1000027", "1000036", "1000045")
SHAPE = {"size_px": 24, "spacing_mm": 8.0, "phases": 10, "slice_distance_mm": 15.0, "one_series_per_slice": True}
HEADER = "filename,patientid,series discription,date\n"


@pytest.fixture(scope="module")
def stack() -> CineStack:
    """A tiny heart."""
    return small_stack(1, **SHAPE)


@pytest.fixture(scope="module")
def images(stack: CineStack, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Its DICOM files, one series a slice, by name; the scanner names series in capitals and small letters."""
    folder = tmp_path_factory.mktemp("dicom")
    study = Study(key="ukbb", number=1, patient=Patient(), subject=small_subject(1), description="Heart")
    scan = small_mr_scan(1, **SHAPE)
    paths = write_cmr(study, scan, np.asarray(stack.images_SPHW, np.uint16), stack.trigger_times_ms, folder)
    return {path.name: path.read_bytes() for path in paths}


def renamed(content: bytes, description: str, **elements: object) -> bytes:
    """The same image in a series of another name."""
    dataset = dcmread(io.BytesIO(content))
    dataset.SeriesDescription = description
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def manifest(files: Files) -> bytes:
    """Lines as UK Biobank writes them: the date's comma stands unquoted."""
    rows = [f"{name},X,{dcmread(io.BytesIO(files[name])).SeriesDescription},Jun 3, 2015" for name in files]
    return (HEADER + "\n".join(rows) + "\n").encode()


def archive(path: Path, files: Files, *, listed: bytes | None = None, name: str = "manifest.cvs") -> Path:
    """A bulk archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member, content in files.items():
            file.writestr(member, content)
        if listed is not None:
            file.writestr(name, listed)
    return path


def table(root: Path, text: str, name: str = "ukb1.csv") -> None:
    """A table of participants."""
    (root / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def archived(images: Files, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The heart as one archive."""
    return archive(tmp_path_factory.mktemp("zip") / "a.zip", images, listed=manifest(images)).read_bytes()


@pytest.fixture
def root(tmp_path: Path, archived: bytes) -> Path:
    """Four participants with images of the first visit, and labels of the newer field for three."""
    for eid in EIDS:
        (tmp_path / f"{eid}_20209_2_0.zip").write_bytes(archived)
    rows = ["eid,31-0.0,22420-2.0,24103-2.0,24103-3.0", f"{EIDS[0]},1,55,61.5,20", f"{EIDS[1]},0,50,39,21"]
    table(tmp_path, "\n".join([*rows, f"{EIDS[2]},0,44,,22", f"{EIDS[3]},1,,30,23", "999,1,20,20,20"]) + "\n")
    return tmp_path


def test_a_stack_comes_back_as_it_was_scanned(root: Path, stack: CineStack) -> None:
    """Pixels, geometry and label of a participant; the manifest's stray commas do not matter."""
    studies = open_cmr_studies(root)
    study = studies.read(EIDS[0])
    assert studies.name == "UK Biobank 20209, LVEF of field 24103"
    assert (study.key, study.lvef_percent) == (EIDS[0], 61.5)
    assert np.array_equal(study.stack.images_SPHW, stack.images_SPHW)
    assert study.stack.slice_positions_mm == pytest.approx(stack.slice_positions_mm, abs=1e-3)


def test_one_field_labels_the_whole_set(root: Path) -> None:
    """24103 goes first, and who has no value of it is left out; 22420 only where asked for or where 24103 is empty."""
    assert open_cmr_studies(root).keys == (EIDS[0], EIDS[1], EIDS[3])
    asked = open_cmr_studies(root, CmrOptions(label_field="22420"))
    assert [asked.lvef_percent(key) for key in asked.keys] == [55, 50, 44]
    table(root, f"eid,22420-2.0,24103-2.0\n{EIDS[2]},44,\n")
    assert open_cmr_studies(root).name.endswith("22420")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("f.eid\tf.24103.2.0\n1000018\t33\n", "a.tab"),
        ("eid,p24103_i2\n1000018,33\n", "a.csv"),
        ("participant.eid,participant.p24103_i2\n1000018,33\n", "a.csv"),
        ('"eid","24103-3.0","24103-2.0"\n"1000018","70","33"\n', "a.csv"),
        ("\ufeffn_eid\tn_24103_2_0\n1000018.0\t33\n-1\t34\n", "a.tsv"),
    ],
)
def test_every_generation_of_tables_is_read(tmp_path: Path, images: Files, text: str, name: str) -> None:
    """Column names of UK Biobank's converters and of its research platform mean the same."""
    archive(tmp_path / "1000018_20209_2_0.zip", images)
    table(tmp_path, text, name)
    studies = open_cmr_studies(tmp_path)
    assert {key: studies.lvef_percent(key) for key in studies.keys} == {"1000018": 33.0}


def test_the_wanted_visit_only(tmp_path: Path, images: Files) -> None:
    """Images and labels are of one visit; archives lie in folders below too, long-axis ones do not count."""
    archive(tmp_path / "a" / "1000018_20209_2_0.zip", images)
    archive(tmp_path / "a" / "1000018_20208_2_0.zip", images)
    archive(tmp_path / "b" / "1000027_20209_3_0.zip", images)
    table(tmp_path, "eid,24103-2.0,24103-3.0\n1000018,33,50\n1000027,34,51\n")
    assert open_cmr_studies(tmp_path).keys == ("1000018",)
    repeat = open_cmr_studies(tmp_path, CmrOptions(instance=3))
    assert {key: repeat.lvef_percent(key) for key in repeat.keys} == {"1000027": 51.0}
    with pytest.raises(ValueError, match=r"no archive of instance 2, index 1; the folder has 2_0, 3_0"):
        open_cmr_studies(tmp_path, CmrOptions(index=1))


@pytest.mark.parametrize("name", ["w12345_20250101.csv", "withdrawn.txt", "withdraw12345_7_20250101.txt"])
def test_who_has_withdrawn_is_left_out(root: Path, name: str) -> None:
    """A list of the withdrawn removes its participants, whatever its name among UK Biobank's."""
    table(root, f"{EIDS[1]}\n\n{EIDS[3]}\n", name)
    assert open_cmr_studies(root).keys == (EIDS[0],)


def test_a_doubtful_list_of_the_withdrawn_stops_everything(root: Path) -> None:
    """A line that is no eid, a bare list under another name, and a set of which nobody is left are errors."""
    table(root, "1000018\nnobody\n", "withdrawn.txt")
    with pytest.raises(ValueError, match=r"withdrawn\.txt line 2 is no eid"):
        open_cmr_studies(root)
    table(root, "\n".join(EIDS), "withdrawn.txt")
    with pytest.raises(ValueError, match="all 4 participants with images have withdrawn"):
        open_cmr_studies(root)
    (root / "withdrawn.txt").rename(root / "eids.txt")
    with pytest.raises(ValueError, match=r"eids\.txt is a bare list of numbers; name it withdrawn\.txt"):
        open_cmr_studies(root)


def test_the_band_around_the_threshold_can_be_left_out(root: Path) -> None:
    """Studies of 38 to 42 % are excluded on request, counted in the log, and kept otherwise."""
    with capture_logs() as logs:
        studies = open_cmr_studies(root, CmrOptions(exclude_percent=(38.0, 42.0)))
    assert studies.keys == (EIDS[0], EIDS[3])
    assert [line["excluded"] for line in logs if line["event"] == "data_set.opened"] == [1]
    with pytest.raises(ValueError, match="all 3 studies lie within the excluded"):
        open_cmr_studies(root, CmrOptions(exclude_percent=(10.0, 90.0)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,24103-2.0\nx,33\n", r"none of 1 \.csv.* has a column eid"),
        ("eid,24103-3.0,24104-2.0\n1000018,33,4\n", r"no column of field 24103 or 22420 for instance 2 in ukb1\.csv"),
        ("eid,24103-2.0\n999,33\n", r"field 24103: no value for any participant"),
        ("eid,24103-2.0\n1000018,high\n", r"ukb1\.csv line 2, field 24103 is 'high'"),
        ("eid,24103-2.0\n1000018\n", r"ukb1\.csv line 2 has 1 cells; the header has 2"),
        ("eid,24103-2.0\n1000018,33\n1000018,34\n", r"line 3 gives a participant a second value"),
        ("eid,24103-2.0\n1000018,0.33\n1000027,0.6\n", r"field 24103 holds fractions"),
    ],
)
def test_a_broken_table_says_what_is_wrong(root: Path, text: str, message: str) -> None:
    """Each way a table can be wrong has its sentence, without a participant's number."""
    table(root, text)
    with pytest.raises(ValueError, match=message) as caught:
        open_cmr_studies(root)
    assert not any(eid in str(caught.value) for eid in EIDS)


def test_two_tables_and_a_table_in_another_encoding(root: Path) -> None:
    """The field may stand in one table only, and a table is UTF-8."""
    table(root, "eid,24103-2.0\n1000018,34\n", "ukb2.csv")
    with pytest.raises(ValueError, match=r"field 24103 is in 2 tables \(ukb1\.csv, ukb2\.csv\)"):
        open_cmr_studies(root)
    (root / "ukb2.csv").write_bytes(b"eid,\xff\xfe\n")
    with pytest.raises(ValueError, match=r"ukb2\.csv is not readable as UTF-8"):
        open_cmr_studies(root)


def test_impossible_values_are_counted_and_left_out(root: Path) -> None:
    """InlineVF writes nonsense at times: no study, one in the count."""
    table(root, f"eid,22420-2.0\n{EIDS[0]},50\n{EIDS[1]},-3\n{EIDS[2]},140\n")
    with capture_logs() as logs:
        assert open_cmr_studies(root).keys == (EIDS[0],)
    assert [line["implausible"] for line in logs if line["event"] == "labels.read"] == [2]


def test_the_same_archive_twice(root: Path, images: Files) -> None:
    """Two copies of an archive may differ: an error."""
    archive(root / "copy" / f"{EIDS[0]}_20209_2_0.zip", images)
    with pytest.raises(ValueError, match="1 archives are there twice"):
        open_cmr_studies(root)


def test_a_mixed_series_is_read_where_there_is_none_per_slice(root: Path, images: Files, stack: CineStack) -> None:
    """One series of all slices gives the same stack; with both kinds the series per slice count."""
    uid = {"SeriesInstanceUID": "2.25.77"}
    mixed = {name: renamed(content, "CINE_segmented_SAX", **uid) for name, content in images.items()}
    path = archive(root / f"{EIDS[0]}_20209_2_0.zip", mixed, listed=manifest(mixed), name="manifest.csv")
    studies = open_cmr_studies(root)
    assert np.array_equal(studies.read(EIDS[0]).stack.images_SPHW, stack.images_SPHW)
    archive(path, {**{f"m{name}": content for name, content in mixed.items()}, **images})
    series = {source.series_instance_uid for row in studies.read(EIDS[0]).stack.sources_SP for source in row}
    assert "2.25.77" not in series
    assert len(series) == len(stack.images_SPHW)


@pytest.mark.parametrize("mixed", [False, True])
def test_analysis_screens_of_the_same_place_are_left_out(
    root: Path, images: Files, stack: CineStack, *, mixed: bool
) -> None:
    """A series of another name in the same places, with as many images, never replaces the cine of either kind."""
    cine = {name: renamed(content, "CINE_segmented_SAX") if mixed else content for name, content in images.items()}
    screens = {
        f"s{name}": renamed(
            content, "CINE_segmented_SAX_InlineVF", SeriesInstanceUID="2.99", PixelData=bytes(24 * 24 * 2)
        )
        for name, content in images.items()
    }
    archive(root / f"{EIDS[0]}_20209_2_0.zip", {**cine, **screens})
    assert np.array_equal(open_cmr_studies(root).read(EIDS[0]).stack.images_SPHW, stack.images_SPHW)


def corrupted(path: Path) -> None:
    """Overwrite the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    """Set the flag of encryption in every header."""
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + place] |= 1
            start = content.find(mark, start + 4)
    path.write_bytes(content)


def lying(path: Path) -> None:
    """A file of 64 MiB whose headers say 100 bytes."""
    archive(path, {"bomb.dcm": bytes(64 * 1024**2)})
    stated, claimed = ((64 * 1024**2).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(path.read_bytes().replace(stated, claimed))


@pytest.mark.parametrize(
    ("harm", "code", "reason"),
    [
        (lambda path, _: path.write_bytes(b"no zip"), RefusalCode.UNDECODABLE, "BadZipFile.*fetch it again"),
        (lambda path, _: path.write_bytes(b""), RefusalCode.UNDECODABLE, "not readable"),
        (lambda path, _: corrupted(path), RefusalCode.UNDECODABLE, "not readable"),
        (lambda path, _: path.unlink(), RefusalCode.UNDECODABLE, "FileNotFoundError"),
        (lambda path, _: lying(path), RefusalCode.UNDECODABLE, "not readable"),
        (lambda path, _: encrypted(path), RefusalCode.LIMITS_EXCEEDED, "encrypted"),
        (
            lambda path, files: archive(path, {**files, "../../evil.dcm": b"x"}),
            RefusalCode.LIMITS_EXCEEDED,
            "leads out of it",
        ),
        (lambda path, files: archive(path, {**files, "/evil.dcm": b""}), RefusalCode.LIMITS_EXCEEDED, "leads out"),
        (lambda path, files: archive(path, {**files, "..\\e.dcm": b""}), RefusalCode.LIMITS_EXCEEDED, "leads out"),
        (lambda path, files: archive(path, {**files, "C:e.dcm": b""}), RefusalCode.LIMITS_EXCEEDED, "leads out"),
        (
            lambda path, _: archive(path, {"big.dcm": bytes(ukbb_cmr.LARGEST_ENTRY_BYTES + 1)}),
            RefusalCode.LIMITS_EXCEEDED,
            "more than 8388608 bytes",
        ),
        (
            lambda path, files: archive(path, dict(list(files.items())[:-3]), listed=manifest(files)),
            RefusalCode.UNDECODABLE,
            r"3 of \d+ files of the cine that the manifest lists are missing",
        ),
        (
            lambda path, files: archive(path, {**files, "x.dcm": b"no image"}),
            RefusalCode.UNDECODABLE,
            "not readable as",
        ),
        (
            lambda path, files: archive(path, {name: renamed(each, "cine_LAX") for name, each in files.items()}),
            RefusalCode.NO_SHORT_AXIS_CINE,
            "in 1 series, none named CINE_segmented_SAX_b<k>",
        ),
        (lambda path, _: archive(path, {}), RefusalCode.NO_SHORT_AXIS_CINE, "0 DICOM files"),
    ],
)
def test_an_unusable_archive_refuses_one_study(
    root: Path, images: Files, harm: Callable[[Path, Files], object], code: RefusalCode, reason: str
) -> None:
    """Damage, tricks and other contents refuse their study with a reason without its number, and no other."""
    studies = open_cmr_studies(root)
    harm(root / f"{EIDS[0]}_20209_2_0.zip", images)
    with pytest.raises(InputRefused, match=reason) as caught:
        studies.read(EIDS[0])
    assert caught.value.code is code
    assert EIDS[0] not in str(caught.value)
    assert studies.read(EIDS[1]).lvef_percent == 39


@pytest.mark.parametrize("limit", ["MOST_ENTRIES", "MOST_BYTES"])
def test_an_archive_beyond_the_bounds_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """The number of files and the bytes that the directory of the archive states are bounded."""
    monkeypatch.setattr(ukbb_cmr, limit, 9)
    with pytest.raises(InputRefused, match=r"an archive of \d+ files and \d+ bytes"):
        open_cmr_studies(root).read(EIDS[0])


def test_logs_and_errors_never_name_a_participant(root: Path) -> None:
    """A refused study is logged by a keyed hash that lasts with its salt; the rest are read; nothing is unpacked."""
    (root / f"{EIDS[1]}_20209_2_0.zip").write_bytes(b"no zip")
    before = sorted(root.rglob("*"))
    studies = open_cmr_studies(root, CmrOptions(log_salt=b"a salt of a site"))
    with capture_logs() as logs:
        read = [study.key for study in usable_studies(studies)]
    assert read == [EIDS[0], EIDS[3]]
    assert [line["study"] for line in logs] == [studies.log_name(EIDS[1])]
    assert not any(eid in f"{logs}{studies!r}{studies.read(EIDS[0])!r}" for eid in EIDS)
    assert studies.log_name(EIDS[1]) == open_cmr_studies(root, CmrOptions(log_salt=b"a salt of a site")).log_name(
        EIDS[1]
    )
    assert studies.log_name(EIDS[1]) != open_cmr_studies(root).log_name(EIDS[1])
    assert sorted(root.rglob("*")) == before
