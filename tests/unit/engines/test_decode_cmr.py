"""MR decoding: the short-axis cine is found by geometry and time, everything else in a heart study is refused by name."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from engines.decode import cmr
from engines.decode.cmr import ENHANCED_MR, MR_IMAGE, decode_cmr
from engines.errors import InputRefused, NotApplicable, RefusalCode
from engines.preprocess.cmr import LocatedHeart, locate_heart
from engines.preprocess.registry import prepare
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

ROW, COLUMN = np.array([0.6, 0.8, 0.0]), np.array([0.0, 0.0, -1.0])
NORMAL = np.cross(ROW, COLUMN)
SLICES, PHASES, SIDE = 6, 10, 16
SPEC = CmrSpec(**json.loads(Path(__file__).with_name("test_preprocess_specs.json").read_text())["cmr"])


def image(s: int, p: int, *, step_mm: float = 10.0, **elements: Any) -> io.BytesIO:
    """Image of slice ``s`` and phase ``p``; its pixels are all ``100 s + p``. None removes an element."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = MR_IMAGE, f"2.25.1.{s}.{p}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "2.25.2", "2.25.3", "MR"
    dataset.Rows = dataset.Columns = SIDE
    dataset.PixelSpacing = ["1.5", "1.5"]
    dataset.ImageOrientationPatient = [f"{value:.6f}" for value in (*ROW, *COLUMN)]
    dataset.ImagePositionPatient = [f"{value:.4f}" for value in np.array([5.0, -20.0, 30.0]) + s * step_mm * NORMAL]
    dataset.TriggerTime, dataset.InstanceNumber = f"{40 * p}.0", s * PHASES + p + 1
    dataset.ScanOptions, dataset.CardiacNumberOfImages = "CG", PHASES
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelData = np.full((SIDE, SIDE), 100 * s + p, "<u2").tobytes()
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer


def stack(slices: int = SLICES, phases: int = PHASES, **elements: Any) -> list[io.BytesIO]:
    """All images of a stack, slice by slice."""
    return [image(s, p, **elements) for s in range(slices) for p in range(phases)]


def refusal_of(instances: list[io.BytesIO]) -> RefusalCode:
    """Code of the refusal that decoding ends in."""
    with pytest.raises(InputRefused) as caught:
        decode_cmr(instances)
    return caught.value.code


def check_order(found: CineStack, slices: int = SLICES, phases: int = PHASES) -> None:
    """Pixels, positions, times and sources all follow slice and phase."""
    expected = 100 * np.arange(slices)[:, None] + np.arange(phases)
    assert np.array_equal(found.images_SPHW[..., 0, 0], expected)
    assert np.diff(found.slice_positions_mm) == pytest.approx(10.0, abs=0.01)
    assert found.trigger_times_ms == pytest.approx(np.tile(40.0 * np.arange(phases), (slices, 1)))
    assert [source.sop_instance_uid for source in found.sources_SP[1]] == [f"2.25.1.1.{p}" for p in range(phases)]


def test_one_series_for_the_whole_stack() -> None:
    """A stack in one series comes out ordered by geometry and time, with its spacing and orientation."""
    found = decode_cmr(stack())
    check_order(found)
    assert found.images_SPHW.shape == (SLICES, PHASES, SIDE, SIDE)
    assert found.spacing_mm == (1.5, 1.5)
    assert found.orientation == pytest.approx((*ROW, *COLUMN))


def test_one_series_per_slice() -> None:
    """Slices that came as series of their own are one stack."""
    series = [image(s, p, SeriesInstanceUID=f"2.25.3.{s}") for s in range(SLICES) for p in range(PHASES)]
    check_order(decode_cmr(series))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_the_order_of_arrival_does_not_matter(seed: int) -> None:
    """Shuffled files give the same stack."""
    instances = stack()
    random.Random(seed).shuffle(instances)
    check_order(decode_cmr(instances))


