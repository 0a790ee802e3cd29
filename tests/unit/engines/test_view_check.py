"""The view check: nothing is estimated from a loop that does not show an apical four-chamber view."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle.reader import load_bundle
from engines.bundle.second_graphs import TrustedLabel
from engines.errors import BundleCorrupt, RefusalCode, SelfTestFailed
from engines.predictions import Prediction
from engines.predictors.base import Predictor
from engines.predictors.view_check import ViewCheck, check_gate, gate_bundle, gate_frames
from engines.preprocess.registry import Prepared
from engines.records import Modality, SourceInstance
from engines.selftest import open_view_check
from tests.doubles import bundles
from tests.doubles.runners import ScriptedRunner

OTHER, WANTED = 0, 1
"""Columns of the tiny gate."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny echo bundle with a gate."""
    return bundles.write_tiny(
        tmp_path_factory.mktemp("gated") / "echo", Modality.ECHO, schema_version=2, gate=bundles.gate()
    )


def loop(number: int, evidence: int, *, frames: int = 2, label: tuple[str, str] | None = None) -> Prepared:
    """A candidate of EF 50 + number whose pixels say how strongly the gate shall lean to the wanted view: 128 not at all."""
    clip = np.full((2, 1, frames, 16, 16), evidence, np.uint8)
    clip[:, 0, 0, 0, 0] = 50 + number
    labels = () if label is None else (label,)
    source = SourceInstance(
        sop_class_uid="1.2", sop_instance_uid=f"2.25.{number}", series_instance_uid="2.25.9", view_labels=labels
    )
    return Prepared(arrays={"clip": clip}, sources=(source,), region_px=(number, 0, 50, 60), notes=(f"note {number}",))


