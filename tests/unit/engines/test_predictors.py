"""From prepared arrays to a prediction: what is used, what is left out, and what is not said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import manifest as m
from engines.bundle.reader import Bundle, load_bundle
from engines.errors import BundleCorrupt, InferenceError, RefusalCode, SelfTestFailed
from engines.predictions import Prediction
from engines.predictors import base
from engines.predictors.base import BATCH_MAX, Predictor, load_predictor
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import spec_sha256
from engines.records import Modality, SourceInstance
from tests.doubles import bundles
from tests.doubles.runners import ScriptedRunner

Script = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny bundles of all modalities lie."""
    folder = tmp_path_factory.mktemp("bundles")
    for modality in Modality:
        bundles.write_tiny(folder / modality.value, modality)
    return folder


def _predictor(folder: Path, modality: Modality, script: Any, **post: Any) -> Predictor:
    bundle = load_bundle(folder / modality.value)
    if post:
        changed = bundle.manifest.postprocess.model_copy(update=post)
        manifest = bundle.manifest.model_copy(update={"postprocess": changed})
        bundle = Bundle(path=bundle.path, manifest=manifest, sha256=bundle.sha256)
    return Predictor(bundle, ScriptedRunner(bundle.manifest, script), ("openvino: disagreed",))


def _source(number: int) -> SourceInstance:
    return SourceInstance(
        sop_class_uid="1.2", sop_instance_uid=f"2.25.{number}", series_instance_uid="2.25.9", frame_numbers=(1, 3)
    )


def _loop(number: int, *ejection_fractions: float, distance: int = 0) -> Prepared:
    """A candidate whose clips carry, in their first pixels, what the scripted network shall answer."""
    clip = np.zeros((len(ejection_fractions), 1, 2, 16, 16), dtype=np.uint8)
    clip[:, 0, 0, 0, 0] = ejection_fractions
    clip[:, 0, 0, 0, 1] = distance
    return Prepared(
        arrays={"clip": clip},
        sources=(_source(number),),
        region_px=(number, 0, 50, 60),
        notes=(f"note {number}", "a common note"),
    )


def _echo_script(inputs: Script) -> dict[str, np.ndarray]:
    clip = inputs["clip"]
    embedding = np.zeros((len(clip), 4), np.float32)
    embedding[:, 0] = clip[:, 0, 0, 0, 1]
    return {"ef": clip[:, 0, 0, 0, :1].astype(np.float32), "embedding": embedding}


def _single(modality: Modality) -> Prepared:
    arrays = bundles.prepared_arrays(modality)
    return Prepared(arrays=arrays, sources=(_source(1),), region_px=(1, 2, 3, 4), notes=("a note",))


def _answering(distance: float = 0.0, **answers: list[float]) -> Any:
    def script(inputs: Script) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))
        found = {name: np.tile(np.float32([values]), (rows, 1)) for name, values in answers.items()}
        return {**found, "embedding": np.tile(np.float32([[distance, 0, 0, 0]]), (rows, 1))}

    return script


def _echo(folder: Path, *loops: Prepared, **post: Any) -> Prediction:
    return _predictor(folder, Modality.ECHO, _echo_script, **post).predict(loops)


def test_echo_is_the_mean_over_all_clips(folder: Path) -> None:
    """The LVEF is the mean over the clips of all candidates, with their spread and the conformal interval."""
    (lvef,) = _echo(folder, _loop(1, 50, 54), _loop(2, 58)).estimates
    assert (lvef.quantity, lvef.value, lvef.unit) == ("lvef", 54.0, "%")
    assert (lvef.interval.low, lvef.interval.high, lvef.interval.coverage_percent) == (49.0, 59.0, 90.0)
    assert lvef.between_clip_sd == pytest.approx(4.0)


def test_echo_names_what_it_used(folder: Path) -> None:
    """Sources are those of the used loops in their order, the region that of the first, notes not repeated."""
    prediction = _echo(folder, _loop(1, 50, 54), _loop(2, 58))
    assert prediction.sources == (_source(1), _source(2))
    assert prediction.region_px == (1, 0, 50, 60)
    assert prediction.notes == ("Mean over 3 clips of 2 loops.", "note 1", "a common note", "note 2")


