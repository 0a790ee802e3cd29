"""From a variant to a bundle: who trains, who calibrates, what is stated, and that serving gives the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from engines.bundle.calibration import EcgPostprocess
from engines.bundle.card import model_card
from engines.bundle.reader import Bundle, load_bundle
from engines.errors import InputRefused, RefusalCode
from engines.predictions import Prediction
from engines.predictors.base import load_predictor
from engines.preprocess.registry import prepare
from engines.preprocess.spec import EcgCleanSpec
from stream_processors.local.bars import CARD_BASELINE, CARD_R_SQUARED
from tests.doubles.ecg_cmr_runs import ONE_EPOCH, WHOLE_SHAPE
from training.calibrate import conformal_half_width
from training.cli import main
from training.data.heart_arrays import REFUSED, HeartArrays
from training.data.sources.paired_subjects import DEMOGRAPHICS
from training.data.targets import DISEASES
from training.ecg_cmr import phantom_ecgs
from training.ecg_cmr.config import EcgCmrRun, MaeStage
from training.ecg_cmr.pair_source import Arrays, PairEntry, PhantomPairs
from training.ecg_cmr.phantom_ecgs import ReleasePatients, prepared_ecg, release_patients
from training.ecg_cmr.probes import Part, linear_heads
from training.ecg_cmr.release import probed_network, release_ecg_cmr, without_ecg
from training.ecg_cmr.release_plan import QUANTITIES, ReleasePlan, release_plan
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.variants import LOOKS, published, small
from training.models.ecg_vit import EcgVit

PAIRED, CALIBRATION, TEST = 48, 24, 12
RUN = EcgCmrRun(
    recipe="tiny", seed=3, encoder=WHOLE_SHAPE, augment=None, mae=MaeStage(optim=ONE_EPOCH), towers=(), contrast=None
)


@dataclass(frozen=True, kw_only=True)
class EcgPairs(PhantomPairs):
    """Pairs whose images nobody looks at: they take ten times as long."""

    def read(self, number: int) -> Arrays:
        ecg = prepared_ecg(self, number)
        if ecg is None:
            raise InputRefused(RefusalCode.UNDECODABLE, "stands for any reason")
        return {"ecg": ecg}


def tiny_plan() -> ReleasePlan:
    """The plan of a released variant with few patients."""
    plan = release_plan(small("ecg_only"))
    ecgs = replace(plan.ecgs, patients=PAIRED + CALIBRATION + TEST)
    values = {name: getattr(ecgs, name) for name in ("seed", "cohort", "ecg", "cmr", "shares")}
    bundle = replace(plan.bundle, golden_hearts=1)
    pairs = EcgPairs(patients=PAIRED, **values)
    return replace(plan, pairs=pairs, ecgs=ecgs, calibration=CALIBRATION, test=TEST, bundle=bundle)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stores, runs and arrays of the module lie."""
    return tmp_path_factory.mktemp("release")


@pytest.fixture(scope="module")
def bundle(out: Path) -> Bundle:
    """A bundle of few patients and an encoder that saw them once."""
    return load_bundle(release_ecg_cmr(RUN, out, out / "bundles" / "ecg_cmr", workers=1, threads=1, plan=tiny_plan()))


@pytest.fixture(scope="module")
def patients(out: Path, bundle: Bundle) -> ReleasePatients:
    """The patients of the bundle."""
    assert bundle.manifest.metrics
    return release_patients(tiny_plan(), out / "arrays", workers=1)


def test_the_bundle_states_what_the_plan_says(bundle: Bundle) -> None:
    """Eight quantities with two intervals, six conditions, preprocessing version 2, an embedding; all below 8 MB."""
    manifest = bundle.manifest
    assert isinstance(manifest.postprocess, EcgPostprocess)
    assert isinstance(manifest.preprocess, EcgCleanSpec)
    assert (manifest.schema_version, manifest.preprocess.preprocess_version) == (3, 2)
    assert tuple(each.quantity for each in manifest.postprocess.estimates) == QUANTITIES
    assert tuple(each.condition for each in manifest.postprocess.conditions) == DISEASES
    assert [each.shape for each in manifest.outputs] == [(-1, 8), (-1, 6), (-1, WHOLE_SHAPE.width)]
    assert {each.coverage_percent for each in manifest.postprocess.estimates} == {80.0}
    assert manifest.wide_intervals is not None
    assert manifest.wide_intervals.coverage_percent == 95.0
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) < 8_000_000


