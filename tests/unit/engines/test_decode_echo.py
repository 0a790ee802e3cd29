"""Ultrasound decoding: what a clip shows is read from its header, frames come as luma one at a time, doubts are refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from engines.decode import echo
from engines.decode.echo import APICAL_FOUR_CHAMBER, DicomFrames, decode_echo
from engines.decode.headers import parsed
from engines.errors import InputRefused, NotApplicable, Refusal, RefusalCode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

HEIGHT, WIDTH, FRAMES = 48, 64, 12
A4C = "echo_a4c_acuson_sequoia_65f_jpegbaseline.dcm"


def grey(frames: int = FRAMES) -> np.ndarray:
    """Frames whose mean tells their number: uint8 [T, H, W]."""
    ramp = np.arange(WIDTH, dtype=np.uint8)[None, None] + np.zeros((frames, HEIGHT, 1), np.uint8)
    return ramp + (10 * np.arange(frames, dtype=np.uint8))[:, None, None]


def header(pixels: np.ndarray, photometric: str = "MONOCHROME2", syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """A complete ultrasound multi-frame dataset of frames [T, H, W] or [T, H, W, 3], 40 ms apart."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = echo.US_MULTI_FRAME, "2.25.10"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "2.25.11", "2.25.12", "US"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape[:3]
    dataset.SamplesPerPixel = pixels.shape[3] if pixels.ndim == 4 else 1
    if pixels.ndim == 4:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.FrameTime = "40"
    dataset.PixelData = pixels.tobytes()
    return dataset


def written(dataset: Dataset) -> io.BytesIO:
    """The dataset as a Part 10 file in memory."""
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer


def clip(frames: int = FRAMES, **elements: Any) -> io.BytesIO:
    """A grey clip with some elements set, or removed where the value is None."""
    dataset = header(grey(frames))
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return written(dataset)


def region(space: int = 1, data: int = 1, box: tuple[int, int, int, int] = (4, 2, 59, 41), **elements: Any) -> Dataset:
    """A calibrated region (PS3.3 C.8.5.5)."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = space, data, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX, item.PhysicalDeltaY = 0.05, 0.04
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def view(value: str, scheme: str = "SCT") -> list[Dataset]:
    """A view code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "a view"
    return [item]


def only(instance: io.BytesIO) -> Any:
    """The one loop of one instance."""
    (loop,) = decode_echo([instance])
    return loop


def refusal_of(*instances: Any) -> RefusalCode:
    """Code of the refusal that decoding ends in."""
    with pytest.raises(InputRefused) as caught:
        decode_echo(instances)
    return caught.value.code


@pytest.mark.parametrize("sop_class", echo.ULTRASOUND)
def test_each_ultrasound_class_is_read(sop_class: str) -> None:
    """Current and retired, multi-frame and single-frame classes with several frames are clips alike."""
    loop = only(clip(SOPClassUID=sop_class))
    assert (len(loop.frames), loop.frames.shape_HW) == (FRAMES, (HEIGHT, WIDTH))
    assert loop.source.sop_class_uid == sop_class