def look(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits from the grey level of each frame's middle."""
    frames = inputs["frames"]
    logits = np.zeros((len(frames), 3), np.float32)
    logits[:, WANTED] = (frames[:, 0, 8, 8].astype(np.float32) - 128) / 16
    return {"view_logits": logits}


def estimate(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The EF that a candidate's first pixel states."""
    clip = inputs["clip"]
    return {"ef": clip[:, 0, 0, 0, :1].astype(np.float32), "embedding": np.zeros((len(clip), 4), np.float32)}


def predictor(folder: Path, *, trusted: tuple[TrustedLabel, ...] = (), **changes: Any) -> Predictor:
    """Scripted engine behind a scripted gate."""
    bundle = load_bundle(folder)
    assert bundle.manifest.gate is not None
    gate = bundle.manifest.gate.model_copy(update=changes)
    seen = gate_bundle(bundle, gate)
    check = ViewCheck(gate, ScriptedRunner(seen.manifest, look), trusted)
    return Predictor(bundle, ScriptedRunner(bundle.manifest, estimate), (), check)


def predicted(folder: Path, *loops: Prepared, **options: Any) -> Prediction:
    """What the scripted engine says of some candidates."""
    return predictor(folder, **options).predict(loops)


def test_the_wanted_view_is_answered(folder: Path) -> None:
    """A loop that passes is answered from, and the note says how sure the check was and over how many frames."""
    prediction = predicted(folder, loop(1, 220))
    assert prediction.estimates[0].value == 51
    assert prediction.notes[0] == "View: apical four-chamber, probability 0.99 over 4 frames."
    assert prediction.out_of_distribution_score == 0.0


@pytest.mark.parametrize(
    ("evidence", "code"),
    [(40, RefusalCode.VIEW_UNCERTAIN), (128, RefusalCode.VIEW_UNCERTAIN), (148, RefusalCode.VIEW_UNCERTAIN)],
)
def test_doubt_gives_no_number(folder: Path, evidence: int, code: RefusalCode) -> None:
    """Where no view leads clearly the engine is not even run."""
    engine = predictor(folder)
    prediction = engine.predict([loop(1, evidence)])
    assert prediction.estimates == ()
    assert prediction.abstention is not None
    assert prediction.abstention.code is code
    assert prediction.out_of_distribution_score is None
    assert engine._runner.batches == []
    assert prediction.notes == ("note 1",)


def other_view(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sure of another view."""
    logits = np.zeros((len(inputs["frames"]), 3), np.float32)
    logits[:, OTHER] = 6
    return {"view_logits": logits}


def test_another_view_is_named_as_such(folder: Path) -> None:
    """A sure other view is refused as not apical four-chamber; one loop in doubt makes the study uncertain."""
    bundle = load_bundle(folder)
    gate = bundle.manifest.gate
    assert gate is not None
    check = ViewCheck(gate, ScriptedRunner(gate_bundle(bundle, gate).manifest, other_view))
    engine = Predictor(bundle, ScriptedRunner(bundle.manifest, estimate), (), check)
    prediction = engine.predict([loop(1, 10), loop(2, 10)])
    assert prediction.abstention is not None
    assert prediction.abstention.code is RefusalCode.NOT_A4C
    assert "2 loops show another view" in prediction.abstention.reason


def test_the_best_loops_are_used(folder: Path) -> None:
    """Of many loops those that show the view best are used, at most as many as the gate allows, best first."""
    prediction = predicted(folder, loop(1, 180), loop(2, 40), loop(3, 250), loop(4, 200))
    assert [source.sop_instance_uid for source in prediction.sources] == ["2.25.3", "2.25.4"]
    assert prediction.estimates[0].value == 53.5
    assert "2 of 4 loops were used, those that show the view best." in prediction.notes
    assert prediction.region_px == (3, 0, 50, 60)


def test_the_margin_counts(folder: Path) -> None:
    """A probability above the threshold that leads by too little is doubt."""
    vote_at_172 = predicted(folder, loop(1, 172))
    assert vote_at_172.abstention is None
    refused = predicted(folder, loop(1, 172), margin_probability=0.9)
    assert refused.abstention is not None
    assert refused.abstention.code is RefusalCode.VIEW_UNCERTAIN


A4C = TrustedLabel(attribute="ViewName", pattern=r"\bA4C\b")


def test_no_label_is_believed_unless_trusted(folder: Path) -> None:
    """A label passes a doubtful loop only where bundle or site trust it, in its own attribute, and the note says so."""
    labelled = loop(1, 40, label=("ViewName", "A4C ZOOM"))
    assert predicted(folder, labelled).abstention is not None
    elsewhere = loop(1, 40, label=("SeriesDescription", "A4C ZOOM"))
    assert predicted(folder, elsewhere, trusted=(A4C,)).abstention is not None
    by_site = predicted(folder, labelled, trusted=(A4C,))
    by_bundle = predicted(folder, labelled, trusted_labels=(A4C,))
    for prediction in (by_site, by_bundle):
        assert prediction.estimates[0].value == 51
        assert prediction.notes[0] == "View: apical four-chamber, as the label of the source says."
    assert "ZOOM" not in repr(by_site.notes)


def test_trusted_loops_come_first(folder: Path) -> None:
    """A trusted loop is preferred to one that the network is surer of."""
    prediction = predicted(folder, loop(1, 250), loop(2, 150, label=("ViewName", "A4C")), trusted=(A4C,), loops_max=1)
    assert [source.sop_instance_uid for source in prediction.sources] == ["2.25.2"]


def test_frames_are_spread_and_never_black() -> None:
    """The frames looked at are evenly spaced over all clips of a loop; the black end of a short one is not shown."""
    clip = np.zeros((2, 1, 10, 4, 4), np.uint8)
    clip[:, 0, :6] = np.arange(1, 13, dtype=np.uint8).reshape(2, 6, 1, 1)
    frames = gate_frames(clip, 4)
    assert frames.shape == (4, 1, 4, 4)
    assert frames[:, 0, 0, 0].tolist() == [1, 5, 8, 12]
    assert gate_frames(clip, 64).shape == (12, 1, 4, 4)
    assert gate_frames(np.zeros_like(clip), 4).shape == (1, 1, 4, 4)


def test_the_golden_logits_are_replayed(folder: Path, tmp_path: Path) -> None:
    """A gate whose logits do not come out as stored is not served; one that agrees is."""
    bundle = load_bundle(folder)
    gate = bundle.manifest.gate
    assert gate is not None
    check = open_view_check(bundle, ("onnxruntime",))
    assert check is not None
    check.close()
    strange = ScriptedRunner(gate_bundle(bundle, gate).manifest, other_view)
    with pytest.raises(SelfTestFailed, match="view check differs by"):
        check_gate(bundle, gate, strange)
    with pytest.raises(SelfTestFailed, match="no runtime serves the view check"):
        open_view_check(bundle, ("x",), {"x": lambda _: ScriptedRunner(gate_bundle(bundle, gate).manifest, other_view)})


def test_a_bundle_without_gate_has_no_check(tmp_path: Path) -> None:
    """Nothing is opened for a bundle without a gate, and gate and check come together or not at all."""
    plain = load_bundle(bundles.write_tiny(tmp_path / "echo", Modality.ECHO))
    assert open_view_check(plain) is None
    gated = load_bundle(bundles.write_tiny(tmp_path / "gated", Modality.ECHO, schema_version=2, gate=bundles.gate()))
    with pytest.raises(ValueError, match="has a gate"):
        Predictor(gated, ScriptedRunner(gated.manifest, estimate))
    assert gated.manifest.gate is not None
    check = ViewCheck(gated.manifest.gate, ScriptedRunner(gate_bundle(gated, gated.manifest.gate).manifest, look))
    with pytest.raises(ValueError, match="has no gate"):
        Predictor(plain, ScriptedRunner(plain.manifest, estimate), (), check)


def test_a_foreign_golden_file_is_corrupt(folder: Path) -> None:
    """A gate whose golden file holds something else cannot be checked."""
    bundle = load_bundle(folder)
    gate = bundle.manifest.gate
    assert gate is not None
    wrong = gate.model_copy(update={"golden": bundle.manifest.golden.file})
    with pytest.raises(BundleCorrupt, match="expected frames and view_logits"):
        check_gate(bundle, wrong, ScriptedRunner(gate_bundle(bundle, gate).manifest, look))


def test_closing_closes_the_gate(folder: Path) -> None:
    """The gate's memory is given back with the engine's, also where lanes share it."""
    engine = predictor(folder)
    engine.close()
    assert engine._view_check is not None
    assert engine._view_check._runner.released


def test_labels_are_never_printed(folder: Path) -> None:
    """Free text of the source is part of no note and no reason."""
    labelled = loop(1, 40, label=("ViewName", "CANARY^KIWI"))
    prediction = predicted(folder, labelled)
    assert prediction.abstention is not None
    assert "CANARY" not in prediction.abstention.reason + " ".join(prediction.notes)
