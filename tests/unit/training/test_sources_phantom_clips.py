"""Digital hearts as clips: the same hearts as elsewhere, serving's pixels, a foreign scanner, drawings unchanged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.preprocess.echo import prepare_echo
from engines.preprocess.spec import EchoSpec
from tests.doubles.hearts import small_loop
from training.data import heart_arrays
from training.data.clip_store_build import build_clip_store
from training.data.sources.phantom_clips import PhantomClips
from training.data.sources.phantom_hearts import draw_subject_of
from training.data.sources.reduced_loop import reduced_loop
from training.phantoms.echo import draw_scan
from training.phantoms.echo_scanners import FAMILIAR, FOREIGN, SCANNERS
from training.phantoms.subjects import draw_subject

SPEC = EchoSpec(
    **json.loads((Path(__file__).parents[1] / "engines" / "test_preprocess_specs.json").read_text())["echo"]
)
SMALL = SPEC.model_copy(update={"size_px": 24})
QUICK = replace(FAMILIAR, name="quick", heights_px=(96,), frame_rate_hz=(25, 30), duration_s=(0.6, 0.7))
DRAWN = "f02acdb8c898c5d337becf7c93437a0ac16fd671697d886ebb0d107bd7b6f8dc"
"""Of 40 scans, drawn before the settings of the scanner could be chosen."""


def test_the_drawings_of_the_familiar_scanner_are_unchanged() -> None:
    """Every setting and the state of the generator after it are those of before: no rendered phantom has changed."""
    digest = hashlib.sha256()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        subject = draw_subject(rng)
        digest.update(repr(draw_scan(rng, subject)).encode())
        digest.update(repr(rng.bit_generator.state["state"]).encode())
    assert digest.hexdigest() == DRAWN


def test_the_foreign_scanner_lies_apart() -> None:
    """Most of its settings are drawn outside what the familiar one draws, and every heart still fits its depth."""
    assert set(SCANNERS) == {"familiar", "foreign"}
    scans = {
        scanner.name: [draw_scan(np.random.default_rng(seed), draw_subject_of(1, seed), scanner) for seed in range(60)]
        for scanner in (FAMILIAR, FOREIGN)
    }
    for name in ("height_px", "depth_mm", "half_angle_rad", "gain", "compression", "attenuation", "blood"):
        familiar, foreign = (np.array([getattr(scan, name) for scan in scans[key]]) for key in ("familiar", "foreign"))
        outside = (foreign < familiar.min()) | (foreign > familiar.max())
        assert outside.mean() > 0.3, name
    assert all(scan.apex_depth_mm + 60 < scan.depth_mm for scan in scans["foreign"])


def test_hearts_are_those_of_the_phantoms(tmp_path: Path) -> None:
    """Numbers, parts and references; the same heart has the same truth for any scanner and another picture."""
    familiar = PhantomClips(seed=5, preprocess=SMALL, train=range(2), test=range(7, 8), scanner=QUICK)
    entries = familiar.videos()
    assert [(entry.key, entry.split) for entry in entries] == [
        ("phantom-5-000000", "train"),
        ("phantom-5-000001", "train"),
        ("phantom-5-000007", "test"),
    ]
    assert entries[2].targets["lvef"] == draw_subject_of(5, 7).lvef_percent
    foreign = replace(familiar, scanner=replace(QUICK, name="quick foreign", gain=(0.4, 0.5)))
    assert [entry.targets for entry in foreign.videos()] == [entry.targets for entry in entries]
    one, other = (source.read(entries[0]) for source in (familiar, foreign))
    assert one.frames_TSS[one.frames_TSS > 0].mean() > other.frames_TSS[other.frames_TSS > 0].mean()
    assert np.array_equal(one.frames_TSS, familiar.read(entries[0]).frames_TSS)
    store = build_clip_store(familiar, tmp_path)
    assert np.array_equal(store.frames("phantom-5-000000"), one.frames_TSS)
    assert store.video("phantom-5-000000").frame_times_ms == pytest.approx(one.frame_times_ms)
    assert store.source["provenance"]["patients"] is False


def test_parts_are_disjoint() -> None:
    """A heart in two parts, a negative number or no heart at all is refused."""
    for parts in ({"train": range(5), "test": range(4, 6)}, {"train": range(-1, 2)}, {}):
        with pytest.raises(ValueError, match="expected disjoint numbers of hearts"):
            PhantomClips(seed=1, preprocess=SMALL, **parts)


def test_the_whole_loop_has_the_pixels_of_serving() -> None:
    """Every frame, in order, is the frame that serving shows at its time, whatever the time base."""
    loop = small_loop(1, frames=20)
    uneven = replace(loop, frame_times_ms=np.cumsum(np.linspace(0, 40, 20)) + np.arange(20))
    uneven = replace(uneven, frame_times_ms=uneven.frame_times_ms - uneven.frame_times_ms[0])
    whole = reduced_loop(uneven, SMALL)
    assert whole.shape == (20, 24, 24)
    spec = SMALL.model_copy(
        update={"clip_frames": 20, "clips": 1, "frame_step_ms": 40.0, "frames_min": 8, "duration_min_ms": 9.0}
    )
    assert np.array_equal(whole, prepare_echo(loop, spec).arrays["clip"][0, 0])


def test_readers_of_data_sets_leave_the_digests_alone(root: Path) -> None:
    """Every module of the sources but the phantoms' own is named as one that digital hearts do not pass through."""
    stems = {path.stem for path in (root / "training" / "data" / "sources").glob("*.py")} - {
        "__init__",
        "phantom_hearts",
        "echo_views",
    }
    assert stems == heart_arrays._DATA_SETS
