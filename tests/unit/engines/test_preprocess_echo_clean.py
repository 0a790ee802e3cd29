"""Echo preprocessing version 2: overlays never reach the network, and what is no upright sector is refused."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import TypeAdapter, ValidationError

from engines.decode.echo import decode_echo
from engines.errors import InputRefused, RefusalCode
from engines.preprocess.echo_clean import filled_hull, find_clean_sector, prepare_clean
from engines.preprocess.registry import prepare
from engines.preprocess.spec import EchoCleanSpec, EchoSpec, PreprocessSpec, spec_sha256
from engines.records import ArrayFrames, CineLoop, SourceInstance
from tests.doubles.hearts import small_loop
from training.recipes.view_small import echo_clean_spec

SPEC = echo_clean_spec(size_px=56, clip_frames=8, clips=8)
HEIGHT, WIDTH, FRAMES = 160, 220, 32
APEX, RADIUS = (6.0, 110.0), 146.0
"""Row and column of the apex, and depth of the sector, pixels."""
GREEN = np.array([40, 220, 60])


@dataclass(frozen=True, kw_only=True)
class ColourFrames:
    """A frame source over RGB frames in memory, uint8 [T, H, W, 3]."""

    frames_THW3: np.ndarray

    @property
    def shape_HW(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.frames_THW3.shape[1], self.frames_THW3.shape[2]

    def __len__(self) -> int:
        return len(self.frames_THW3)

    def luma(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """BT.601."""
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        return (np.rint(self.frames_THW3[index] @ weights).astype(np.uint8) for index in indices)

    def chroma(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Largest less smallest channel."""
        return (np.ptp(self.frames_THW3[index], axis=-1).astype(np.uint8) for index in indices)

    def chroma_spread(self, index: int) -> float:
        """Mean of the same."""
        return float(next(self.chroma([index])).mean())


def inside(half_angle: float = 0.7, turned: int = 0) -> np.ndarray:
    """The pixels of a sector that hangs from its apex, or was turned by some quarters."""
    rows, columns = np.indices((HEIGHT, WIDTH)).astype(float)
    down, across = rows - APEX[0], columns - APEX[1]
    if turned:
        middle = (HEIGHT - 1) / 2, (WIDTH - 1) / 2
        down, across = rows - middle[0], columns - middle[1]
        for _ in range(turned):
            down, across = across, -down
        down += RADIUS / 2
    return (np.abs(np.arctan2(across, down)) < half_angle) & (np.hypot(across, down) < RADIUS)


def speckled(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """Grey speckle that changes from frame to frame, as RGB."""
    noise = np.random.default_rng(seed).integers(30, 130, (FRAMES, HEIGHT, WIDTH, 1), dtype=np.uint8)
    return np.repeat(noise * mask[None, ..., None], 3, axis=-1)


def loop_of(frames: np.ndarray, **changes: Any) -> CineLoop:
    """A clip of RGB frames, 40 ms apart, that states no region."""
    loop = CineLoop(
        frames=ColourFrames(frames_THW3=frames),
        frame_times_ms=40.0 * np.arange(len(frames)),
        region_px=None,
        spacing_mm=None,
        heart_rate_bpm=None,
        view=None,
        source=SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.1", series_instance_uid="2.25.2"),
    )
    return replace(loop, **changes)


def text_mask(place: tuple[int, int], words: str) -> np.ndarray:
    """Pixels of some burned-in words."""
    image = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).text(place, words, fill=1)
    return np.asarray(image)


def with_text(frames: np.ndarray, place: tuple[int, int] = (82, 70)) -> np.ndarray:
    """The frames with a name written into the sector."""
    marked = frames.copy()
    marked[:, text_mask(place, "CANARY^KIWI")] = 250
    return marked


