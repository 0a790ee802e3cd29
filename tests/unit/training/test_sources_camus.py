"""CAMUS in both releases: dialects, half beats in either direction, quality, official parts, and broken folders."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from engines.preprocess.spec import EchoSpec
from tests.doubles.echo_videos import smooth_frames
from tests.doubles.hearts import small_loop
from training.data.clip_store_build import build_clip_store
from training.data.sources.camus import Camus
from training.data.sources.videos import UnusableVideo, squared

HEIGHT, WIDTH, FRAMES = 20, 14, 6
SPECS = Path(__file__).parents[1] / "engines" / "test_preprocess_specs.json"
INFO = {
    "ED": "1",
    "ES": f"{FRAMES}",
    "NbFrame": f"{FRAMES}",
    "Sex": "F",
    "Age": "56",
    "ImageQuality": "Good",
    "EF": "61.5",
    "FrameRate": "50.0",
}
OLD_INFO = {**{key: INFO[key] for key in ("ED", "ES", "NbFrame", "Sex", "Age")}, "ImageQuality": "Medium"}
VOLUMES = {"LVedv": "100.0", "LVesv": "40.0"}


def pixels(number: int = 0) -> np.ndarray:
    """A sequence, uint8 [T, H, W], higher than wide."""
    return smooth_frames(FRAMES, HEIGHT, WIDTH, number)


def configure(folder: Path, info: dict[str, str], view: str = "4CH") -> None:
    """Write a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"Info_{view}.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))


def nifti_patient(root: Path, number: int, *, view: str = "4CH", **changes: str) -> Path:
    """A patient of the NIfTI release: columns, rows, frames."""
    folder = root / "database_nifti" / f"patient{number:04d}"
    configure(folder, INFO | changes, view)
    image = nibabel.Nifti1Image(pixels(number).transpose(2, 1, 0), np.diag([0.3, 0.15, 1.0, 1.0]))
    nibabel.save(image, folder / f"{folder.name}_{view}_half_sequence.nii.gz")
    return folder


def metaimage_patient(root: Path, number: int, *, compressed: bool = True, info: dict[str, str] | None = None) -> Path:
    """A patient of the older release: a header and deflated pixels beside it."""
    folder = root / "training" / f"patient{number:04d}"
    configure(folder, info or OLD_INFO | VOLUMES | {"LVef": "60"})
    content, ending = pixels(number).tobytes(), "zraw" if compressed else "raw"
    stem = f"{folder.name}_4CH_sequence"
    header = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {compressed}",
        "TransformMatrix = 1 0 0 0 1 0 0 0 1",
        "ElementSpacing = 0.308 0.154 1",
        f"DimSize = {WIDTH} {HEIGHT} {FRAMES}",
        "ElementType = MET_UCHAR",
        f"ElementDataFile = {stem}.{ending}",
    ]
    (folder / f"{stem}.mhd").write_text("\n".join(header) + "\n")
    (folder / f"{stem}.{ending}").write_bytes(zlib.compress(content) if compressed else content)
    return folder


def test_the_nifti_release(tmp_path: Path) -> None:
    """Upright pixels stretched to the square, EF, quality, frame rate and marks; numbers of frames count from 0."""
    nifti_patient(tmp_path, 1)
    nifti_patient(tmp_path, 2, ED=f"{FRAMES}", ES="1", ImageQuality="Poor")
    source = Camus(root=tmp_path, side_px=10)
    first, second = source.videos()
    assert (first.key, first.patient, first.split) == ("patient0001_4CH", "patient0001", None)
    assert (first.targets, first.quality, first.marks) == ({"lvef": 61.5}, "Good", {"ed": 0, "es": FRAMES - 1})
    assert (second.quality, second.marks) == ("Poor", {"ed": FRAMES - 1, "es": 0})
    frames, times_ms = source.read(second)
    assert np.array_equal(frames, squared(pixels(2), 10))
    assert times_ms == pytest.approx(20.0 * np.arange(FRAMES))


@pytest.mark.parametrize("compressed", [True, False])
def test_the_metaimage_release(tmp_path: Path, *, compressed: bool) -> None:
    """The same pixels from a header with deflated or plain pixels; LVef is the reference; times are unknown."""
    metaimage_patient(tmp_path, 3, compressed=compressed)
    source = Camus(root=tmp_path, side_px=10)
    (entry,) = source.videos()
    assert entry.targets == {"lvef": 60.0, "lvedv_ml": 100.0, "lvesv_ml": 40.0}
    frames, times_ms = source.read(entry)
    assert np.array_equal(frames, squared(pixels(3), 10))
    assert times_ms is None
    _, told_ms = Camus(root=tmp_path, side_px=10, frame_interval_ms=25.0).read(entry)
    assert told_ms == pytest.approx(25.0 * np.arange(FRAMES))