def test_echo_leaves_out_strange_loops(folder: Path) -> None:
    """A loop unlike the training data changes neither value nor sources, and the note counts it."""
    prediction = _echo(folder, _loop(1, 20, 20, distance=200), _loop(2, 50, 54, distance=25), _loop(3, 52))
    assert prediction.estimates[0].value == 52.0
    assert prediction.sources == (_source(2), _source(3))
    assert prediction.region_px == (2, 0, 50, 60)
    assert "1 of 3 loops were left out: unlike the data the model was trained on." in prediction.notes
    assert "note 1" not in prediction.notes
    assert prediction.out_of_distribution_score == 0.5


def test_echo_abstains_when_all_loops_are_strange(folder: Path) -> None:
    """With no typical loop the engine abstains, and says how far the nearest one is."""
    prediction = _echo(folder, _loop(1, 50, distance=250), _loop(2, 50, distance=200))
    assert prediction.estimates == ()
    assert prediction.abstention is not None
    assert prediction.abstention.code is RefusalCode.OUT_OF_DISTRIBUTION
    assert "distance 4.00, limit 1.00" in prediction.abstention.reason
    assert prediction.out_of_distribution_score == 4.0
    assert prediction.sources == (_source(2),)


def test_echo_abstains_when_clips_disagree(folder: Path) -> None:
    """Clips that spread more than the limit give no number."""
    prediction = _echo(folder, _loop(1, 30, 60))
    assert prediction.estimates == ()
    assert prediction.abstention is not None
    assert prediction.abstention.code is RefusalCode.CLIPS_DISAGREE
    assert "standard deviation 21.2 EF points, limit 8.0" in prediction.abstention.reason


def test_echo_interval_grows_with_disagreement(folder: Path) -> None:
    """With a normalised calibration the interval is wider where the clips differ more."""
    lvef = bundles.conformal(conformal_quantile=2.0, sd_offset=1.0)
    close, apart = (_echo(folder, _loop(1, *pair), lvef=lvef).estimates[0] for pair in ((50, 52), (48, 54)))
    assert close.interval.high - close.value == pytest.approx(2.0 * (np.sqrt(2) + 1.0))
    assert apart.interval.high - apart.value == pytest.approx(2.0 * (np.sqrt(18) + 1.0))


def test_echo_single_clip_assumes_the_largest_spread(folder: Path) -> None:
    """Of one clip the spread is unknown: none is reported, the interval assumes the limit, and the note says so."""
    lvef = bundles.conformal(conformal_quantile=2.0, sd_offset=1.0)
    prediction = _echo(folder, _loop(1, 50), lvef=lvef)
    assert prediction.estimates[0].between_clip_sd is None
    assert prediction.estimates[0].interval.high == pytest.approx(50 + 2.0 * (8.0 + 1.0))
    assert prediction.notes[0].startswith("One clip could be analysed; the interval assumes")
    assert _echo(folder, _loop(1, 50)).notes[0] == "One clip could be analysed."


def test_echo_clamps_only_with_a_note(folder: Path) -> None:
    """An LVEF above 100 % is reported as 100 % together with what the model gave."""
    prediction = _echo(folder, _loop(1, 101, 103))
    assert prediction.estimates[0].value == 100.0
    assert any("the model gave 102," in note for note in prediction.notes)


def test_all_candidates_run_as_one_batch(folder: Path) -> None:
    """The clips of all candidates go through the graph together, in parts of bounded size."""
    predictor = _predictor(folder, Modality.ECHO, _echo_script)
    few = predictor.predict([_loop(1, 50, 52), _loop(2, 54)])
    assert predictor._runner.batches == [3]
    many = predictor.predict([_loop(number, 50, 52, 54, 56) for number in range(5)])
    assert predictor._runner.batches == [3, BATCH_MAX, 20 - BATCH_MAX]
    assert few.estimates[0].value == 52.0
    assert many.estimates[0].value == 53.0


