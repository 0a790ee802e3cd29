"""The benchmark of the clip loader: its sides make equal batches, and it says so when they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import bench_clip_loader as module


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three short, small videos, two of them in a batch."""
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "SIDE_PX", 48)
    monkeypatch.setattr(module, "SAMPLING", module.Sampling(shape=module.ClipShape(frames=4, period_frames=4), seed=0))


def test_all_sides_make_the_same_batch(tmp_path: Path) -> None:
    """Every row is correct, times are there, and decoding is within what JPEG loses."""
    rows = module.measured(tmp_path, 3, 1)
    assert len(rows) == 3
    assert all(row["correct"] for row in rows)
    assert all(0 < row["from what was written, grey levels"] < module.JPEG_LEVELS for row in rows)
    assert rows[0]["processor time, times the store"] == 1


def test_a_side_that_disagrees_is_not_correct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One grey level of one pixel is enough."""
    arms_of = module.arms_of

    def altered(root: Path, store: module.ClipStore) -> dict[str, object]:
        arms = arms_of(root, store)
        good = arms["store"]
        last = list(arms)[-1]
        arms[last] = lambda batch: np.where(good(batch) == 7, 8, good(batch))
        return dict(arms)

    monkeypatch.setattr(module, "arms_of", altered)
    assert not any(row["correct"] for row in module.measured(tmp_path, 3, 1))