REFUSALS: dict[str, tuple[Callable[[], io.BytesIO], RefusalCode]] = {
    "one image": (lambda: clip(1), RefusalCode.NO_B_MODE_CINE),
    "number of frames absent": (lambda: clip(1, NumberOfFrames=None), RefusalCode.NO_B_MODE_CINE),
    "a volume": (lambda: clip(SOPClassUID=echo.ENHANCED_US_VOLUME), RefusalCode.NO_B_MODE_CINE),
    "colour region": (
        lambda: clip(SequenceOfUltrasoundRegions=[region(), region(data=2)]),
        RefusalCode.COLOUR_DOPPLER,
    ),
    "spectral": (
        lambda: clip(SequenceOfUltrasoundRegions=[region(), region(space=3, data=3)]),
        RefusalCode.NO_B_MODE_CINE,
    ),
    "M-mode": (lambda: clip(SequenceOfUltrasoundRegions=[region(space=2)]), RefusalCode.NO_B_MODE_CINE),
    "dual": (
        lambda: clip(SequenceOfUltrasoundRegions=[region(), region(box=(60, 0, 63, 40))]),
        RefusalCode.NO_B_MODE_CINE,
    ),
    "another view by code": (
        lambda: clip(ViewCodeSequence=view("399232001")),
        RefusalCode.VIEW_NOT_APICAL_FOUR_CHAMBER,
    ),
    "another view by name": (lambda: clip(ViewName="PLAX"), RefusalCode.VIEW_NOT_APICAL_FOUR_CHAMBER),
    "no time base": (lambda: clip(FrameTime=None), RefusalCode.FRAME_RATE_UNKNOWN),
    "two seconds a frame": (lambda: clip(FrameTime="2000"), RefusalCode.FRAME_RATE_UNKNOWN),
    "too many frames": (lambda: clip(NumberOfFrames=10**6), RefusalCode.LIMITS_EXCEEDED),
    "too large": (lambda: clip(Rows=65535, Columns=65535), RefusalCode.LIMITS_EXCEEDED),
    "too small": (lambda: clip(Rows=0), RefusalCode.LIMITS_EXCEEDED),
    "sixteen bits": (lambda: clip(BitsAllocated=16), RefusalCode.PIXEL_DATA_INCONSISTENT),
    "no rows": (lambda: clip(Rows=None), RefusalCode.UNDECODABLE),
    "a region without a box": (
        lambda: clip(SequenceOfUltrasoundRegions=[region(RegionLocationMinX0=None)]),
        RefusalCode.UNDECODABLE,
    ),
    "two chambers by name": (lambda: clip(SeriesDescription="A2C"), RefusalCode.VIEW_NOT_APICAL_FOUR_CHAMBER),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    """Each unusable clip is refused under its own code."""
    make, expected = REFUSALS[name]
    assert refusal_of(make()) is expected


@pytest.mark.parametrize(
    "syntax",
    ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.103.1", "1.2.840.10008.1.2.4.107"],
)
def test_video_streams_are_refused(syntax: str) -> None:
    """MPEG2, H.264 and HEVC are named as what is not read."""
    dataset = header(grey())
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([b"\0\0\1\xb3"])
    dataset["PixelData"].is_undefined_length = True
    assert refusal_of(written(dataset)) is RefusalCode.UNSUPPORTED_TRANSFER_SYNTAX


@pytest.mark.parametrize("rows", [65535, 4097])
def test_limits_come_before_decoding(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip that is too large is refused from its header; the pixel decoder is never called."""
    monkeypatch.setattr(echo, "iter_pixels", lambda *_, **__: pytest.fail("pixels were decoded"))
    assert refusal_of(clip(Rows=rows)) is RefusalCode.LIMITS_EXCEEDED


def test_another_modality_is_not_applicable() -> None:
    """A study without ultrasound is not refused but passed over; beside a clip, foreign instances do not matter."""
    other = clip(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    with pytest.raises(NotApplicable):
        decode_echo([other])
    assert len(decode_echo([other, clip()])) == 1


def test_the_nearest_reason_is_given() -> None:
    """Of a still image, a colour clip and a clip without a time base, the last says most to the reader."""
    colour = clip(SequenceOfUltrasoundRegions=[region(data=2)])
    assert refusal_of(clip(1), colour, clip(FrameTime=None)) is RefusalCode.FRAME_RATE_UNKNOWN
    assert refusal_of(clip(1), colour) is RefusalCode.COLOUR_DOPPLER


def test_the_tissue_region_and_its_spacing() -> None:
    """The box's last pixel belongs to it; centimetres become millimetres, rows first; an ECG trace beside it does no harm."""
    loop = only(clip(SequenceOfUltrasoundRegions=[region(), region(space=2, data=10), region(0, 0)]))
    assert loop.region_px == (4, 2, 60, 42)
    assert loop.spacing_mm == pytest.approx((0.4, 0.5))


def test_a_box_for_another_image_size_means_nothing() -> None:
    """After a resize the box lies outside the frame: it is dropped, spacing included, and the clip is kept."""
    loop = only(clip(SequenceOfUltrasoundRegions=[region(box=(0, 0, 639, 479))]))
    assert (loop.region_px, loop.spacing_mm) == (None, None)


def test_other_units_give_no_spacing() -> None:
    """Only centimetres in both directions are a spacing."""
    loop = only(clip(SequenceOfUltrasoundRegions=[region(PhysicalUnitsXDirection=4)]))
    assert loop.spacing_mm is None
    assert loop.region_px == (4, 2, 60, 42)


TIME_BASES: tuple[tuple[str, Any, float], ...] = (
    ("FrameTimeVector", ["0", *["25"] * (FRAMES - 1)], 25.0),
    ("FrameTime", "40", 40.0),
    ("CineRate", "20", 50.0),
    ("RecommendedDisplayFrameRate", "10", 100.0),
    ("EffectiveDuration", "2.4", 200.0),
)


@pytest.mark.parametrize("first", range(len(TIME_BASES)))
def test_the_time_base_has_a_precedence(first: int) -> None:
    """The vector wins over the frame time, that over the cine rate, the display rate and the duration, in this order."""
    stated = {keyword: value for keyword, value, _ in TIME_BASES[first:]}
    loop = only(clip(**{"FrameTime": None, **stated}))
    assert np.diff(loop.frame_times_ms) == pytest.approx(TIME_BASES[first][2])
    assert loop.frame_times_ms[0] == 0


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.integers(5, 200), min_size=FRAMES - 1, max_size=FRAMES - 1))
def test_uneven_frame_times_add_up(steps: list[int]) -> None:
    """Frame k stands at the sum of the first k increments, whatever the vector's first value is."""
    loop = only(clip(FrameTime=None, FrameTimeVector=["33", *map(str, steps)]))
    assert loop.frame_times_ms == pytest.approx(np.cumsum([0, *steps]))