def with_ecg(frames: np.ndarray) -> np.ndarray:
    """The frames with a green trace through the sector that is drawn from left to right."""
    marked = frames.copy()
    columns = np.arange(30, 190)
    rows = 118 - (18 * np.exp(-(((columns % 50 - 25) / 3.0) ** 2))).astype(int)
    for index, frame in enumerate(marked):
        shown = columns[: 20 + index * 140 // (FRAMES - 1)]
        for offset in (0, 1):
            frame[rows[: len(shown)] + offset, shown] = GREEN
    return marked


def clip_of(frames: np.ndarray, **changes: Any) -> np.ndarray:
    """The first prepared clip, [T, S, S]."""
    return prepare_clean(loop_of(frames, **changes), SPEC).arrays["clip"][0, 0].astype(int)


def refusal_of(loop: CineLoop, using: EchoCleanSpec = SPEC) -> InputRefused:
    """The refusal that preparing ends in."""
    with pytest.raises(InputRefused) as caught:
        prepare_clean(loop, using)
    return caught.value


@pytest.mark.parametrize("draw", [with_text, with_ecg], ids=["text", "ECG"])
def test_an_overlay_leaves_no_trace(draw: Any) -> None:
    """Words and a coloured trace inside the sector change the clip no more than the speckle under them would."""
    frames = speckled(inside())
    plain, marked = clip_of(frames), clip_of(draw(frames))
    assert np.abs(marked - plain).mean() < 1.5
    assert marked.max() <= plain.max() + 12
    version_1 = EchoSpec(**{name: getattr(SPEC, name) for name in EchoSpec.model_fields} | {"preprocess_version": 1})
    shown = ArrayFrames(frames_THW=np.stack(list(ColourFrames(frames_THW3=draw(frames)).luma(range(FRAMES)))))
    kept = prepare(replace(loop_of(frames), frames=shown), version_1).arrays["clip"][0, 0].astype(int)
    assert kept.max() > plain.max() + 15


def test_no_text_is_readable_in_the_clip() -> None:
    """A name in the sector cannot be told from no name: neither its strokes nor their silhouette stand out."""
    plain = speckled(inside())
    frames = with_text(plain)
    found = find_clean_sector(loop_of(frames), SPEC)
    assert found.tissue_HW[text_mask((82, 70), "CANARY^KIWI")].max() == 0
    difference = clip_of(frames).mean(axis=0) - clip_of(plain).mean(axis=0)
    assert np.abs(difference).max() < 12
    assert abs(difference.mean()) < 0.3


def test_overlays_outside_do_not_widen_the_sector() -> None:
    """Text beside the sector and a trace across its edge leave the mask as it was."""
    plain = find_clean_sector(loop_of(speckled(inside())), SPEC).sector.mask_HW
    marked = find_clean_sector(loop_of(with_ecg(with_text(speckled(inside()), (4, 4)))), SPEC).sector.mask_HW
    assert np.abs(marked - plain).mean() < 0.01


def test_bright_still_tissue_stays() -> None:
    """A broad bright part that stands still is no text."""
    frames = speckled(inside())
    frames[:, 60:84, 100:124] = 220
    assert clip_of(frames).max() > 200


def test_the_quality_is_told() -> None:
    """The numbers of the sector are those of the drawn one, and the reader gets them."""
    loop = loop_of(speckled(inside(half_angle=0.6)))
    quality = find_clean_sector(loop, SPEC).quality
    assert quality.opening_degrees == pytest.approx(np.degrees(1.2), abs=5)
    assert quality.apex_column == pytest.approx(0.5, abs=0.03)
    assert quality.apex_row == pytest.approx(0.0, abs=0.06)
    assert quality.area_fraction == pytest.approx(inside(half_angle=0.6).mean(), rel=0.08)
    assert quality.saturated_fraction == 0.0
    assert prepare_clean(loop, SPEC).notes[-1] == quality.sentence()


@pytest.mark.parametrize("turned", [1, 2, 3])
def test_turned_sectors_are_refused(turned: int) -> None:
    """A sector that lies on its side or stands on its head is refused with its numbers."""
    refusal = refusal_of(loop_of(speckled(inside(turned=turned))))
    assert refusal.code is RefusalCode.SECTOR_IMPLAUSIBLE
    assert "upright B-mode sector" in refusal.reason


def test_a_rectangle_is_refused() -> None:
    """Parallel sides are those of a linear probe."""
    box = np.zeros((HEIGHT, WIDTH), bool)
    box[20:140, 50:170] = True
    assert refusal_of(loop_of(speckled(box))).code is RefusalCode.SECTOR_IMPLAUSIBLE


def test_saturation_is_refused() -> None:
    """Where the gain drives most of the sector to white, nothing can be read."""
    frames = speckled(inside())
    white = np.random.default_rng(1).random((FRAMES, HEIGHT, WIDTH)) < 0.5
    frames[white & inside()[None]] = 255
    refusal = refusal_of(loop_of(frames))
    assert refusal.code is RefusalCode.SECTOR_IMPLAUSIBLE
    assert "saturated" in refusal.reason


def test_colour_in_the_sector_is_refused() -> None:
    """A patch of colour flow is no overlay to be removed but a Doppler clip; a thin trace is not."""
    frames = speckled(inside())
    frames[:, 50:90, 90:130, 0] = 230
    assert refusal_of(loop_of(frames)).code is RefusalCode.COLOUR_DOPPLER


def test_nothing_moves() -> None:
    """Without moving tissue there is no sector."""
    assert refusal_of(loop_of(np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8))).code is RefusalCode.SECTOR_NOT_FOUND