def test_a_wrong_slice_location_is_ignored() -> None:
    """SliceLocation and InstanceNumber may say anything: positions come from ImagePositionPatient."""
    lying = [
        image(s, p, SliceLocation=f"{-6.7 * s}", InstanceNumber=1000 - s) for s in range(SLICES) for p in range(PHASES)
    ]
    check_order(decode_cmr(lying))


def test_a_repeated_series_in_the_same_place() -> None:
    """Of two acquisitions of one slice the more complete is taken, never a mixture."""
    again = [
        image(2, p, SeriesInstanceUID="2.25.9", SOPInstanceUID=f"2.25.8.{p}", TriggerTime=f"{40 * p + 7}")
        for p in range(PHASES - 3)
    ]
    check_order(decode_cmr([*again, *stack()]))


def test_a_repeated_stack_is_not_a_stack_of_twice_the_phases() -> None:
    """Two whole series in the same place give one of them."""
    again = stack(SeriesInstanceUID="2.25.4")
    found = decode_cmr([*stack(), *again])
    assert found.images_SPHW.shape[:2] == (SLICES, PHASES)
    assert {source.series_instance_uid for row in found.sources_SP for source in row} == {"2.25.4"}


def test_one_phase_less_in_one_slice_is_cut_to_the_rest() -> None:
    """A slice that lost its last phase shortens the stack by one phase."""
    assert decode_cmr(stack()[:-1]).images_SPHW.shape[:2] == (SLICES, PHASES - 1)


def test_slices_elsewhere_do_not_join_the_stack() -> None:
    """A parallel slice 60 mm away is not part of the stack."""
    far = [image(12, p, SOPInstanceUID=f"2.25.7.{p}") for p in range(PHASES)]
    check_order(decode_cmr([*stack(), *far]))


def test_a_tilted_slice_does_not_join_the_stack() -> None:
    """Orientations that differ by more than two degrees are different planes."""
    angle = np.radians(4)
    row = np.cos(angle) * ROW + np.sin(angle) * NORMAL
    tilted = [image(6, p, ImageOrientationPatient=[f"{v:.6f}" for v in (*row, *COLUMN)]) for p in range(PHASES)]
    check_order(decode_cmr([*stack(), *tilted]))


LONG_AXIS = [f"{value:.6f}" for value in (*NORMAL, *COLUMN)]


def tilted(angle_deg: int) -> list[str]:
    """Orientation of a plane that holds the columns' direction, turned about it."""
    row = np.cos(np.radians(angle_deg)) * ROW + np.sin(np.radians(angle_deg)) * NORMAL
    return [f"{value:.6f}" for value in (*row, *COLUMN)]