@pytest.mark.parametrize(
    "vector", [["0", "40", "40"], ["0", *["40"] * (FRAMES - 2), "0"], ["0", *["-40"] * (FRAMES - 1)]]
)
def test_an_impossible_vector_is_not_believed(vector: list[str]) -> None:
    """A vector of another length or with steps that are not positive gives way to the frame time."""
    loop = only(clip(FrameTimeVector=vector, FrameTime="50"))
    assert np.diff(loop.frame_times_ms) == pytest.approx(50)


@pytest.mark.parametrize(
    "elements",
    [
        {"ViewCodeSequence": view("399214001")},
        {"ViewCodeSequence": view("G-A19C", "SRT")},
        {"ViewName": "A4C"},
        {"SeriesDescription": "TTE Apical 4-chamber rest"},
        {"ProtocolName": "4CH"},
        {"ViewCodeSequence": view("G-A19C", "SRT"), "SeriesDescription": "PLAX"},
    ],
)
def test_the_stated_view(elements: dict[str, Any]) -> None:
    """SNOMED CT, the old SRT code and the usual names all state the apical four-chamber view; a code outweighs a name."""
    assert only(clip(**elements)).view == APICAL_FOUR_CHAMBER


def test_unstated_views_are_candidates_only_alone() -> None:
    """Where one clip states the view the others drop out; where none does, all are candidates, longest first, at most eight."""
    stated, unstated = clip(ViewName="A4C"), [clip(frames) for frames in (4, 20, 8, 5, 6, 7, 9, 10, 11)]
    assert [loop.view for loop in decode_echo([*unstated, stated])] == [APICAL_FOUR_CHAMBER]
    assert [len(loop.frames) for loop in decode_echo(unstated)] == [20, 11, 10, 9, 8, 7, 6, 5]


@pytest.mark.parametrize(("stated", "expected"), [("61", 61.0), ("0", None), ("511", None), (None, None)])
def test_an_implausible_heart_rate_is_absent(stated: str | None, expected: float | None) -> None:
    """0 and 511 are no heart rates."""
    assert only(clip(**({} if stated is None else {"HeartRate": stated}))).heart_rate_bpm == expected


