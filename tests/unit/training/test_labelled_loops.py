"""Real clips of a named view train the view check, and nothing else: thresholds and measurements stay with phantoms."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from training.config import RunConfig, ViewDataConfig, load_run
from training.coreecho.protocol import echo_run
from training.coreecho.release import release_with
from training.data.heart_arrays import HeartArrays
from training.data.sources.labelled_loops import labelled_loops, with_labelled_loops
from training.data.splits import Split
from training.phantoms.make import make_studies
from training.release import release_run
from training.view_gate import read_gate

FRAMES = 2


def small_run() -> RunConfig:
    """The recipe with few loops of coarse frames, one epoch."""
    run = load_run("view_small")
    assert isinstance(run.data, ViewDataConfig)
    spec = run.data.preprocess.model_copy(update={"size_px": 32})
    data = dataclasses.replace(run.data, hearts=40, preprocess=spec, frames=FRAMES)
    optim = dataclasses.replace(run.optim, epochs=1, batch_size=8)
    return dataclasses.replace(run, data=data, optim=optim)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A DICOM clip of a digital heart, standing in for a real one."""
    folder = tmp_path_factory.mktemp("clip")
    make_studies("echo", seed=3, count=1, out=folder)
    (file,) = sorted(folder.rglob("*.dcm"))
    return file.read_bytes()


def folder_of(root: Path, clip: bytes, table: str) -> Path:
    """A folder with one clip and a table."""
    (root / "clip.dcm").write_bytes(clip)
    (root / "views.csv").write_text(table)
    return root


def test_a_folder_of_real_clips_is_read(tmp_path: Path, clip: bytes) -> None:
    """Each clip gives as many frames as the check looks at, and its view; another view is another digest."""
    run = small_run()
    loops = labelled_loops(folder_of(tmp_path, clip, "file,view\nclip.dcm,apical_two_chamber\n"), run.data)
    assert loops.frames_RN1SS.shape == (1, FRAMES, 1, 32, 32)
    assert loops.frames_RN1SS.max() > 50
    assert loops.views == (1,)
    other = labelled_loops(folder_of(tmp_path, clip, "file,view\nclip.dcm,apical_four_chamber\n"), run.data)
    assert other.views == (0,)
    assert other.sha256 != loops.sha256


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("file,view\nclip.dcm,four_chamber\n", "expected one of apical_four_chamber"),
        ("file,view\nother.dcm,apical_four_chamber\n", "not in the folder"),
        ("file,view\n", "names no clip"),
        ("name,view\nclip.dcm,apical_four_chamber\n", "not in the folder"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, clip: bytes, table: str, said: str) -> None:
    """The message says what is wrong with which row."""
    folder = folder_of(tmp_path, clip, table)
    (folder / "views.csv").write_text(table)
    with pytest.raises(ValueError, match=said):
        labelled_loops(folder, small_run().data)


def test_a_file_that_is_no_clip_is_refused(tmp_path: Path, clip: bytes) -> None:
    """Its name and the reason are said."""
    folder = folder_of(tmp_path, clip[:2000], "file,view\nclip.dcm,apical_four_chamber\n")
    with pytest.raises(ValueError, match=r"clip\.dcm gives no clip"):
        labelled_loops(folder, small_run().data)


def test_a_folder_without_table_is_refused(tmp_path: Path) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match=r"has no views\.csv"):
        labelled_loops(tmp_path, small_run().data)


def test_real_clips_only_train(tmp_path: Path, clip: bytes) -> None:
    """They stand behind the phantoms, take their share of the training rows, and are in no other part of the split."""
    loops = labelled_loops(folder_of(tmp_path, clip, "file,view\nclip.dcm,apical_two_chamber\n"), small_run().data)
    hearts = 100
    arrays = HeartArrays(
        inputs=np.zeros((hearts, FRAMES, 1, 32, 32), np.uint8),
        targets=np.zeros((hearts, 1), np.float32),
        clips=np.full(hearts, FRAMES, np.uint8),
        sha256="a",
        columns=("view",),
    )
    train, validation, calibration, test = np.split(np.arange(hearts), [60, 70, 85])
    split = Split(train=train, validation=validation, calibration=calibration, test=test)
    shown, shown_split = with_labelled_loops(arrays, split, loops)
    assert np.array_equal(shown.inputs[hearts], loops.frames_RN1SS[0])
    assert shown.targets[hearts, 0] == 1
    assert shown.sha256 != arrays.sha256
    assert np.count_nonzero(shown_split.train == hearts) == 3
    for part in ("validation", "calibration", "test"):
        assert getattr(shown_split, part).max() < hearts


def test_a_released_gate_says_how_many_real_clips_it_saw(tmp_path: Path, clip: bytes) -> None:
    """The number goes into the gate's folder and from there into the words and the metrics of an echo bundle."""
    clips = tmp_path / "clips"
    clips.mkdir()
    folder_of(clips, clip, "file,view\nclip.dcm,apical_four_chamber\n")
    gate = tmp_path / "gate"
    release_run(small_run(), tmp_path / "runs", gate, workers=1, threads=1, clips=clips)
    part = read_gate(gate)
    assert part.real_loops == 1
    assert json.loads((gate / "metrics.json").read_text())["test_loops"] < 40
    release = release_with(echo_run("coreecho_small"), part)
    assert release.bundle.training_data == "digital phantoms (its view check also on 1 real clip)"
    assert release.metrics["view_check_real_training_loops"] == 1


def test_only_a_view_network_takes_real_clips(tmp_path: Path) -> None:
    """Any other recipe refuses them before anything is made."""
    with pytest.raises(ValueError, match="tells no views"):
        release_run(echo_run("coreecho_small"), tmp_path, tmp_path, workers=1, threads=1, clips=tmp_path)