@pytest.mark.parametrize(("logit", "decision"), [(-5.0, False), (0.0, None), (5.0, True)])
def test_cmr_gives_a_calibrated_probability(folder: Path, logit: float, decision: bool | None) -> None:
    """The logit is read off the table; where the interval straddles nothing is called, and the note says so."""
    prediction = _predictor(folder, Modality.CMR, _answering(logit=[logit])).predict([_single(Modality.CMR)])
    (risk,) = prediction.probabilities
    assert (risk.condition, risk.decision, risk.threshold_probability) == ("lvef_at_most_40", decision, 0.5)
    assert risk.interval.low <= risk.probability <= risk.interval.high
    assert any("neither present nor absent" in note for note in prediction.notes) == (decision is None)
    assert "a note" in prediction.notes
    assert prediction.region_px == (1, 2, 3, 4)


def test_cmr_abstains_outside_the_distribution(folder: Path) -> None:
    """A stack unlike the training data gets no probability."""
    prediction = _predictor(folder, Modality.CMR, _answering(51.0, logit=[0.0])).predict([_single(Modality.CMR)])
    assert prediction.probabilities == ()
    assert prediction.abstention is not None
    assert prediction.abstention.code is RefusalCode.OUT_OF_DISTRIBUTION
    assert prediction.out_of_distribution_score == pytest.approx(1.02)


def test_ecg_gives_estimates_and_conditions(folder: Path) -> None:
    """Each column becomes its quantity or condition in the order of the manifest, with its interval."""
    script = _answering(estimates=[55.0, 48.0, 5.5], disease_logits=[-4, -1, 0, 1, 4, 9])
    prediction = _predictor(folder, Modality.ECG, script).predict([_single(Modality.ECG)])
    assert [(e.quantity, e.value, e.unit) for e in prediction.estimates] == [
        ("lvef", 55.0, "%"),
        ("rvef", 48.0, "%"),
        ("cardiac_output", 5.5, "l/min"),
    ]
    assert tuple(p.condition for p in prediction.probabilities) == bundles.DISEASES
    assert [p.decision for p in prediction.probabilities] == [False, None, None, None, True, True]


def test_ecg_states_both_intervals(tmp_path: Path) -> None:
    """A bundle of schema 3 gives each estimate a second interval; what is cut off at a limit is said."""
    bundles.write_tiny(tmp_path / "ecg", schema_version=3, wide_intervals=bundles.wide_intervals())
    script = _answering(estimates=[92.0, 48.0, 50.0], disease_logits=[0.0] * 6)
    prediction = _predictor(tmp_path, Modality.ECG, script).predict([_single(Modality.ECG)])
    first = [(each.interval.low, each.interval.high, each.interval.coverage_percent) for each in prediction.estimates]
    assert first == [(87.0, 97.0, 90.0), (43.0, 53.0, 90.0), (45.0, 55.0, 90.0)]
    wide = [each.wide_interval for each in prediction.estimates if each.wide_interval is not None]
    assert [(each.low, each.high, each.coverage_percent) for each in wide] == [
        (82.0, 100.0, 95.0),
        (33.0, 63.0, 95.0),
        (40.0, 60.0, 95.0),
    ]
    assert "LVEF: the 95 % interval is cut off at the limits of 0 to 100 %." in prediction.notes
    assert sum("cut off" in note for note in prediction.notes) == 1


def test_a_bundle_with_one_interval_states_one(folder: Path) -> None:
    """Bundles of older schemas stay what they were."""
    script = _answering(estimates=[55.0, 48.0, 5.5], disease_logits=[0.0] * 6)
    prediction = _predictor(folder, Modality.ECG, script).predict([_single(Modality.ECG)])
    assert [each.wide_interval for each in prediction.estimates] == [None] * 3


@pytest.mark.parametrize("distance", [0.0, 99.0])
def test_every_ecg_report_says_inferred_from_an_ecg(folder: Path, distance: float) -> None:
    """With a number or without, the first note says that nothing was measured on images."""
    script = _answering(distance, estimates=[55.0, 48.0, 5.5], disease_logits=[0.0] * 6)
    prediction = _predictor(folder, Modality.ECG, script).predict([_single(Modality.ECG)])
    assert prediction.notes[0] == "Inferred from an ECG; nothing was measured on images."
    assert (prediction.abstention is not None) == (distance > 50)