def luma(instance: io.BytesIO, indices: Sequence[int] = range(FRAMES)) -> np.ndarray:
    """Luma of the frames of one clip."""
    return np.stack(list(only(instance).frames.luma(indices)))


def coloured(frames_THW: np.ndarray) -> np.ndarray:
    """RGB whose three channels differ, uint8 [T, H, W, 3]."""
    return np.stack([frames_THW, frames_THW // 2, 255 - frames_THW], axis=-1)


def weighted(rgb: np.ndarray) -> np.ndarray:
    """BT.601 luma as a number."""
    return rgb.astype(float) @ np.array([0.299, 0.587, 0.114])


def test_monochrome_is_given_as_it_is_shown() -> None:
    """MONOCHROME2 comes unchanged, MONOCHROME1 inverted; both are grey."""
    frames = grey()
    assert np.array_equal(luma(written(header(frames))), frames)
    inverted = written(header(frames, "MONOCHROME1"))
    assert np.array_equal(luma(inverted), 255 - frames)
    assert only(inverted).frames.chroma_spread(3) == 0


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_becomes_luma(planar: int) -> None:
    """Colour by pixel and colour by plane give the same BT.601 luma; the departure from grey is measured."""
    rgb = coloured(grey())
    dataset = header(rgb, "RGB")
    dataset.PlanarConfiguration = planar
    dataset.PixelData = (rgb if planar == 0 else rgb.transpose(0, 3, 1, 2)).tobytes()
    instance = written(dataset)
    assert np.abs(luma(instance) - weighted(rgb)).max() <= 0.501
    expected = (rgb.max(axis=-1).astype(int) - rgb.min(axis=-1))[5].mean()
    assert only(instance).frames.chroma_spread(5) == pytest.approx(expected)


@pytest.mark.parametrize(("bits", "stored"), [(16, "<u2"), (8, "<u2"), (8, "u1")])
def test_a_palette_is_applied(bits: int, stored: str) -> None:
    """Entries of 16 bits, of 8 bits, and of 8 bits padded to 16 give the colours they mean, and count as colour."""
    frames, entries = grey(), np.arange(256)
    dataset = header(frames, "PALETTE COLOR")
    for colour, values in (("Red", entries), ("Green", entries // 2), ("Blue", 255 - entries)):
        table = (values * (256 if bits == 16 else 1)).astype(stored)
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())
    instance = written(dataset)
    assert np.abs(luma(instance) - weighted(coloured(frames))).max() <= 0.501
    assert only(instance).frames.chroma_spread(0) > 100


def test_a_missing_palette_is_refused() -> None:
    """Indices without their table are no grey levels."""
    loop = only(written(header(grey(), "PALETTE COLOR")))
    with pytest.raises(InputRefused) as caught:
        next(iter(loop.frames.luma([0])))
    assert caught.value.code is RefusalCode.PIXEL_DATA_INCONSISTENT


def jpeg_clip(frames_THW: np.ndarray) -> Dataset:
    """A JPEG baseline clip, YBR_FULL_422."""
    encoded = []
    for frame in frames_THW:
        buffer = io.BytesIO()
        Image.fromarray(frame).convert("YCbCr").save(buffer, "JPEG", quality=95, subsampling="4:2:2")
        encoded.append(buffer.getvalue())
    dataset = header(np.repeat(frames_THW[..., None], 3, axis=-1), "YBR_FULL_422", JPEGBaseline8Bit)
    dataset.PixelData = encapsulate(encoded)
    dataset["PixelData"].is_undefined_length = True
    return dataset


def test_jpeg_gives_the_luma_it_stores() -> None:
    """JPEG baseline in YCbCr comes back within the loss of the compression, without colour."""
    instance = written(jpeg_clip(grey()))
    assert np.abs(luma(instance).astype(int) - grey()).mean() < 1
    assert only(instance).frames.chroma_spread(0) < 2


def test_frames_are_decoded_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded by building the loop; each asked frame is decoded once, in the asked order, repeats included."""
    asked: list[int] = []
    plain = echo.iter_pixels

    def counted(source: Any, *, indices: list[int]) -> Any:
        for index, frame in zip(indices, plain(source, indices=indices), strict=True):
            asked.append(index)
            yield frame

    monkeypatch.setattr(echo, "iter_pixels", counted)
    loop = only(clip())
    assert asked == []
    frames = loop.frames.luma([2, 2, 7])
    assert next(frames)[0, 0] == 20
    assert asked == [2]
    assert [int(frame[0, 0]) for frame in frames] == [20, 70]
    assert asked == [2, 7]


def test_no_frames_asked_no_frames_given() -> None:
    """An empty request is not taken for all frames."""
    assert list(only(clip()).frames.luma([])) == []


def truncated(dataset: Dataset, share: float) -> io.BytesIO:
    """The file cut inside its pixel data."""
    whole = written(dataset).getvalue()
    return io.BytesIO(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("share", [0.6, 0.95])
@pytest.mark.parametrize("kind", ["uncompressed", "jpeg"])
def test_truncated_pixel_data_is_refused(kind: str, share: float) -> None:
    """A file that ends early is refused when the missing frames are asked for; nothing is made up, none is left out."""
    dataset = header(grey()) if kind == "uncompressed" else jpeg_clip(grey())
    loop = only(truncated(dataset, share))
    with pytest.raises(InputRefused) as caught:
        list(loop.frames.luma(range(FRAMES)))
    assert caught.value.code is RefusalCode.PIXEL_DATA_INCONSISTENT


def test_fewer_frames_than_stated_are_refused() -> None:
    """A header that promises more frames than the JPEG stream holds is not believed."""
    dataset = jpeg_clip(grey(8))
    dataset.NumberOfFrames = FRAMES
    loop = only(written(dataset))
    with pytest.raises(InputRefused) as caught:
        list(loop.frames.luma(range(FRAMES)))
    assert caught.value.code is RefusalCode.PIXEL_DATA_INCONSISTENT


def test_another_frame_size_than_stated_is_refused() -> None:
    """Frames of another size than Rows and Columns are not resized silently."""
    dataset = jpeg_clip(grey())
    dataset.Rows = HEIGHT // 2
    with pytest.raises(InputRefused):
        luma(written(dataset))


def frames_of(path: Path) -> list[np.ndarray]:
    """Luma of all frames of a sample file, whatever the decoder thinks of its use."""
    file = io.BytesIO(path.read_bytes())
    dataset = parsed(file)
    count = int(dataset.get("NumberOfFrames") or 1)
    return list(DicomFrames(file, dataset, count).luma(range(count)))


def mean_difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Mean absolute difference over all frames, grey levels."""
    return float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(one, other, strict=True)]))