def test_a_full_beat_may_have_its_phases_inside(tmp_path: Path) -> None:
    """In the older release end-systole may lie within the sequence."""
    metaimage_patient(tmp_path, 1, info=OLD_INFO | VOLUMES | {"ES": "3"})
    source = Camus(root=tmp_path, side_px=10)
    (entry,) = source.videos()
    assert entry.marks == {"ed": 0, "es": 2}
    assert len(source.read(entry).frames_TSS) == FRAMES


def test_the_fraction_follows_from_the_volumes(tmp_path: Path) -> None:
    """Without EF and LVef it is stroke volume over end-diastolic volume."""
    metaimage_patient(tmp_path, 1, info=OLD_INFO | VOLUMES)
    (entry,) = Camus(root=tmp_path).videos()
    assert entry.targets["lvef"] == pytest.approx(60.0)


def test_the_official_parts(tmp_path: Path) -> None:
    """Three files name the part of every patient; one missing, doubled or foreign name is told."""
    for number in (1, 2, 3):
        nifti_patient(tmp_path, number)
    folder = tmp_path / "database_split"
    folder.mkdir()
    for number, name in enumerate(("training", "validation", "testing"), start=1):
        (folder / f"subgroup_{name}.txt").write_text(f"patient{number:04d}\n")
    assert [entry.split for entry in Camus(root=tmp_path).videos()] == ["train", "validation", "test"]
    (folder / "subgroup_testing.txt").write_text("patient0002\npatient0003\n")
    with pytest.raises(ValueError, match="names 1 patients more than once"):
        Camus(root=tmp_path).videos()
    (folder / "subgroup_testing.txt").write_text("patient0009\n")
    with pytest.raises(ValueError, match="names 1 patients that are not there and leaves out 1 that are"):
        Camus(root=tmp_path).videos()
    (folder / "subgroup_testing.txt").unlink()
    with pytest.raises(ValueError, match=r"subgroup_testing\.txt missing in database_split"):
        Camus(root=tmp_path).videos()


def test_the_other_view_has_its_own_files(tmp_path: Path) -> None:
    """Two-chamber sequences are read when asked for."""
    nifti_patient(tmp_path, 1)
    nifti_patient(tmp_path, 1, view="2CH", EF="50")
    (entry,) = Camus(root=tmp_path, view="2CH").videos()
    assert (entry.key, entry.targets["lvef"]) == ("patient0001_2CH", 50.0)


