"""Echo preprocessing: the sector is what moves, time is real time, colour and doubt are refused, memory stays flat."""

from __future__ import annotations

import io
import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.decode.echo import decode_echo
from engines.errors import InputRefused, RefusalCode
from engines.preprocess.echo import find_sector, prepare_echo
from engines.preprocess.spec import EchoSpec
from engines.records import ArrayFrames, CineLoop, SourceInstance
from tests.doubles.hearts import small_loop, small_ultrasound_scan

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SPEC = EchoSpec(**json.loads(Path(__file__).with_name("test_preprocess_specs.json").read_text())["echo"])
SOURCE = SourceInstance(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.3.1", sop_instance_uid="2.25.1", series_instance_uid="2.25.2"
)
SIDE = 96


def spec(**changes: Any) -> EchoSpec:
    """The spec with some parameters changed."""
    return SPEC.model_copy(update=changes)


def disc(rows: float, columns: float, radius: float, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A filled disc."""
    y, x = np.indices(shape)
    return np.hypot(y - rows, x - columns) < radius


def flickering(count: int, times_ms: Sequence[float] | None = None, **changes: Any) -> CineLoop:
    """A disc whose grey level tells the frame's number, on black, in the middle of the frame."""
    levels = (np.arange(count) * 5 % 240 + 10).astype(np.uint8)
    pixels = disc(SIDE / 2, SIDE / 2, 30)[None] * levels[:, None, None]
    loop = CineLoop(
        frames=ArrayFrames(frames_THW=pixels.astype(np.uint8)),
        frame_times_ms=np.asarray(times_ms if times_ms is not None else 40.0 * np.arange(count), float),
        region_px=None,
        spacing_mm=None,
        heart_rate_bpm=None,
        view=None,
        source=SOURCE,
    )
    return replace(loop, **changes)


def refusal_of(loop: CineLoop, using: EchoSpec = SPEC) -> RefusalCode:
    """Code of the refusal that preparing ends in."""
    with pytest.raises(InputRefused) as caught:
        prepare_echo(loop, using)
    return caught.value.code


def shown_frames(clip_TSS: np.ndarray) -> list[int]:
    """Number of the frame of ``flickering`` that each step of a clip shows; -1 where it is black."""
    middle = clip_TSS[:, clip_TSS.shape[1] // 2, clip_TSS.shape[2] // 2].astype(int)
    return [(level - 10) // 5 if level else -1 for level in middle]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_sector_of_phantoms(seed: int) -> None:
    """The mask covers at least 90 % of the drawn sector, lies within the region, and leaves out text and the ECG trace."""
    loop, scan = small_loop(seed), small_ultrasound_scan(seed)
    mask = find_sector(loop, SPEC).mask_HW > 0
    x0, y0, x1, y1 = scan.region_px
    columns, rows = np.meshgrid(np.arange(x1 - x0) - (x1 - x0 - 1) / 2, np.arange(y1 - y0))
    drawn = np.zeros_like(mask)
    drawn[y0:y1, x0:x1] = (np.abs(np.arctan2(columns, rows)) < scan.half_angle_rad) & (
        np.hypot(columns, rows) * scan.spacing_mm < scan.depth_mm
    )
    assert (mask & drawn).sum() > 0.9 * drawn.sum()
    assert (mask & ~drawn).sum() < 0.03 * drawn.sum()


@pytest.mark.parametrize("seed", [1, 2])
def test_overlays_stay_outside_without_a_region(seed: int) -> None:
    """Where no region is stated, static text and the running ECG trace still do not count as sector."""
    loop, scan = replace(small_loop(seed), region_px=None), small_ultrasound_scan(seed)
    mask = find_sector(loop, SPEC).mask_HW
    text = mask[:14, :60]
    trace = mask[scan.height_px - 20 :]
    assert text.sum() == 0
    assert trace.sum() == 0
    assert mask.mean() > SPEC.sector_area_min


def test_nothing_outside_the_sector_is_left() -> None:
    """Static text and a moving trace far from the tissue are black in the clip; what stands still inside it is kept."""
    loop = flickering(40)
    pixels = loop.frames.frames_THW.copy()  # type: ignore[attr-defined]
    pixels[:, 2:6, 2:60] = 250  # text
    pixels[np.arange(40), 92, np.arange(40) * 2] = 250  # trace
    pixels[:, 46:50, 46:50] = 99  # something still inside
    clip = prepare_echo(replace(loop, frames=ArrayFrames(frames_THW=pixels)), spec(margin_fraction=0.4)).arrays["clip"]
    side = clip.shape[-1]
    corner = clip[..., : side // 8, :]
    assert corner.max() == 0
    assert clip[..., -side // 10 :, :].max() == 0
    assert clip[0, 0, 3, side // 2, side // 2] == 99


def test_the_real_clip(sample_data: Path) -> None:
    """The Acuson clip: a sector inside its region, 65 frames over 2.44 s, clips in time order, mostly inside the square."""
    file = io.BytesIO((sample_data / "us/echo_a4c_acuson_sequoia_65f_jpegbaseline.dcm").read_bytes())
    (loop,) = decode_echo([file])
    mask = find_sector(loop, SPEC).mask_HW
    x0, y0, x1, y1 = loop.region_px or (0, 0, 0, 0)
    inside = mask[y0:y1, x0:x1]
    assert inside.sum() == mask.sum()
    assert 0.4 < inside.mean() < 0.8
    prepared = prepare_echo(loop, SPEC)
    assert prepared.arrays["clip"].shape == (SPEC.clips, 1, SPEC.clip_frames, SPEC.size_px, SPEC.size_px)
    assert prepared.sources[0].frame_numbers[-1] == 65
    assert prepared.arrays["clip"].mean() > 15


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.integers(10, 75), min_size=45, max_size=45))
def test_uneven_frame_times(steps: list[int]) -> None:
    """Whatever the frame times are, each step of a clip shows the frame nearest to it in time."""
    times = np.cumsum([0, *steps]).astype(float)
    using = spec(clip_frames=8, clips=3, frame_step_ms=50.0, short_loop="refuse")
    if times[-1] < 700:
        return
    clips = prepare_echo(flickering(46, times), using).arrays["clip"]
    starts = np.linspace(0, times[-1] - 350, 3)
    for start, clip in zip(starts, clips[:, 0], strict=True):
        wanted = start + 50.0 * np.arange(8)
        shown = np.array(shown_frames(clip))
        assert np.abs(times[shown] - wanted) == pytest.approx(np.abs(times[:, None] - wanted).min(axis=0))


def test_clips_are_evenly_spaced() -> None:
    """The first clip starts with the loop, the last one ends with it; the middle one lies between."""
    clips = prepare_echo(flickering(46), spec(clip_frames=11, clips=3, frame_step_ms=40.0)).arrays["clip"]
    assert [shown_frames(clip[0])[0] for clip in clips] == [0, 17, 35]
    assert shown_frames(clips[2, 0])[-1] == 45


def test_a_loop_without_room_gives_one_clip_in_its_middle() -> None:
    """A loop hardly longer than a clip gives one, not several alike."""
    prepared = prepare_echo(
        flickering(21), spec(clip_frames=19, clips=4, frame_step_ms=40.0, frame_interval_max_ms=40.0)
    )
    assert prepared.arrays["clip"].shape[0] == 3
    assert prepare_echo(flickering(20), spec(clip_frames=20, clips=4, frame_step_ms=40.0)).arrays["clip"].shape[0] == 1


def test_a_short_loop_ends_in_black_or_is_refused() -> None:
    """As the spec says: the missing end is left black and noted, or the loop is refused; frames are never repeated."""
    loop = flickering(25)
    prepared = prepare_echo(loop, spec(clip_frames=30, frame_step_ms=40.0, short_loop="black_end"))
    assert shown_frames(prepared.arrays["clip"][0, 0]) == [*range(25), *[-1] * 5]
    assert "200 ms shorter" in prepared.notes[0]
    using = spec(clip_frames=30, frame_step_ms=40.0, short_loop="refuse")
    assert refusal_of(loop, using) is RefusalCode.TOO_FEW_FRAMES


@pytest.mark.parametrize(
    "loop",
    [flickering(SPEC.frames_min - 1), flickering(20, 20.0 * np.arange(20)), flickering(20, 81.0 * np.arange(20))],
    ids=["too few frames", "under one beat", "too slow"],
)
def test_unusable_time_bases_are_refused(loop: CineLoop) -> None:
    """Too few frames, less than a heart beat, and too long gaps between frames are refused before any frame is read."""
    assert refusal_of(replace(loop, frames=Counted(loop.frames, forbidden=True))) is RefusalCode.TOO_FEW_FRAMES


def test_a_still_image_has_no_sector() -> None:
    """Where nothing moves there is no tissue to find."""
    still = np.repeat(flickering(2).frames.frames_THW[1:], 30, axis=0)  # type: ignore[attr-defined]
    loop = flickering(30, frames=ArrayFrames(frames_THW=still))
    assert refusal_of(loop) is RefusalCode.SECTOR_NOT_FOUND


def test_noise_all_over_has_no_sector() -> None:
    """Where the whole screen moves, in a frame of a scanner's size, there is no sector either."""
    noise = np.random.default_rng(1).integers(0, 255, (30, 240, 320), np.uint8)
    assert refusal_of(flickering(30, frames=ArrayFrames(frames_THW=noise))) is RefusalCode.SECTOR_NOT_FOUND


def test_only_a_thin_trace_has_no_sector() -> None:
    """A running line is not taken for tissue."""
    pixels = np.zeros((40, SIDE, SIDE), np.uint8)
    pixels[np.arange(40), 80, np.arange(40) * 2] = 250
    assert refusal_of(flickering(40, frames=ArrayFrames(frames_THW=pixels))) is RefusalCode.SECTOR_NOT_FOUND


def test_a_line_that_touches_the_tissue_does_not_widen_it() -> None:
    """A thin moving line, such as a caliper or a trace, from the tissue to the edge of the frame is cut off."""
    loop = flickering(40)
    pixels = loop.frames.frames_THW.copy()  # type: ignore[attr-defined]
    pixels[::2, :20, 46:50] = 250
    lined = replace(loop, frames=ArrayFrames(frames_THW=pixels))
    assert find_sector(lined, SPEC).mask_HW[:14].sum() == 0


@dataclass
class Counted:
    """Frames of which it is known how many were given and how many were held at once; coloured or forbidden if wished."""

    frames: Any
    spread: float = 0.0
    forbidden: bool = False
    given: int = 0
    most_alive: int = 0
    alive: list[weakref.ref[np.ndarray]] = field(default_factory=list)

    @property
    def shape_HW(self) -> tuple[int, int]:
        """Rows and columns."""
        shape: tuple[int, int] = self.frames.shape_HW
        return shape

    def __len__(self) -> int:
        return len(self.frames)

    def luma(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield a copy of each frame and keep nothing but a weak reference to it."""
        assert not self.forbidden
        for index in indices:
            (frame,) = self.frames.luma([index])
            yield self._watched(frame.copy())

    def _watched(self, frame: np.ndarray) -> np.ndarray:
        self.given += 1
        self.alive = [*(each for each in self.alive if each() is not None), weakref.ref(frame)]
        self.most_alive = max(self.most_alive, len(self.alive))
        return frame

    def chroma_spread(self, index: int) -> float:
        """As told."""
        assert 0 <= index < len(self)
        return self.spread


@pytest.mark.parametrize(("spread", "refused"), [(0.0, False), (5.9, False), (6.1, True), (34.0, True)])
def test_colour_is_refused(spread: float, refused: bool) -> None:
    """A clip that departs from grey by more than the limit is colour Doppler."""
    loop = flickering(40)
    loop = replace(loop, frames=Counted(loop.frames, spread=spread))
    if refused:
        assert refusal_of(loop) is RefusalCode.COLOUR_DOPPLER
    else:
        assert prepare_echo(loop, SPEC).arrays["clip"].any()


def test_the_real_colour_clips_are_refused(sample_data: Path) -> None:
    """The Acuson colour clips are too short; made longer, they are refused for their colour or as no B-mode sector."""
    file = sample_data / "us/echo_colour_acuson_8f_implicit_rgb.dcm"
    (loop,) = decode_echo([io.BytesIO(file.read_bytes())])
    assert refusal_of(loop) is RefusalCode.TOO_FEW_FRAMES
    assert refusal_of(loop, spec(frames_min=8, duration_min_ms=100.0)) is RefusalCode.COLOUR_DOPPLER


def test_a_square_in_millimetres() -> None:
    """Pixels that are twice as high as wide give a round disc again."""
    shape = (SIDE, SIDE)
    levels = (np.arange(40) * 5 % 240 + 10).astype(np.uint8)
    y, x = np.indices(shape)
    ellipse = np.hypot((y - 48) / 15, (x - 48) / 30) < 1
    pixels = (ellipse[None] * levels[:, None, None]).astype(np.uint8)
    loop = flickering(40, frames=ArrayFrames(frames_THW=pixels), spacing_mm=(1.0, 0.5))
    clip = prepare_echo(loop, SPEC).arrays["clip"][0, 0, 4] > 0
    height, width = np.ptp(np.flatnonzero(clip.any(axis=1))), np.ptp(np.flatnonzero(clip.any(axis=0)))
    assert abs(int(height) - int(width)) <= 5


def test_the_region_bounds_the_search() -> None:
    """Movement outside the stated region is not looked at, however large it is."""
    beside = np.zeros((40, SIDE, 120), np.uint8)
    beside[::2, 4:-4, 8:-8] = 200
    loop = flickering(40)
    wide = np.concatenate([loop.frames.frames_THW, beside], axis=2)  # type: ignore[attr-defined]
    prepared = prepare_echo(replace(loop, frames=ArrayFrames(frames_THW=wide), region_px=(4, 4, 92, 92)), SPEC)
    assert prepared.region_px == pytest.approx((17, 17, 79, 79), abs=3)


def test_the_frames_used_are_named() -> None:
    """The evidence lists the frames of the clips, one-based, each once, in order."""
    loop = flickering(46)
    (source,) = prepare_echo(loop, spec(clip_frames=4, clips=2, frame_step_ms=80.0)).sources
    assert source.frame_numbers == (1, 3, 5, 7, 40, 42, 44, 46)


def test_frames_are_asked_for_one_at_a_time() -> None:
    """Of a long clip only the frames for the sector and the clips are read, each held alone: memory does not grow."""
    loop = flickering(600)
    counted = Counted(loop.frames)
    using = spec(clip_frames=16, clips=4, frame_step_ms=80.0)
    prepare_echo(replace(loop, frames=counted), using)
    assert counted.most_alive <= 2  # the one at work and the one that comes
    assert 0 < counted.given <= using.sector_frames + using.clip_frames * using.clips