def test_the_acuson_four_chamber_clip(sample_data: Path) -> None:
    """A real clip: 65 frames over 2.44 s by FrameTimeVector alone, region, spacing, 61 beats a minute, hardly any colour."""
    path = sample_data / "us" / A4C
    loop = only(io.BytesIO(path.read_bytes()))
    vector = [float(step) for step in dcmread(path, stop_before_pixels=True).FrameTimeVector]
    assert len(loop.frames) == len(vector) == 65
    assert loop.frame_times_ms == pytest.approx(np.cumsum([0.0, *vector[1:]]))
    assert loop.frame_times_ms[-1] == pytest.approx(2438.3, abs=0.1)
    assert loop.region_px == (27, 48, 549, 392)
    assert loop.spacing_mm == pytest.approx((0.52478, 0.52478), abs=1e-4)
    assert (loop.heart_rate_bpm, loop.view) == (61.0, None)
    assert loop.frames.chroma_spread(32) < 4
    assert next(loop.frames.luma([64])).shape == (456, 576)


def test_the_philips_encodings_are_equal(sample_data: Path) -> None:
    """Palette frames in little endian, big endian and RLE give the same luma; the clip itself has no time base."""
    files = [sample_data / "us" / f"obs_philips_2f_{kind}_palette.dcm" for kind in ("explicit", "bigendian", "rle")]
    explicit, big_endian, rle = (frames_of(path) for path in files)
    assert mean_difference(explicit, big_endian) == mean_difference(explicit, rle) == 0
    assert explicit[0].max() > 200
    assert {refusal_of(io.BytesIO(path.read_bytes())) for path in files} == {RefusalCode.FRAME_RATE_UNKNOWN}