def test_the_card_names_engine_and_baseline(bundle: Bundle) -> None:
    """R2 of the engine and of demographics without an ECG stand in the card, under the names that verify looks for."""
    metrics, card = bundle.manifest.metrics, model_card(bundle.manifest)
    assert metrics["test_hearts"] == TEST
    for name in (CARD_R_SQUARED, CARD_BASELINE, "heart_failure_demographics_only_auroc"):
        assert f"| {name} | {metrics[name]:.4g} (" in card
    for coverage in (80, 95):
        assert f"lvef_inside_{coverage}_percent_interval_share" in metrics
        assert f"- lv_mass: {coverage} % conformal interval" in card
    assert metrics["lvef_median_wide_interval_width_percent"] > metrics["lvef_median_interval_width_percent"]


def _predicted(bundle: Bundle) -> Prediction:
    predictor = load_predictor(bundle.path)
    prepared = prepare(bundle.golden()[0].record, predictor.spec)
    # The tiny encoder tells nothing apart; its limit is not what is tested here.
    predictor._score = lambda _outputs: 0.5  # type: ignore[method-assign]
    try:
        return predictor.predict([prepared])
    finally:
        predictor.close()


def test_it_serves_with_both_intervals(bundle: Bundle) -> None:
    """The golden record replays at the start, and every estimate comes with 80 and 95 percent around it."""
    prediction = _predicted(bundle)
    assert tuple(each.quantity for each in prediction.estimates) == QUANTITIES
    for each in prediction.estimates:
        assert each.wide_interval is not None
        assert (each.interval.coverage_percent, each.wide_interval.coverage_percent) == (80.0, 95.0)
        assert (
            each.wide_interval.low <= each.interval.low <= each.value <= each.interval.high <= each.wide_interval.high
        )
    assert [each.unit for each in prediction.estimates] == ["%", "%", "l/min", "ml", "ml", "ml", "ml", "g"]
    assert prediction.notes[0] == "Inferred from an ECG; nothing was measured on images."


def test_who_trains_neither_calibrates_nor_is_asked(out: Path, patients: ReleasePatients) -> None:
    """The store holds the training and validation patients of the split; every patient has one part."""
    (folder,) = (out / "stores").iterdir()
    store, split = PairStore.open(folder), patients.split
    parts = {"training": split.train, "validation": split.validation}
    for name, rows in parts.items():
        assert {patients.entries[row].patient for row in patients.usable(rows)} == set(store.subset(name).patients)
    seen = {patients.entries[row].patient for row in (*split.calibration, *split.test)}
    assert len(seen) == CALIBRATION + TEST
    assert not seen & set(store.patients)
    everybody = np.sort(np.concatenate([split.train, split.validation, split.calibration, split.test]))
    np.testing.assert_array_equal(everybody, np.arange(len(patients.entries)))


def _encoder() -> EcgVit:
    torch.manual_seed(7)
    return EcgVit(WHOLE_SHAPE).eval()