def test_a_long_loop_gives_eight_clips() -> None:
    """Eight evenly spaced clips at 80 ms a frame, as many as there is room for; the shift between them is one of time."""
    prepared = prepare_clean(loop_of(speckled(inside())), SPEC)
    assert prepared.arrays["clip"].shape == (8, 1, 8, 56, 56)
    assert prepared.arrays["clip"].dtype == np.uint8
    assert prepared.sources[0].frame_numbers[0] == 1
    assert prepared.sources[0].frame_numbers[-1] == FRAMES


@pytest.mark.parametrize("seed", [1, 2])
def test_phantoms_pass(seed: int) -> None:
    """The phantoms' own sectors are plausible and lose nothing to the search for overlays."""
    loop = small_loop(seed)
    found = find_clean_sector(loop, SPEC)
    assert found.tissue_HW.sum() > 0.995 * found.sector.mask_HW.sum()
    assert prepare(loop, SPEC).arrays["clip"].mean() > 15


def test_the_real_clip(sample_data: Path) -> None:
    """Of the Acuson clip the burned-in name, the depth marks and the ECG trace are overlay, the heart is not."""
    file = io.BytesIO((sample_data / "us/echo_a4c_acuson_sequoia_65f_jpegbaseline.dcm").read_bytes())
    (loop,) = decode_echo([file], stored_luma=True)
    found = find_clean_sector(loop, SPEC)
    assert found.quality.opening_degrees == pytest.approx(86, abs=6)
    assert found.quality.apex_column == pytest.approx(0.5, abs=0.05)
    assert found.tissue_HW.sum() > 0.98 * found.sector.mask_HW.sum()
    assert found.sector.mask_HW[:40].max() == 0  # name and date
    assert found.sector.mask_HW[400:].max() == 0  # ECG trace


def test_the_hull_is_convex_and_whole() -> None:
    """The filled hull holds the component, its rows are without gaps, and a disc stays a disc."""
    rows, columns = np.indices((60, 70))
    disc = np.hypot(rows - 30, columns - 35) < 20
    holed = disc & (np.hypot(rows - 30, columns - 35) > 8)
    hull = filled_hull(holed)
    assert (hull & ~disc).sum() <= 0.02 * disc.sum()
    assert (disc & ~hull).sum() == 0
    assert not filled_hull(np.zeros((9, 9), bool)).any()


def test_the_version_chooses_the_parameters() -> None:
    """A spec of version 1 or 2 reads back as itself; one that mixes them, or lacks a field, is refused."""
    adapter: TypeAdapter[Any] = TypeAdapter(PreprocessSpec)
    document = SPEC.model_dump()
    older = {name: document[name] for name in EchoSpec.model_fields} | {"preprocess_version": 1}
    assert type(adapter.validate_python(document)) is EchoCleanSpec
    assert type(adapter.validate_python(older)) is EchoSpec
    assert spec_sha256(adapter.validate_python(document)) == spec_sha256(SPEC)
    for wrong in (
        document | {"preprocess_version": 1},
        older | {"preprocess_version": 2},
        older | {"preprocess_version": 3},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