def test_the_us1_encodings_are_equal(sample_data: Path) -> None:
    """Uncompressed RGB, lossless JPEG 2000 (stored as YBR_RCT) and RLE give the same luma; the lossy one is near."""
    folder = sample_data / "us" / "single"
    plain, lossless, rle, lossy = (
        frames_of(folder / f"us1_{kind}.dcm") for kind in ("uncompressed", "j2k_lossless", "rle", "j2k_lossy")
    )
    assert mean_difference(plain, lossless) == mean_difference(plain, rle) == 0
    assert 0 < mean_difference(plain, lossy) < 2


def test_the_acuson_colour_clips(sample_data: Path) -> None:
    """The RGB and the JPEG form of a colour clip differ by about 1.4 levels of luma; both depart far from grey."""
    names = ("implicit_rgb", "jpegbaseline_fragmented_nobot")
    files = [sample_data / "us" / f"echo_colour_acuson_8f_{name}.dcm" for name in names]
    assert 1 < mean_difference(*(frames_of(path) for path in files)) < 2.2
    for path in files:
        spread = only(io.BytesIO(path.read_bytes())).frames.chroma_spread(4)
        assert spread > 25


def test_refusals_quote_no_patient(sample_data: Path) -> None:
    """Messages hold what was found in the image, never a name."""
    refused = 0
    for path in sorted((sample_data / "us").rglob("*.dcm")):
        name = str(dcmread(path, stop_before_pixels=True).get("PatientName", ""))
        message = refusal_message(io.BytesIO(path.read_bytes()))
        assert not name or name not in message
        refused += bool(message)
    assert refused == 7


def refusal_message(instance: io.BytesIO) -> str:
    """What the refusal says; empty where there is none."""
    try:
        decode_echo([instance])
    except Refusal as refusal:
        return str(refusal)
    return ""


def ycbcr_clip(frames: np.ndarray, **elements: Any) -> io.BytesIO:
    """Frames in YCbCr as JPEG baseline, one fragment each."""
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame, "YCbCr").save(buffer, "JPEG", quality=90, subsampling="4:2:2")
        encoded.append(buffer.getvalue())
    dataset = header(frames, "YBR_FULL_422", JPEGBaseline8Bit)
    dataset.PixelData = encapsulate(encoded)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return written(dataset)


def ycbcr(*, coloured: bool = False) -> np.ndarray:
    """Grey frames in YCbCr, with a coloured block where asked."""
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 128, np.uint8)
    frames[..., 0] = grey()
    if coloured:
        frames[:, 16:32, 16:32, 1:] = (60, 200)
    return frames


def planes_of(instance: io.BytesIO) -> DicomFrames:
    """The frames of the one loop, read as stored planes where that is possible."""
    (loop,) = decode_echo([instance], stored_luma=True)
    assert isinstance(loop.frames, DicomFrames)
    return loop.frames


@pytest.mark.parametrize("coloured", [False, True])
def test_stored_luma_is_the_raw_plane(coloured: bool) -> None:
    """The luma plane is channel 0 of the raw decoding, bit for bit, in any selection, repeated as asked."""
    instance = ycbcr_clip(ycbcr(coloured=coloured))
    frames = planes_of(instance)
    raw = [frame[..., 0] for frame in iter_pixels(instance, raw=True)]
    assert all(np.array_equal(a, b) for a, b in zip(frames.luma(range(FRAMES)), raw, strict=True))
    chosen = list(frames.luma([2, 2, 7, 11]))
    assert [np.array_equal(frame, raw[index]) for frame, index in zip(chosen, (2, 2, 7, 11), strict=True)] == [True] * 4
    assert list(frames.luma([])) == []


