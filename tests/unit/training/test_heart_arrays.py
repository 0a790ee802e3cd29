"""Arrays of hearts: made once, taken up where they were left, never made twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engines.preprocess.registry import prepare
from engines.records import EcgRecord, Modality, SourceInstance
from training.config import DataConfig, load_recipe
from training.data import heart_arrays as module
from training.data.batches import all_clips, training_batches
from training.data.heart_arrays import REFUSED, heart_arrays, source_digest
from training.data.sources.phantom_hearts import Heart
from training.data.targets import COLUMNS
from training.signature import input_spec

SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="1.3", series_instance_uid="1.4")
FLAT_HEART = 2


def _heart(modality: Modality, seed: int, index: int) -> Heart:
    """Sines that obey Einthoven's law; one heart has its electrodes off."""
    assert modality is Modality.ECG
    rng = np.random.default_rng([seed, index])
    lead_1, lead_2, *chest = np.sin(np.arange(5000) / rng.uniform(10, 20, (8, 1)))
    limbs = [lead_1, lead_2, lead_2 - lead_1, -(lead_1 + lead_2) / 2, lead_1 - lead_2 / 2, lead_2 - lead_1 / 2]
    signal = np.stack([*limbs, *chest]).astype(np.float32) * (index != FLAT_HEART)
    record = EcgRecord(signal_mv=signal, sampling_rate_hz=500.0, source=SOURCE)
    return Heart(record=record, targets=dict.fromkeys(COLUMNS, float(index)))


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Six hearts, drawn by ``_heart``."""
    monkeypatch.setattr(module, "draw_heart", _heart)
    return dataclasses.replace(load_recipe("ecg_cmr_small").data, hearts=6)


def test_arrays_are_what_the_engines_prepare(config: DataConfig, tmp_path: Path) -> None:
    """Each row equals ``engines.preprocess.prepare`` of its record; the refused heart is marked."""
    arrays = heart_arrays(tmp_path, config, input_spec(config.preprocess), workers=1)
    expected = prepare(_heart(Modality.ECG, config.seed, 4).record, config.preprocess).arrays["ecg"]
    np.testing.assert_array_equal(arrays.inputs[4], expected)
    assert arrays.clips.tolist() == [1, 1, REFUSED, 1, 1, 1]
    assert arrays.usable(np.array([1, 2, 3])).tolist() == [1, 3]
    assert arrays.targets[5].tolist() == [5.0] * len(COLUMNS)


def test_making_takes_up_where_it_was_killed(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hearts made before the kill are not made again, and the result is that of an unbroken run."""
    made: list[int] = []

    def dies_at_three(modality: Modality, seed: int, index: int) -> Heart:
        if index == 3 and 3 not in made:
            made.append(index)
            raise KeyboardInterrupt
        made.append(index)
        return _heart(modality, seed, index)

    monkeypatch.setattr(module, "draw_heart", dies_at_three)
    with pytest.raises(KeyboardInterrupt):
        heart_arrays(tmp_path / "killed", config, input_spec(config.preprocess), workers=1)
    resumed = heart_arrays(tmp_path / "killed", config, input_spec(config.preprocess), workers=1)
    monkeypatch.setattr(module, "draw_heart", _heart)
    whole = heart_arrays(tmp_path / "whole", config, input_spec(config.preprocess), workers=1)
    assert made == [0, 1, 2, 3, 3, 4, 5]
    np.testing.assert_array_equal(resumed.inputs, whole.inputs)
    np.testing.assert_array_equal(resumed.targets, whole.targets)


def test_another_specification_is_another_data_set(config: DataConfig, tmp_path: Path) -> None:
    """A changed parameter never meets arrays made with the old one; a changed split does."""
    spec = config.preprocess.model_copy(update={"highpass_hz": 0.6})
    other_split = dataclasses.replace(config.split, train=config.split.test, test=config.split.train)
    heart_arrays(tmp_path, config, input_spec(config.preprocess), workers=1)
    heart_arrays(tmp_path, dataclasses.replace(config, split=other_split), input_spec(config.preprocess), workers=1)
    assert len(list(tmp_path.iterdir())) == 1
    heart_arrays(tmp_path, dataclasses.replace(config, preprocess=spec), input_spec(spec), workers=1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_record_that_does_not_fit_the_network_is_an_error(config: DataConfig, tmp_path: Path) -> None:
    """Shapes are checked, not broadcast."""
    wrong = input_spec(config.preprocess.model_copy(update={"window_samples": 2500}))
    with pytest.raises(ValueError, match="expected float32"):
        heart_arrays(tmp_path, config, wrong, workers=1)


def test_batches_show_every_usable_heart_once(config: DataConfig, tmp_path: Path) -> None:
    """An epoch is a permutation, the same for the same epoch, another for the next."""
    arrays = heart_arrays(tmp_path, config, input_spec(config.preprocess), workers=1)
    hearts = arrays.usable(np.arange(6))
    epochs = [
        [int(value) for batch in _epoch(arrays, hearts, epoch) for value in batch.targets["lvef"]]
        for epoch in (0, 0, 1, 2, 3)
    ]
    assert all(sorted(epoch) == [0, 1, 3, 4, 5] for epoch in epochs)
    assert epochs[0] == epochs[1]
    assert any(epoch != epochs[0] for epoch in epochs[2:])
    everything = [int(value) for batch in all_clips(arrays, hearts, batch_size=2) for value in batch.targets["lvef"]]
    assert everything == [0, 1, 3, 4, 5]


def _epoch(arrays: module.HeartArrays, hearts: np.ndarray, epoch: int) -> list[module.Any]:
    return list(training_batches(arrays, hearts, batch_size=1, seed=1, epoch=epoch))


def test_the_source_digest_sees_code_that_matters_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, docstrings and other modalities keep the digest; a changed number does not."""
    monkeypatch.setattr(module, "__file__", str(tmp_path / "training" / "data" / "heart_arrays.py"))
    folder = tmp_path / "engines" / "preprocess"
    folder.mkdir(parents=True)
    (folder / "ecg.py").write_text("x = 1\n", encoding="utf-8")
    before = source_digest(Modality.ECG)
    (folder / "ecg.py").write_text('"""One."""\nx = 1  # one\n', encoding="utf-8")
    (folder / "cmr.py").write_text("y = 1\n", encoding="utf-8")
    assert source_digest(Modality.ECG) == before
    (folder / "ecg.py").write_text("x = 2\n", encoding="utf-8")
    assert source_digest(Modality.ECG) != before