@pytest.mark.parametrize(
    ("modality", "count", "expected"),
    [(Modality.ECHO, 0, "one or more"), (Modality.CMR, 0, "exactly one"), (Modality.ECG, 2, "exactly one")],
)
def test_number_of_candidates_is_checked(folder: Path, modality: Modality, count: int, expected: str) -> None:
    """Nothing to read, or two records where one is expected, is the caller's mistake."""
    predictor = _predictor(folder, modality, _answering())
    with pytest.raises(ValueError, match=f"{count} prepared records for {modality.value}; expected {expected}"):
        predictor.predict([_single(modality)] * count)


@pytest.mark.parametrize(
    ("modality", "arrays"),
    [
        (Modality.ECHO, {"image": np.zeros((1, 2))}),
        (Modality.ECHO, {"clip": np.zeros((0, 1, 2, 16, 16), np.uint8)}),
        (Modality.ECG, {"ecg": np.zeros((2, 12, 200), np.float32)}),
        (Modality.CMR, {}),
    ],
)
def test_candidates_are_checked(folder: Path, modality: Modality, arrays: Script) -> None:
    """Arrays of another engine, without rows, or with rows that would be ignored are the caller's mistake."""
    candidate = Prepared(arrays=arrays, sources=(_source(1),), region_px=None, notes=())
    with pytest.raises(ValueError, match="prepared arrays and their rows are"):
        _predictor(folder, modality, _answering()).predict([candidate])


def test_failed_runtime_gives_no_prediction(folder: Path) -> None:
    """A NaN from the network is an error, never a report."""
    script = _answering(estimates=[float("nan"), 48.0, 5.5], disease_logits=[0.0] * 6)
    with pytest.raises(InferenceError, match="not finite"):
        _predictor(folder, Modality.ECG, script).predict([_single(Modality.ECG)])


def test_identity_leads_back_to_the_bytes(folder: Path) -> None:
    """The identity of a prediction holds the digests of bundle, graph and preprocessing, and the runtime."""
    bundle = load_bundle(folder / "ecg")
    script = _answering(estimates=[55.0, 48.0, 5.5], disease_logits=[0.0] * 6)
    predictor = _predictor(folder, Modality.ECG, script)
    model = predictor.predict([_single(Modality.ECG)]).model
    assert model == predictor.identity
    assert (model.bundle_sha256, model.weights_sha256) == (bundle.sha256, bundle.weights_sha256)
    assert model.preprocess_sha256 == spec_sha256(predictor.spec)
    assert (model.name, model.version, model.training_data) == ("tiny-ecg", "0.1.0", "nothing at all")
    assert (model.runtime, model.runtime_version, model.precision, model.device) == ("double", "0", "fp32", "CPU")
    assert predictor.modality is Modality.ECG
    assert predictor.rejected_runtimes == ("openvino: disagreed",)


def test_closing_a_predictor_closes_its_runner(folder: Path) -> None:
    """The runtime's memory is given back with the predictor."""
    predictor = _predictor(folder, Modality.CMR, _answering(logit=[0.0]))
    predictor.close()
    assert predictor._runner.released


def test_statistics_must_fit_the_embedding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle whose statistics have another size than its embedding cannot be served."""
    monkeypatch.setattr(base, "_embedding_size", lambda _bundle: 5)
    with pytest.raises(BundleCorrupt, match="the network gives 5"):
        _predictor(folder, Modality.CMR, _answering())


def test_load_predictor_verifies_and_answers(folder: Path) -> None:
    """A bundle on disk becomes a predictor that answers, on the preferred runtime."""
    predictor = load_predictor(folder / "ecg", ("onnxruntime",))
    prediction = predictor.predict([_single(Modality.ECG)])
    assert predictor.identity.runtime == "onnxruntime"
    assert len(prediction.estimates) == 3
    predictor.close()


def test_load_predictor_replays_preprocessing(folder: Path) -> None:
    """A bundle whose golden records preprocessing does not accept is not served."""
    with pytest.raises(SelfTestFailed, match="refused by preprocessing"):
        load_predictor(folder / "cmr")


def test_load_predictor_refuses_altered_files(tmp_path: Path) -> None:
    """An altered graph is found before a runtime is opened."""
    path = bundles.write_tiny(tmp_path / "ecg")
    graph = path / m.GRAPH_NAME
    graph.write_bytes(graph.read_bytes()[::-1])
    with pytest.raises(BundleCorrupt, match="was altered"):
        load_predictor(path)