def test_stored_luma_of_a_grey_clip_is_the_shown_one() -> None:
    """Where there is no colour both ways give the same bits."""
    instance = ycbcr_clip(ycbcr())
    shown, stored = (list(frames.luma(range(FRAMES))) for frames in (only(instance).frames, planes_of(instance)))
    assert np.array_equal(shown, stored)


def test_chroma_is_found_where_it_is() -> None:
    """The departure from grey is large in the coloured block and nil far from it, by either way."""
    instance = ycbcr_clip(ycbcr(coloured=True))
    for frames in (planes_of(instance), only(instance).frames):
        (found,) = frames.chroma([3])
        assert found.dtype == np.uint8
        assert found[20:28, 20:28].min() > 100
        assert found[40:, 48:].max() <= 2
    assert max(frame.max() for frame in planes_of(clip()).chroma([0, 1])) == 0


def test_only_plain_jpegs_are_read_as_planes() -> None:
    """A JPEG with an Adobe marker, an RGB one and an uncompressed clip take the ordinary way, with the same result as ever."""
    frames = np.repeat(grey()[..., None], 3, axis=-1)
    assert not planes_of(clip())._has_planes
    assert not planes_of(written(header(frames, "RGB")))._has_planes
    assert planes_of(ycbcr_clip(ycbcr()))._has_planes
    encoded = []
    for frame in ycbcr():
        buffer = io.BytesIO()
        Image.fromarray(frame, "YCbCr").convert("CMYK").save(buffer, "JPEG")  # carries the marker
        encoded.append(buffer.getvalue())
    dataset = header(frames, "YBR_FULL_422", JPEGBaseline8Bit)
    dataset.PixelData = encapsulate(encoded)
    assert not planes_of(written(dataset))._has_planes


@pytest.mark.parametrize("broken", ["size", "cut", "fewer"])
def test_broken_planes_are_refused(broken: str) -> None:
    """Frames of another size, cut short, or fewer than stated are refused, never guessed."""
    frames = ycbcr()
    if broken == "size":
        instance = ycbcr_clip(frames, Rows=HEIGHT - 8)
    elif broken == "fewer":
        instance = ycbcr_clip(frames[:6], NumberOfFrames=FRAMES)
    else:
        dataset = header(frames, "YBR_FULL_422", JPEGBaseline8Bit)
        buffer = io.BytesIO()
        Image.fromarray(frames[0], "YCbCr").save(buffer, "JPEG")
        dataset.PixelData = encapsulate([buffer.getvalue()] + [b"\xff\xd8\xff\xe0"] * (FRAMES - 1))
        instance = written(dataset)
    with pytest.raises(InputRefused) as caught:
        list(planes_of(instance).luma(range(FRAMES)))
    assert caught.value.code is RefusalCode.PIXEL_DATA_INCONSISTENT


def test_labels_of_the_view_are_kept_apart() -> None:
    """Code, view name, series description and protocol travel with the source, upper case, cut to a label's length."""
    loop = only(clip(ViewCodeSequence=view("399214001"), ViewName="a4c", SeriesDescription="x" * 64, ProtocolName="p"))
    assert loop.source.view_labels == (
        ("ViewCodeSequence", "399214001"),
        ("ViewName", "A4C"),
        ("SeriesDescription", "X" * 64),
        ("ProtocolName", "P"),
    )
    assert only(clip()).source.view_labels == ()


def test_as_many_loops_as_asked_for() -> None:
    """A study of many loops gives the longest ones, as many as the caller wants."""
    clips = [clip(FRAMES + number, SOPInstanceUID=f"2.25.{number + 20}") for number in range(12)]
    assert len(decode_echo(clips)) == echo.MOST_CANDIDATES
    found = decode_echo(clips, most=10)
    assert [len(loop.frames) for loop in found] == list(range(FRAMES + 11, FRAMES + 1, -1))
