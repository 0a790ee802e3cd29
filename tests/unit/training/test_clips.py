"""Clips: published starts and padding, serving's own frames by time, a shift shared by all frames, draws by seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.preprocess.echo import prepare_echo
from engines.preprocess.spec import EchoSpec
from tests.doubles.hearts import small_loop
from training.coreecho.clips import (
    ClipShape,
    Sampling,
    Video,
    all_starts,
    cut,
    evenly_picked,
    fixed_starts,
    random_starts,
    shown_frames,
    two_view_batch,
    two_views,
)
from training.data.sources.reduced_loop import reduced_loop

PUBLISHED = ClipShape(frames=36, period_frames=4)
BY_TIME = ClipShape(frames=5, step_ms=80.0)
SPECS = Path(__file__).parents[1] / "engines" / "test_preprocess_specs.json"


def numbered(count: int, side: int = 4, interval_ms: float | None = None) -> Video:
    """A video whose grey level is the number of the frame, from 1."""
    frames = np.repeat(np.arange(1, count + 1, dtype=np.uint8), side * side).reshape(count, side, side)
    return Video(frames_FSS=frames, frame_times_ms=None if interval_ms is None else interval_ms * np.arange(count))


def levels(clip: np.ndarray) -> list[int]:
    """Number of the frame that each frame of a clip shows, from 1; 0 is black."""
    return [int(frame[0, 0]) for frame in clip]


@pytest.mark.parametrize(("frames", "last"), [(1, 3), (100, 3), (141, 3), (144, 3), (145, 4), (250, 109)])
def test_the_published_starts(frames: int, last: int) -> None:
    """A window of 141 native frames starts at 0 to f - 141, f being at least 144: a short video has four starts."""
    starts = all_starts(numbered(frames), PUBLISHED)
    assert starts.tolist() == list(range(last + 1))
    drawn = random_starts(numbered(frames), PUBLISHED, 400, np.random.default_rng(0))
    assert (drawn.min(), drawn.max()) == (0, last)


def test_every_fourth_frame_and_black_at_the_end() -> None:
    """Frames are taken four apart; what lies beyond the end is 0, before any normalisation."""
    video = numbered(142)
    assert levels(cut(video, 1, PUBLISHED)) == list(range(2, 143, 4))
    assert levels(cut(video, 3, PUBLISHED)) == [*range(4, 143, 4), 0]
    assert levels(cut(numbered(10), 0, PUBLISHED)) == [1, 5, 9, *[0] * 33]
    assert cut(video, 0, PUBLISHED).dtype == np.uint8


def test_black_is_the_published_padding_value() -> None:
    """Black pixels become the published padding values once normalised."""
    mean, deviation = np.array([0.12741163, 0.1279413, 0.12912785]), np.array([0.19557191, 0.19562256, 0.1965878])
    black = cut(numbered(10), 0, PUBLISHED)[-1, 0, 0]
    assert (black - 255 * mean) / (255 * deviation) == pytest.approx((-0.6515, -0.6540, -0.6568), abs=1e-4)


def test_fixed_starts_are_spread_over_the_video() -> None:
    """Three fixed starts reach from the first to the last, always the same, each once."""
    assert fixed_starts(numbered(250), PUBLISHED, 3).tolist() == [0, 54, 109]
    assert fixed_starts(numbered(20), PUBLISHED, 3).tolist() == [0, 2, 3]
    assert fixed_starts(numbered(20), PUBLISHED, 9).tolist() == [0, 1, 2, 3]
    assert fixed_starts(numbered(250), PUBLISHED, 1).tolist() == [0]


def test_by_time_the_nearest_frames_are_taken() -> None:
    """At 30 ms a frame, steps of 80 ms take the nearest frames; half a step beyond the end is black."""
    video = numbered(12, interval_ms=30.0)
    assert shown_frames(video, BY_TIME, 0.0).tolist() == [0, 3, 5, 8, 11]
    assert shown_frames(video, BY_TIME, 50.0).tolist() == [2, 4, 7, 10, 11]
    assert shown_frames(video, BY_TIME, 51.0).tolist() == [2, 4, 7, 10, -1]
    assert all_starts(video, BY_TIME).tolist() == [0]
    assert all_starts(numbered(14, interval_ms=30.0), BY_TIME).tolist() == [0, 30, 60]
    assert levels(cut(numbered(1, interval_ms=30.0), 0.0, BY_TIME)) == [1, 0, 0, 0, 0]


def test_a_video_without_times_cannot_be_cut_by_time() -> None:
    """The message says what to do instead."""
    with pytest.raises(ValueError, match="cut clips by period_frames"):
        fixed_starts(numbered(20), BY_TIME, 3)


@pytest.mark.parametrize(("frames", "frame_ms"), [(40, 40.0), (23, 34.7), (61, 17.3)])
def test_fixed_clips_are_those_of_the_serving_path(frames: int, frame_ms: float) -> None:
    """Cut from the whole reduced loop, they equal what ``prepare_echo`` makes of the record, pixel by pixel."""
    spec = EchoSpec(**json.loads(SPECS.read_text())["echo"])
    spec = spec.model_copy(update={"size_px": 24, "clip_frames": 8, "clips": 3, "frame_step_ms": 80.0})
    loop = small_loop(2, frames=frames, frame_ms=frame_ms)
    video = Video(frames_FSS=reduced_loop(loop, spec), frame_times_ms=loop.frame_times_ms)
    shape = ClipShape(frames=8, step_ms=80.0)
    clips = np.stack([cut(video, start, shape) for start in fixed_starts(video, shape, 3)])
    expected = prepare_echo(loop, spec).arrays["clip"][:, 0]
    assert expected.any()
    assert np.array_equal(clips, expected)


@settings(max_examples=30, deadline=None)
@given(down=st.integers(-6, 6), right=st.integers(-6, 6))
def test_a_shift_is_a_crop_of_the_padded_picture(down: int, right: int) -> None:
    """Moved clips equal a black border of 6 pixels and a crop, the same for every frame."""
    frames = np.random.default_rng(0).integers(1, 256, (9, 16, 16), dtype=np.uint8)
    shape = ClipShape(frames=4, period_frames=3)
    padded = np.pad(frames[::3], ((0, 1), (6, 6), (6, 6)))
    expected = padded[:, 6 - down : 22 - down, 6 - right : 22 - right]
    assert np.array_equal(cut(Video(frames_FSS=frames), 0, shape, shift_px=(down, right)), expected)


def test_views_are_drawn_by_seed_epoch_and_row_alone() -> None:
    """The same three numbers give the same views in any batch; another of them gives others; the views differ."""
    video = Video(frames_FSS=np.random.default_rng(1).integers(0, 256, (60, 8, 8), dtype=np.uint8))
    sampling = Sampling(shape=ClipShape(frames=4, period_frames=5), seed=3, translation_px=2)
    views = two_views(video, sampling, epoch=2, index=7)
    assert views.shape == (2, 4, 8, 8)
    assert not np.array_equal(views[0], views[1])
    batch = two_view_batch([video] * 3, [5, 7, 9], sampling, epoch=2)
    assert batch.shape == (2, 3, 4, 8, 8)
    assert np.array_equal(batch[:, 1], views)
    assert not np.array_equal(batch[:, 0], views)
    assert not np.array_equal(two_views(video, sampling, epoch=3, index=7), views)
    other_seed = Sampling(shape=sampling.shape, seed=4, translation_px=2)
    assert not np.array_equal(two_views(video, other_seed, epoch=2, index=7), views)
    one = Sampling(shape=sampling.shape, seed=3, translation_px=2, views=1)
    assert np.array_equal(two_views(video, one, epoch=2, index=7), views[:1])


def test_shifts_reach_both_ends() -> None:
    """Over many draws the translation takes each of the 13 values from -6 to 6, and no other."""
    point = np.zeros((1, 32, 32), np.uint8)
    point[0, 16, 16] = 255
    sampling = Sampling(shape=ClipShape(frames=1, period_frames=1), seed=0, views=1)
    drawn = [two_views(Video(frames_FSS=point), sampling, epoch=0, index=row)[0, 0] for row in range(300)]
    places = [np.unravel_index(clip.argmax(), clip.shape) for clip in drawn]
    assert {int(row) - 16 for row, _ in places} == set(range(-6, 7)) == {int(column) - 16 for _, column in places}


def test_evenly_picked_frames() -> None:
    """Up to so many frames are kept as they are; more are thinned evenly, both ends kept."""
    assert evenly_picked(18, 32).tolist() == list(range(18))
    picked = evenly_picked(50, 32)
    assert (len(picked), picked[0], picked[-1]) == (32, 0, 49)
    assert set(np.diff(picked)) == {1, 2}


@pytest.mark.parametrize(
    "fields",
    [{}, {"period_frames": 4, "step_ms": 80.0}, {"period_frames": 0}, {"step_ms": -1.0}, {"frames": 0, "step_ms": 1.0}],
)
def test_a_shape_is_valid_once_built(fields: dict[str, float]) -> None:
    """Neither or both spacings, and numbers that are not positive, are refused."""
    with pytest.raises(ValueError, match=r"either period_frames or step_ms|not positive"):
        ClipShape(**({"frames": 4} | fields))  # type: ignore[arg-type]