def test_through_the_sector_mask_of_serving(tmp_path: Path) -> None:
    """With a specification the frames are masked and square as serving makes them, half a beat or not."""
    loop = small_loop(2, frames=FRAMES)
    frames = np.stack(list(loop.frames.luma(range(FRAMES))))
    folder = nifti_patient(tmp_path, 1)
    image = nibabel.Nifti1Image(frames.transpose(2, 1, 0), np.eye(4))
    nibabel.save(image, folder / f"{folder.name}_4CH_half_sequence.nii.gz")
    spec = EchoSpec(**json.loads(SPECS.read_text())["echo"]).model_copy(update={"size_px": 24})
    source = Camus(root=tmp_path, side_px=24, preprocess=spec)
    reduced, _ = source.read(source.videos()[0])
    assert reduced.shape == (FRAMES, 24, 24)
    assert not reduced[:, 0, 0].any()
    assert reduced[:, 8:16, 8:16].mean() > 20
    with pytest.raises(ValueError, match="side_px is 112, the specification says 24"):
        Camus(root=tmp_path, preprocess=spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ED": "2"}, "patient0001: ED is 2 and ES 6 of 6; a half sequence runs from one to the other"),
        ({"ES": "1"}, "Info_4CH.cfg: ED is 1 and ES 1 of 6 frames"),
        ({"ES": "7"}, "ED is 1 and ES 7 of 6 frames"),
        ({"ES": "2.5"}, "ES is '2.5'; expected a whole number"),
        ({"NbFrame": "none"}, "NbFrame is 'none'; expected a positive number"),
        ({"NbFrame": "7", "ES": "7"}, "the sequence has 6 frames; NbFrame is 7"),
        ({"ImageQuality": "Fair"}, "ImageQuality is 'Fair'; expected Good, Medium, Poor"),
        ({"EF": "161"}, "the ejection fraction is '161'"),
        ({"FrameRate": "0"}, "FrameRate is '0'; expected a positive number"),
    ],
)
def test_a_wrong_configuration_is_told(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    """Each value that cannot be is named with the patient's folder."""
    nifti_patient(tmp_path, 1, **changes)
    source = Camus(root=tmp_path)
    with pytest.raises(UnusableVideo, match=message):
        source.read(source.videos()[0])


def changed(ending: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """A file of the patient with other bytes."""

    def change_file(folder: Path) -> None:
        (path,) = folder.glob(f"*{ending}")
        path.write_bytes(change(path.read_bytes()))

    return change_file


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            changed(".zraw", lambda data: data[:-9]),
            r"pixel file (holds \d+ bytes; its header asks for 1680|is not read)",
        ),
        (changed(".zraw", lambda _: b"no zlib"), "pixel file is not readable"),
        (changed(".zraw", lambda _: zlib.compress(bytes(1681))), "holds 1681 bytes; its header asks for 1680"),
        (changed(".mhd", lambda data: data.replace(b"UCHAR", b"OTHER")), "ElementType is 'MET_OTHER'"),
        (changed(".mhd", lambda data: data.replace(b"14 20 6", b"14 20")), "DimSize is '14 20'"),
        (changed(".mhd", lambda data: data.replace(b"14 20 6", b"99999 99999 6")), "are more than is read"),
        (
            changed(".mhd", lambda data: data.replace(b"= patient", b"= ../patient")),
            r"ElementDataFile is '\.\./patient",
        ),
        (changed(".mhd", lambda data: data + b"\xff"), "header is not readable"),
        (lambda folder: next(folder.glob("*.zraw")).unlink(), "pixel file is not readable"),
        (lambda folder: next(folder.glob("*.mhd")).unlink(), "neither patient0001_4CH_half_sequence.nii.gz nor"),
        (lambda folder: (folder / "Info_4CH.cfg").unlink(), "Info_4CH.cfg is not readable"),
        (lambda folder: configure(folder, OLD_INFO), "states neither EF, nor LVef, nor both"),
    ],
)
def test_a_broken_metaimage_is_told(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    """Cut off, foreign, hostile or missing files name the patient's folder."""
    damage(metaimage_patient(tmp_path, 1))
    source = Camus(root=tmp_path)
    with pytest.raises(UnusableVideo, match=f"patient0001.*{message}"):
        source.read(source.videos()[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((WIDTH, HEIGHT), np.uint8), r"the sequence has the shape \(14, 20\)"),
        (np.full((WIDTH, HEIGHT, FRAMES), 300, np.int16), "the pixels are int16 from outside 0 to 255"),
        (np.full((WIDTH, HEIGHT, FRAMES), np.nan, np.float32), "the pixels are float32"),
    ],
)
def test_a_nifti_file_that_is_no_grey_sequence(tmp_path: Path, values: np.ndarray, message: str) -> None:
    """A single image, or values that are no grey levels."""
    folder = nifti_patient(tmp_path, 1)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{folder.name}_4CH_half_sequence.nii.gz")
    source = Camus(root=tmp_path)
    with pytest.raises(UnusableVideo, match=message):
        source.read(source.videos()[0])


def test_a_nifti_file_that_is_cut_off(tmp_path: Path) -> None:
    """The kind of error is said, with the patient's folder."""
    folder = nifti_patient(tmp_path, 1)
    changed(".nii.gz", lambda data: data[: len(data) // 2])(folder)
    source = Camus(root=tmp_path)
    with pytest.raises(UnusableVideo, match="patient0001: the sequence is not readable as NIfTI"):
        source.read(source.videos()[0])


def test_an_empty_folder_and_fractions_are_told(tmp_path: Path) -> None:
    """No patient at all, or ejection fractions as fractions of one."""
    with pytest.raises(ValueError, match="no folder patientXXXX in"):
        Camus(root=tmp_path).videos()
    nifti_patient(tmp_path, 1, EF="0.6")
    with pytest.raises(ValueError, match="no ejection fraction of CAMUS exceeds 1"):
        Camus(root=tmp_path).videos()


def test_a_store_without_times(tmp_path: Path) -> None:
    """Both releases in one store; where the time base is unknown the store says so."""
    nifti_patient(tmp_path, 1)
    metaimage_patient(tmp_path, 2)
    store = build_clip_store(Camus(root=tmp_path, side_px=10), tmp_path / "store")
    assert store.video("patient0001_4CH").frame_times_ms is not None
    assert store.video("patient0002_4CH").frame_times_ms is None
    assert store.video("patient0002_4CH").quality == "Medium"