def test_probes_never_look_at_calibration_and_test(patients: ReleasePatients) -> None:
    """Other truths and other ECGs of those who calibrate and are asked leave every weight as it is."""
    plan, edge = tiny_plan(), PAIRED
    inputs = np.array(patients.arrays.inputs)
    inputs[edge:] = inputs[edge:][::-1] * 3.0
    entries = [*patients.entries[:edge], *patients.entries[edge:][::-1]]
    other = replace(patients, entries=entries, arrays=replace(patients.arrays, inputs=inputs))
    first, second = (probed_network(_encoder(), each, plan).network.state_dict() for each in (patients, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = replace(patients, entries=[*patients.entries[1:edge], patients.entries[0], *patients.entries[edge:]])
    third = probed_network(_encoder(), changed, plan).network.state_dict()
    assert not torch.equal(first["probes.estimates.weight"], third["probes.estimates.weight"])


def test_the_network_says_what_the_probes_say(patients: ReleasePatients) -> None:
    """Estimates and logits of the served network are the heads on its embedding, in the units of the targets."""
    probed = probed_network(_encoder(), patients, tiny_plan())
    with torch.inference_mode():
        found = probed.network(torch.from_numpy(np.array(patients.arrays.inputs[:6, 0])))
    embedding = found["embedding"].double().numpy()
    np.testing.assert_allclose(found["estimates"].numpy(), probed.heads.values(embedding), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found["disease_logits"].numpy(), probed.heads.logits(embedding), rtol=1e-4, atol=1e-4)
    assert 20 < found["estimates"][:, 0].mean() < 70
    assert 90 < found["estimates"][:, QUANTITIES.index("lvedv")].mean() < 250


def test_intervals_come_from_the_calibration_patients_alone(bundle: Bundle, patients: ReleasePatients) -> None:
    """Both half widths are the residuals of the patients who calibrate, at their ranks."""
    rows, post = patients.usable(patients.split.calibration), bundle.manifest.postprocess
    inputs = np.array(patients.arrays.inputs[rows, 0])
    given = _graph_outputs(bundle, inputs)["estimates"]
    wide = bundle.manifest.wide_intervals
    assert isinstance(post, EcgPostprocess)
    assert wide is not None
    for at, estimate in enumerate(post.estimates):
        residuals = np.abs(given[:, at] - patients.arrays.targets[rows, at])
        assert estimate.conformal_quantile == pytest.approx(conformal_half_width(residuals, 80.0), abs=0.01)
        assert wide.conformal_quantiles[at] == pytest.approx(conformal_half_width(residuals, 95.0), abs=0.01)


def _graph_outputs(bundle: Bundle, inputs: np.ndarray) -> dict[str, Any]:
    from training.onnx_graph import run_graph

    return run_graph(bundle.read(bundle.manifest.graph), "ecg", inputs)


def test_what_is_there_is_not_made_again(
    out: Path, bundle: Bundle, patients: ReleasePatients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared ECGs are found again, and come back bit for bit."""
    monkeypatch.setattr(phantom_ecgs, "_render", lambda *_: pytest.fail("rendered again"))
    again = release_patients(tiny_plan(), out / "arrays", workers=1)
    np.testing.assert_array_equal(again.arrays.inputs[:3], patients.arrays.inputs[:3])
    assert bundle.path.exists()


def test_a_refused_ecg_keeps_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody behind a refused patient moves, and the refused one is in no part that is used."""
    plan = tiny_plan()
    ecgs = replace(plan.ecgs, patients=6)
    blank = np.zeros((12, 5000), np.float32)
    monkeypatch.setattr(phantom_ecgs, "prepared_ecg", lambda _source, number: None if number == 2 else blank + number)
    few = replace(plan, pairs=replace(plan.pairs, patients=4), ecgs=ecgs, calibration=1, test=1)
    found = release_patients(few, tmp_path, workers=1)
    assert found.arrays.clips.tolist() == [1, 1, REFUSED, 1, 1, 1]
    assert found.arrays.inputs[:, 0, 0, 0].tolist() == [0, 1, 0, 3, 4, 5]
    assert found.usable(np.array([1, 2, 3])).tolist() == [1, 3]
    assert [entry.patient for entry in found.entries] == [entry.patient for entry in ecgs.entries()]


def test_the_baseline_knows_size_and_hardly_function() -> None:
    """Without an ECG, age, sex and body size say much of a volume and next to nothing of an ejection fraction."""
    plan = release_plan(small("triplet"))
    ecgs = replace(plan.ecgs, patients=900)
    few = replace(
        plan, pairs=replace(plan.ecgs, patients=500), ecgs=ecgs, calibration=100, test=300, cross_modal_pairs=0
    )
    entries, nothing = ecgs.entries(), np.zeros((900, 1, 12, 1), np.float32)
    split = phantom_ecgs._split(few, entries)
    arrays = HeartArrays(inputs=nothing, targets=nothing[:, 0, 0], clips=np.ones(900, np.uint8), sha256="")
    found = without_ecg(ReleasePatients(entries=entries, arrays=arrays, split=split), few)
    assert found["lvedv_demographics_only_r_squared"] > 0.15
    assert abs(found["lvef_demographics_only_r_squared"]) < 0.1
    low, high = (found[f"lvedv_demographics_only_r_squared_{end}"] for end in ("low", "high"))
    assert low < found["lvedv_demographics_only_r_squared"] < high
    assert found["atrial_fibrillation_demographics_only_auroc"] > 0.6


def test_heads_are_the_probe_without_its_scales() -> None:
    """A target that is linear in inputs of any scale is read off the inputs as they are."""
    plan = release_plan(small("triplet"))
    source = replace(plan.ecgs, patients=300)
    entries: list[PairEntry] = list(source.entries())
    arrays = HeartArrays(inputs=np.empty(0), targets=np.empty(0), clips=np.ones(300, np.uint8), sha256="")
    people = ReleasePatients(entries=entries, arrays=arrays, split=phantom_ecgs._split(_quarter(plan), entries[:300]))
    cohort = people.cohort(np.arange(300), plan)
    rng = np.random.default_rng(0)
    mixed = cohort.truth_NT @ rng.normal(size=(8, 8)) * 100.0 + 1e4
    part = Part(inputs=mixed, cohort=cohort)
    heads = linear_heads(part, part, alphas=(1e-6,))
    np.testing.assert_allclose(heads.values(mixed), cohort.truth_NT, rtol=1e-2, atol=0.5)
    assert cohort.demographics == DEMOGRAPHICS


def _quarter(plan: ReleasePlan) -> ReleasePlan:
    ecgs = replace(plan.ecgs, patients=300)
    pairs = replace(plan.ecgs, patients=200)
    return replace(plan, pairs=pairs, ecgs=ecgs, calibration=50, test=50, cross_modal_pairs=0)


@pytest.mark.parametrize("variant", sorted(LOOKS))
def test_every_small_variant_has_a_plan(variant: Any) -> None:
    """Names, words and patients are there; enough calibrate for 95 percent, and the parts are all the patients."""
    plan = release_plan(small(variant))
    assert plan.bundle.name == f"ecg-cmr-{variant.replace('_', '-')}-small"
    assert plan.paired >= 1000
    assert min(plan.calibration, plan.test) >= 1000
    assert plan.data.hearts == plan.paired + plan.calibration + plan.test
    assert "not for clinical use" in plan.bundle.intended_use.lower()


def test_published_sizes_make_no_bundle_here() -> None:
    """They are trained on a data set; the command says which variants it releases, before anything is made."""
    with pytest.raises(ValueError, match="release one of ecg_cmr_ecg_only_small"):
        release_plan(published("triplet"))
    result = CliRunner().invoke(main, ["release", "ecg_cmr_triplet_published", "--bundle", "nowhere"])
    assert result.exit_code == 1
    assert "makes no bundle here" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": 7000}, "too few train"),
        ({"test": 0}, "too few train"),
        ({"pairs": {"seed": 1}}, "expected the same, in one order"),
        ({"pairs": {"first": 5}}, "expected the same, in one order"),
        ({"pairs": {"ecg": "other"}}, "are prepared differently"),
    ],
)
def test_a_plan_that_mixes_patients_is_refused(changes: dict[str, Any], message: str) -> None:
    """Parts must fit, and pairs and ECGs must be of the same patients, prepared alike."""
    plan = tiny_plan()
    if "pairs" in changes:
        other = {name: value for name, value in changes["pairs"].items() if name != "ecg"}
        if "ecg" in changes["pairs"]:
            other["ecg"] = plan.ecgs.ecg.model_copy(update={"highpass_hz": 1.0})
        changes = {"pairs": replace(plan.pairs, **other)}
    with pytest.raises(ValueError, match=message):
        replace(plan, **changes)
