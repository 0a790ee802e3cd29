"""Which layout a folder has, what is said where it has none, and labels.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from engines.errors import InputRefused, RefusalCode
from engines.records import CineStack, SourceInstance
from training.data.sources.cmr_labels import read_labels
from training.data.sources.cmr_studies import LAYOUTS, CmrOptions, FoundStudies, open_cmr_studies, usable_studies

SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="1.3", series_instance_uid="1.4")
STACK = CineStack(
    images_SPHW=np.zeros((1, 1, 2, 2), np.uint16),
    spacing_mm=(1.0, 1.0),
    slice_positions_mm=np.zeros(1),
    trigger_times_ms=np.zeros((1, 1)),
    orientation=(1, 0, 0, 0, 1, 0),
    sources_SP=((SOURCE,),),
)


def load(key: str) -> CineStack:
    """Refuse the second study."""
    if key == "b":
        raise InputRefused(RefusalCode.TOO_FEW_SLICES, "two slices")
    return STACK


def test_one_refused_study_does_not_stop_a_run() -> None:
    """Every usable study is yielded; the refused one leaves a line with its code and without its key."""
    studies = FoundStudies(name="three", lvef_percent_by_key={"c": 60.0, "b": 50.0, "a": 30.0}, load=load)
    with capture_logs() as logs:
        read = list(usable_studies(studies))
    assert [(study.key, study.lvef_percent) for study in read] == [("a", 30.0), ("c", 60.0)]
    assert [(line["event"], line["code"], line["study"]) for line in logs] == [
        ("study.refused", "too_few_slices", studies.log_name("b"))
    ]
    assert studies.log_name("b") != "b"
    with pytest.raises(ValueError, match="no study with this key among 3"):
        studies.read("d")


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    """A wrong path says so and what a data set looks like."""
    with pytest.raises(ValueError, match=r"nowhere is no folder; give the folder of the data set") as caught:
        open_cmr_studies(tmp_path / "nowhere")
    assert all(layout in str(caught.value) for layout in LAYOUTS.values())


def test_an_unknown_layout_says_what_was_found_and_what_is_known(tmp_path: Path) -> None:
    """Files are counted by kind, never named: names may be those of patients. All layouts are described."""
    (tmp_path / "SMITH_JOHN").mkdir()
    (tmp_path / "SMITH_JOHN" / "ed.nii.gz").touch()
    (tmp_path / "SMITH_JOHN" / "x").touch()
    (tmp_path / "1000018_20208_2_0.zip").touch()
    with pytest.raises(ValueError, match="the layout is not recognised: found 1 folders") as caught:
        open_cmr_studies(tmp_path)
    message = str(caught.value)
    assert all(part in message for part in ("1 .nii.gz", "1 .zip", "1 without ending", "no labels.csv"))
    assert all(layout in message for layout in LAYOUTS.values())
    assert not any(name in message for name in ("SMITH", "1000018"))


def test_an_empty_folder_is_no_data_set(tmp_path: Path) -> None:
    """Nothing at all is said as such."""
    with pytest.raises(ValueError, match=r"found 0 folders, files: none; no labels\.csv"):
        open_cmr_studies(tmp_path)


def test_two_layouts_at_once_are_refused(tmp_path: Path) -> None:
    """Archives beside NIfTI files could be the same patients twice."""
    (tmp_path / "1000018_20209_2_0.zip").touch()
    (tmp_path / "1000018.nii.gz").touch()
    with pytest.raises(ValueError, match="the layouts ukbb and nifti at once"):
        open_cmr_studies(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels\.csv has the columns \[\]; id and lvef_percent missing"),
        ("id;lvef_percent\na;3\n", "id and lvef_percent missing"),
        ("id,ef\na,35\n", r"columns \['id', 'ef'\]; lvef_percent missing"),
        ("id,lvef_percent\n", "has a header and no studies"),
        ("id,lvef_percent\n ,35\n", "line 2 has no id"),
        ("id,lvef_percent\na,35\na,35\n", "line 3 repeats an id"),
        ("id,lvef_percent\na,35\nb,\n", r"line 3: LVEF is ''; expected a number from 2 to 98 percent$"),
        ("id,lvef_percent\nb\n", "line 2: LVEF is ''"),
        ("id,lvef_percent\na,0.35\n", "LVEF is '0.35'.*a fraction\\? multiply by 100"),
        ("id,lvef_percent\na,nan\n", "LVEF is 'nan'"),
        ("id,lvef_percent\na,350\n", "LVEF is '350'"),
        ("id,lvef_percent\nz,35\n", "1 labels and 1 studies with images have no id in common"),
    ],
)
def test_broken_labels_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    """Each way the labels can be wrong has its sentence, with the line."""
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_cmr_studies(tmp_path)


def test_labels_are_needed_and_are_text(tmp_path: Path) -> None:
    """Images without the file of labels, or with one in another encoding, are no data set."""
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(ValueError, match=r"no labels\.csv in the folder; write one with the columns id and"):
        open_cmr_studies(tmp_path)
    (tmp_path / "labels.csv").write_bytes("id,lvef_percent\nä,35\n".encode("utf-16"))
    with pytest.raises(ValueError, match="not readable as CSV in UTF-8"):
        open_cmr_studies(tmp_path)


def test_labels_of_a_spreadsheet_are_read(tmp_path: Path) -> None:
    """A byte order mark, blanks, quotes and more columns are what spreadsheets write."""
    (tmp_path / "labels.csv").write_text('\ufeffid, lvef_percent,note\r\n"007", 35.5,"x, y"\r\n', encoding="utf-8")
    assert read_labels(tmp_path) == {"007": 35.5}


def test_what_has_no_counterpart_is_counted(tmp_path: Path) -> None:
    """Labels without images and images without a label are in the log, as numbers."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "labels.csv").write_text("id,lvef_percent\na,35\nz,36\n")
    with capture_logs() as logs:
        assert open_cmr_studies(tmp_path).keys == ("a",)
    counts = {name: logs[0][name] for name in ("studies", "labels_without_images", "images_without_label", "excluded")}
    assert counts == {"studies": 1, "labels_without_images": 1, "images_without_label": 2, "excluded": 0}


def test_options_are_checked() -> None:
    """A band the wrong way round, no time and a salt that hides nothing are mistakes of the caller."""
    with pytest.raises(ValueError, match="exclude_percent is"):
        CmrOptions(exclude_percent=(42.0, 38.0))
    with pytest.raises(ValueError, match="frame_interval_ms is 0"):
        CmrOptions(frame_interval_ms=0)
    with pytest.raises(ValueError, match="log_salt has 1 bytes; expected 8 to 64"):
        CmrOptions(log_salt=b"x")