REFUSALS: dict[str, tuple[Callable[[], list[io.BytesIO]], RefusalCode]] = {
    "phases missing": (
        lambda: [image(s, p) for s in range(SLICES) for p in range(PHASES if s else 8)],
        RefusalCode.PHASES_INCONSISTENT,
    ),
    "end-diastole and end-systole only": (lambda: stack(phases=2), RefusalCode.TOO_FEW_PHASES),
    "long axis only": (
        lambda: stack(slices=1, ImageOrientationPatient=LONG_AXIS),
        RefusalCode.NO_SHORT_AXIS_CINE,
    ),
    "planes that turn about the long axis": (
        lambda: [
            each for angle in range(0, 180, 30) for each in stack(slices=1, ImageOrientationPatient=tilted(angle))
        ],
        RefusalCode.NO_SHORT_AXIS_CINE,
    ),
    "four slices": (lambda: stack(slices=4), RefusalCode.TOO_FEW_SLICES),
    "slices 30 mm apart": (lambda: stack(step_mm=30.0), RefusalCode.NO_SHORT_AXIS_CINE),
    "localizers": (
        lambda: stack(phases=1, CardiacNumberOfImages=0, HeartRate=511, TriggerTime="0"),
        RefusalCode.NO_SHORT_AXIS_CINE,
    ),
    "no trigger time": (lambda: stack(TriggerTime=None), RefusalCode.NO_SHORT_AXIS_CINE),
    "one trigger time for all": (lambda: stack(TriggerTime="0"), RefusalCode.NO_SHORT_AXIS_CINE),
    "no position": (lambda: stack(ImagePositionPatient=None), RefusalCode.GEOMETRY_MISSING),
    "no orientation": (lambda: stack(ImageOrientationPatient=None), RefusalCode.GEOMETRY_MISSING),
    "no spacing": (lambda: stack(PixelSpacing=None), RefusalCode.GEOMETRY_MISSING),
    "spacing of zero": (lambda: stack(PixelSpacing=["0", "0"]), RefusalCode.UNDECODABLE),
    "five cosines": (lambda: stack(ImageOrientationPatient=["1", "0", "0", "0", "1"]), RefusalCode.UNDECODABLE),
    "one spacing": (lambda: stack(PixelSpacing="1.5"), RefusalCode.UNDECODABLE),
    "too large": (lambda: stack(Rows=2048, Columns=2048), RefusalCode.LIMITS_EXCEEDED),
    "Enhanced MR, gated": (
        lambda: [image(0, 0, SOPClassUID=ENHANCED_MR, CardiacSynchronizationTechnique="RETROSPECTIVE")],
        RefusalCode.NO_SHORT_AXIS_CINE,
    ),
    "too few bytes": (lambda: stack(PixelData=b"\0" * 100), RefusalCode.PIXEL_DATA_INCONSISTENT),
    "signed values": (
        lambda: stack(PixelRepresentation=1, PixelData=np.full((SIDE, SIDE), -5, "<i2").tobytes()),
        RefusalCode.PIXEL_DATA_INCONSISTENT,
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    """Each unusable heart study is refused under its own code."""
    make, expected = REFUSALS[name]
    assert refusal_of(make()) is expected


@pytest.mark.parametrize(
    "elements",
    [
        {"SeriesDescription": "LGE SAX stack"},
        {"SeriesDescription": "sa_PSIR_TI280"},
        {"SeriesDescription": "ShMOLLI T1 map"},
        {"SeriesDescription": "flow_sinus_venc150"},
        {"ProtocolName": "PERFUSION stress"},
        {"SeriesDescription": "CINE LAX 4ch"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "T1 MAP"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    ],
)
def test_other_sequences_are_left_out(elements: dict[str, Any]) -> None:
    """Enhancement, maps, flow, perfusion, long axis and phase images never become a cine, alone or beside one."""
    others = [
        image(s, p, SeriesInstanceUID="2.25.9", SOPInstanceUID=f"2.25.5.{s}.{p}", **elements)
        for s in range(SLICES + 2)
        for p in range(PHASES + 4)
    ]
    assert refusal_of(others) is RefusalCode.NO_SHORT_AXIS_CINE
    check_order(decode_cmr([*others, *stack()]))


@pytest.mark.parametrize(
    "name", ["", "CINE_segmented_SAX_b1", "sBTFE_BH_SA", "FIESTA short axis", "tfi2d1_11_retro_sa"]
)
def test_names_of_cines_exclude_nothing(name: str) -> None:
    """What scanners call a short-axis cine does not match the names that exclude."""
    check_order(decode_cmr(stack(SeriesDescription=name, ImageType=["ORIGINAL", "PRIMARY", "M", "RETRO"])))


def test_limits_come_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack with too many pixels is refused from its headers; no pixel is decoded."""
    monkeypatch.setattr(cmr, "pixel_array", lambda *_, **__: pytest.fail("pixels were decoded"))
    monkeypatch.setattr(cmr, "MOST_PIXELS", SLICES * PHASES * SIDE * SIDE - 1)
    assert refusal_of(stack()) is RefusalCode.LIMITS_EXCEEDED


@pytest.mark.parametrize(
    "instances",
    [
        [],
        [image(0, 0, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")],
        [image(0, 0, SOPClassUID=ENHANCED_MR)],
        [image(s, 0, ScanOptions=None, CardiacNumberOfImages=None, TriggerTime=None) for s in range(8)],
    ],
    ids=["nothing", "CT", "Enhanced MR without gating", "brain"],
)
def test_what_is_no_heart_scan_is_not_applicable(instances: list[io.BytesIO]) -> None:
    """Studies without a heart are not refused but passed over."""
    with pytest.raises(NotApplicable):
        decode_cmr(instances)


def test_one_unreadable_file_does_not_spoil_the_stack() -> None:
    """A broken instance beside a complete stack is left out; alone it is the reason of the refusal."""
    check_order(decode_cmr([io.BytesIO(b"\0" * 400), *stack()]))
    assert refusal_of([io.BytesIO(b"\0" * 400)]) is RefusalCode.UNDECODABLE


def test_heart_rates_are_believed_within_reason() -> None:
    """The median of plausible heart rates is kept; 0 and 511 do not count."""
    rates = [image(s, p, HeartRate=(0, 511, 66)[p % 3]) for s in range(SLICES) for p in range(PHASES)]
    assert decode_cmr(rates).heart_rate_bpm == 66
    assert decode_cmr(stack(HeartRate=0)).heart_rate_bpm is None


Polygon = np.ndarray


@dataclass(frozen=True)
class Sunnybrook:
    """A real subject.

    Args:
        files: its instances, by instance number.
        stack: decoded from them.
        place: (stored slice, phase) of each instance number.
        inner: the experts' endocardial contours by (stored slice, phase), pixels (column, row), float64 [N, 2].
    """

    files: dict[int, Path]
    stack: CineStack
    place: dict[int, tuple[int, int]]
    inner: dict[tuple[int, int], Polygon]

    def phases(self) -> tuple[int, int]:
        """End-diastole and end-systole of the experts: the phase with the larger cavities, then the other."""
        every = sorted({phase for _, phase in self.inner})
        areas = [np.mean([area_px(self.inner[key]) for key in self.inner if key[1] == phase]) for phase in every]
        diastole, systole = (every[index] for index in np.argsort(areas)[::-1])
        return int(diastole), int(systole)

    def slices(self) -> list[int]:
        """Stored slices with an end-diastolic contour."""
        return sorted(s for s, phase in self.inner if phase == self.phases()[0])


def area_px(polygon: Polygon) -> float:
    """Area of a polygon, square pixels (shoelace formula)."""
    return float(abs(np.sum(cross(polygon))) / 2)


def centroid_px(polygon: Polygon) -> tuple[float, float]:
    """Centroid of a polygon's area, (row, column)."""
    weight = cross(polygon)
    column, row = ((polygon + np.roll(polygon, -1, axis=0)) * weight[:, None]).sum(axis=0) / (3 * weight.sum())
    return float(row), float(column)


def cross(polygon: Polygon) -> np.ndarray:
    """Twice the signed area between the origin and each side."""
    ahead = np.roll(polygon, -1, axis=0)
    return np.asarray(polygon[:, 0] * ahead[:, 1] - ahead[:, 0] * polygon[:, 1])


def holds(polygon: Polygon, row: float, column: float) -> bool:
    """The point lies inside: a ray to the right crosses an odd number of sides."""
    ahead = np.roll(polygon, -1, axis=0)
    crossed = (polygon[:, 1] > row) != (ahead[:, 1] > row)
    part = (row - polygon[:, 1]) / np.where(crossed, ahead[:, 1] - polygon[:, 1], 1)
    return bool((crossed & (column < polygon[:, 0] + part * (ahead[:, 0] - polygon[:, 0]))).sum() % 2)


def decoded(paths: list[Path]) -> CineStack:
    """The stack in files."""
    return decode_cmr([io.BytesIO(path.read_bytes()) for path in paths])


def sunnybrook(sample_data: Path, subject: str, folder: Path) -> Sunnybrook:
    """Unpack and decode a subject; contour ``IM-0001-<k>-icontour`` was drawn on the instance with number k."""
    with tarfile.open(sample_data / "cmr" / subject / "dicom.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    headers = {
        path: dcmread(path, specific_tags=["SOPInstanceUID", "InstanceNumber"]) for path in folder.rglob("*.dcm")
    }
    numbers = {str(each.SOPInstanceUID): int(each.InstanceNumber) for each in headers.values()}
    stack = decoded(sorted(headers))
    rows = enumerate(stack.sources_SP)
    place = {numbers[each.sop_instance_uid]: (s, p) for s, row in rows for p, each in enumerate(row)}
    contours = (sample_data / "cmr" / subject / "contours/i-contours").iterdir()
    return Sunnybrook(
        files={int(header.InstanceNumber): path for path, header in headers.items()},
        stack=stack,
        place=place,
        inner={place[int(path.name.split("-")[2])]: np.loadtxt(path) for path in contours},
    )


@pytest.fixture(scope="session")
def scd101(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sunnybrook:
    """SCD0000101."""
    return sunnybrook(sample_data, "SCD0000101_SC-HF-I-1", tmp_path_factory.mktemp("scd101"))


@pytest.fixture(scope="session")
def scd301(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sunnybrook:
    """SCD0000301."""
    return sunnybrook(sample_data, "SCD0000301_SC-HF-I-4", tmp_path_factory.mktemp("scd301"))


def test_the_sunnybrook_stacks(scd101: Sunnybrook, scd301: Sunnybrook) -> None:
    """Two real stacks, whose SliceLocation is wrong: 12 slices 10 mm apart and 10 slices 8 mm apart, 20 phases each."""
    assert scd101.stack.images_SPHW.shape == (12, 20, 256, 256)
    assert np.diff(scd101.stack.slice_positions_mm) == pytest.approx(10, abs=0.01)
    assert scd301.stack.images_SPHW.shape == (10, 20, 256, 256)
    assert np.diff(scd301.stack.slice_positions_mm) == pytest.approx(8, abs=0.01)
    for subject in (scd101, scd301):  # slice by slice in the order of the scanner, every phase in order
        numbers = sorted(subject.place, key=lambda number: subject.place[number])
        assert all(np.array_equal(np.diff(row), np.ones(19)) for row in np.reshape(numbers, (-1, 20)))


def test_the_sunnybrook_localizers(sample_data: Path) -> None:
    """Scouts that look like bSSFP cine are refused as no cine, not passed over as a foreign study."""
    with pytest.raises(InputRefused) as caught:
        decoded(sorted((sample_data / "cmr/SCD0000101_localizers").rglob("*.dcm")))
    assert caught.value.code is RefusalCode.NO_SHORT_AXIS_CINE


@pytest.mark.parametrize("name", ["mr_small_brain.dcm", "enhanced_mr_10f.dcm", "ct_small.dcm"])
def test_the_decoys(sample_data: Path, name: str) -> None:
    """A brain MR, an ungated Enhanced MR and a CT are not applicable."""
    with pytest.raises(NotApplicable):
        decoded([sample_data / "decoy" / name])


def phases_off(found: int, expert: int, phases: int) -> int:
    """Distance around the heart beat."""
    return min((found - expert) % phases, (expert - found) % phases)


@pytest.fixture(params=["scd101", "scd301"])
def real(request: pytest.FixtureRequest) -> Sunnybrook:
    """Either subject."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_end_diastole_and_end_systole_of_the_experts(real: Sunnybrook) -> None:
    """Both phases lie within one of 20 (about 45 ms) of the contoured ones.

    Experts agree with each other no better: near both ends of systole the cavity stays the same for two or three phases.
    Found: SCD0000101 19 and 7 (experts 18 and 7), SCD0000301 18 and 7 (19 and 6).
    """
    phases = locate_heart(real.stack, SPEC).phases
    diastole, systole = real.phases()
    assert phases_off(phases.end_diastole, diastole, 20) <= 1
    assert phases_off(phases.end_systole, systole, 20) <= 1


def test_the_slices_of_the_experts(real: Sunnybrook) -> None:
    """The mid slice is contoured and within one of the middle of the contoured ones; so are both ends of the ventricle."""
    located = locate_heart(real.stack, SPEC)
    order, contoured = located.canonical.slice_order, real.slices()
    assert order[located.mid_slice] in contoured
    assert abs(order[located.mid_slice] - (contoured[0] + contoured[-1]) / 2) <= 1
    ends = sorted((order[located.first_slice], order[located.last_slice]))
    assert np.abs(np.subtract(ends, (contoured[0], contoured[-1]))).max() <= 1


def test_the_centre_of_the_experts(real: Sunnybrook) -> None:
    """The crop's centre lies in the end-diastolic contour of the mid slice, within 5 mm of its centroid."""
    located = locate_heart(real.stack, SPEC)
    polygon = real.inner[located.canonical.slice_order[located.mid_slice], real.phases()[0]]
    row, column = stored_px(located)
    assert holds(polygon, row, column)
    away_px = np.subtract((row, column), centroid_px(polygon))
    assert np.hypot(*(away_px * np.array(real.stack.spacing_mm))) < 5


def stored_px(located: LocatedHeart) -> tuple[float, float]:
    """The centre (row, column) in the stored images of an unmirrored stack."""
    assert not located.canonical.mirrored
    row, column = located.centre_px
    height, width = located.canonical.images_SPHW.shape[2:]
    for _ in range(located.canonical.quarter_turns):
        row, column, height, width = column, height - 1 - row, width, height
    return row, column


def test_the_area_follows_the_experts(real: Sunnybrook) -> None:
    """The traced area loses as much from end-diastole to end-systole as the contoured one, give or take a tenth of it.

    Traced edges leave out part of the trabeculae that experts include, so that the areas themselves are smaller.
    """
    located = locate_heart(real.stack, SPEC)
    diastole, systole = real.phases()
    both = [s for s in real.slices() if (s, systole) in real.inner]
    experts = [sum(area_px(real.inner[s, phase]) for s in both) for phase in (diastole, systole)]
    area_mm2 = located.phases.area_mm2
    lost = 1 - area_mm2[located.phases.end_systole] / area_mm2[located.phases.end_diastole]
    assert lost == pytest.approx(1 - experts[1] / experts[0], abs=0.1)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_real_heart_turned(scd301: Sunnybrook, turns: int) -> None:
    """Images turned by quarters, with the header left as it was, give the same slice and phases and the turned crop."""
    turned = replace(scd301.stack, images_SPHW=np.rot90(scd301.stack.images_SPHW, turns, axes=(2, 3)))
    found, expected = prepare(turned, SPEC), prepare(scd301.stack, SPEC)
    difference = found.arrays["image"] - np.rot90(expected.arrays["image"], turns, axes=(2, 3))
    assert np.abs(difference).max() < 1e-6
    assert found.sources == expected.sources


def test_parts_of_a_real_study_are_refused(scd101: Sunnybrook) -> None:
    """Two phases of every slice, one slice and four slices of a real stack are refused, each for its own reason."""

    def refused(chosen: Callable[[int, int], bool]) -> RefusalCode:
        numbers = [number for number, (s, p) in scd101.place.items() if chosen(s, p)]
        return refusal_of([io.BytesIO(scd101.files[number].read_bytes()) for number in numbers])

    assert refused(lambda _, p: p in scd101.phases()) is RefusalCode.TOO_FEW_PHASES
    assert refused(lambda s, _: s == 5) is RefusalCode.NO_SHORT_AXIS_CINE
    assert refused(lambda s, _: 3 <= s < 7) is RefusalCode.TOO_FEW_SLICES


def test_a_real_heart_that_stands_still_is_refused(scd101: Sunnybrook) -> None:
    """One phase repeated, and one grey everywhere, hold no beating heart."""
    images = np.asarray(scd101.stack.images_SPHW, np.uint16)
    for still in (np.repeat(images[:, :1], 20, axis=1), np.zeros_like(images) + np.uint16(100)):
        with pytest.raises(InputRefused) as caught:
            locate_heart(replace(scd101.stack, images_SPHW=still), SPEC)
        assert caught.value.code is RefusalCode.HEART_NOT_FOUND
