"""From a contrast to the cross-modal check of a bundle: what is compared by, whom that was learned from, and how it serves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.bundle.card import model_card
from engines.bundle.golden import golden_cases
from engines.bundle.reader import Bundle, load_bundle
from engines.bundle.second_graphs import CrossModalPart
from engines.errors import InputRefused, RefusalCode
from engines.predictors.base import load_predictor
from engines.predictors.cross_modal import load_cross_modal
from engines.predictors.similarity import SimilarityStatistics
from engines.preprocess.cmr_volume import prepare_volumes
from engines.preprocess.registry import prepare
from tests.doubles.ecg_cmr_runs import ONE_EPOCH, WHOLE_SHAPE
from training.data.sources.paired_subjects import draw_pair
from training.ecg_cmr.alignment import Aligned
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.cross_modal import (
    OUTPUTS,
    PairProjections,
    _image_specs,
    _manifest,
    check_projections,
    known_pair_metrics,
    thinned_stack,
)
from training.ecg_cmr.embeddings import projections
from training.ecg_cmr.frozen import Frozen
from training.ecg_cmr.pair_source import Arrays, PhantomPairs
from training.ecg_cmr.phantom_ecgs import prepared_ecg
from training.ecg_cmr.release import _trained, release_ecg_cmr
from training.ecg_cmr.release_plan import ReleasePlan, release_plan
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.tower_inputs import KIND
from training.ecg_cmr.variants import Variant, small
from training.models.cmr_towers import build_tower
from training.models.ecg_vit import EcgVit
from training.onnx_graph import ParityError, exported, run_named

PAIRED, KNOWN, CALIBRATION, TEST = 48, 22, 24, 12


@dataclass(frozen=True, kw_only=True)
class NoisePairs(PhantomPairs):
    """Pairs whose images are noise: true ones take ten times as long."""

    def read(self, number: int) -> Arrays:
        ecg = prepared_ecg(self, number)
        if ecg is None:
            raise InputRefused(RefusalCode.UNDECODABLE, "stands for any reason")
        rng, side = np.random.default_rng(self.first + number), self.cmr.heart.size_px
        return {
            "ecg": ecg,
            "volumes": rng.normal(size=(2, self.cmr.slices, side, side)).astype(np.float16),
            "slice_mask": np.ones(self.cmr.slices, bool),
            "cine": rng.normal(size=(self.cmr.phases, side, side)).astype(np.float16),
        }


def tiny_run(variant: Variant = "triplet") -> EcgCmrRun:
    """A small variant that learns next to nothing."""
    run = small(variant)
    assert run.contrast is not None
    return replace(
        run,
        encoder=WHOLE_SHAPE,
        augment=None,
        mae=replace(run.mae, optim=ONE_EPOCH),
        towers=tuple(replace(tower, optim=ONE_EPOCH) for tower in run.towers),
        contrast=replace(run.contrast, optim=ONE_EPOCH, hidden=8, width=6),
    )


def tiny_plan() -> ReleasePlan:
    """The plan of the released triplet with few patients."""
    plan = release_plan(small("triplet"))
    ecgs = replace(plan.ecgs, patients=PAIRED + CALIBRATION + TEST)
    values = {name: getattr(ecgs, name) for name in ("seed", "cohort", "ecg", "cmr", "shares")}
    return replace(
        plan,
        pairs=NoisePairs(patients=PAIRED, **values),
        ecgs=ecgs,
        calibration=CALIBRATION,
        test=TEST,
        cross_modal_pairs=KNOWN,
        bundle=replace(plan.bundle, golden_hearts=1),
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stores, runs and arrays of the module lie."""
    return tmp_path_factory.mktemp("cross-modal")


@pytest.fixture(scope="module")
def bundle(out: Path) -> Bundle:
    """The bundle of a triplet that was trained and released."""
    plan = tiny_plan()
    return load_bundle(release_ecg_cmr(tiny_run(), out, out / "bundles" / "triplet", workers=1, threads=1, plan=plan))


def part_of(bundle: Bundle) -> CrossModalPart:
    """Its cross-modal part."""
    part = bundle.manifest.cross_modal
    assert part is not None
    return part


def known_store(out: Path) -> PairStore:
    """The pairs that the statistics come from."""
    (folder,) = (out / "stores").glob("known-pairs-*")
    return PairStore.open(folder)


def aligned_of(out: Path) -> Aligned:
    """The trained networks, from their folders."""
    aligned = _trained(tiny_run(), tiny_plan(), out, 1).aligned
    assert aligned is not None
    return aligned


def test_the_bundle_states_the_check(bundle: Bundle) -> None:
    """Schema 4, pairs within a week, the plan's preparation, and two projections of both towers side by side."""
    part = part_of(bundle)
    assert (bundle.manifest.schema_version, part.window_days) == (4, 7)
    assert part.preprocess == tiny_plan().pairs.cmr
    assert [(each.name, each.shape) for each in part.inputs] == [
        ("embedding", (-1, 16)),
        ("volumes", (-1, 2, 12, 56, 56)),
        ("slice_mask", (-1, 12)),
    ]
    assert [(each.name, each.shape) for each in part.outputs] == [(name, (-1, 12)) for name in OUTPUTS]
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) < 10_000_000


def test_it_serves_beside_the_engine(bundle: Bundle, out: Path) -> None:
    """Engine and check open, and the check says of a pair what the trained networks say."""
    load_predictor(bundle.path).close()
    check, plan = load_cross_modal(bundle.path), tiny_plan()
    assert check is not None
    pair = draw_pair(plan.ecgs.seed, 2, plan.ecgs.cohort, plan.pairs.scan)
    ecg, images = prepare(pair.ecg, check.ecg_spec), prepare_volumes(pair.cmr, check.cmr_spec)  # type: ignore[arg-type]
    found = check.compare(ecg, images)
    check.close()
    network = PairProjections(tiny_run(), aligned := aligned_of(out)).eval()
    with torch.inference_mode():
        embedding = aligned.encoder(torch.from_numpy(np.array(ecg.arrays["ecg"])))
        given = [torch.from_numpy(np.array(images.arrays[name])) for name in ("volumes", "slice_mask")]
        mine, theirs = network(embedding, *given)
    assert found.cosine == pytest.approx(float((mine * theirs).sum()), abs=1e-4)
    np.testing.assert_allclose(found.embedding, theirs[0].numpy(), atol=1e-4)
    assert np.linalg.norm(found.embedding) == pytest.approx(1.0, abs=1e-5)


def test_the_dot_product_is_the_similarity_of_the_study(bundle: Bundle, out: Path) -> None:
    """The served projections of stored pairs are those that the retrieval of the study compares, but for their length."""
    store, aligned = known_store(out), aligned_of(out)
    ecg_NE, cmr_NE = projections(tiny_run(), aligned, store)
    expected = (ecg_NE * cmr_NE).sum(axis=1) / 2
    with torch.inference_mode():
        embedding = aligned.encoder(torch.from_numpy(store.read("ecg"))).numpy()
    given = {name: store.read(name).astype(np.float32) for name in ("volumes", "slice_mask")}
    found = run_named(bundle.read(part_of(bundle).graph), {"embedding": embedding, **given})
    np.testing.assert_allclose((found["ecg_projection"] * found["cmr_projection"]).sum(axis=1), expected, atol=1e-5)
    statistics = SimilarityStatistics.from_bytes(bundle.read(part_of(bundle).statistics))
    assert statistics.own[0] == pytest.approx(expected.min(), abs=1e-5)
    assert statistics.own[-1] == pytest.approx(expected.max(), abs=1e-5)


def test_known_pairs_are_calibration_patients_alone(bundle: Bundle, out: Path) -> None:
    """Nobody of the known pairs trained, chose or is asked at the end; they are the first who calibrate."""
    plan, known = tiny_plan(), set(known_store(out).patients)
    entries = [entry.patient for entry in plan.ecgs.entries()]
    assert bundle.manifest.metrics["cross_modal_pairs"] == len(known)
    assert known <= set(entries[PAIRED : PAIRED + KNOWN])
    assert len(known) > KNOWN - 3
    (trained_on,) = (out / "stores").glob("pairs-*")
    assert not known & set(PairStore.open(trained_on).patients)


def test_golden_pairs_are_of_hearts_nobody_saw(bundle: Bundle) -> None:
    """Two stacks behind the last patient of the release, with every slice; their projections are unit vectors."""
    cases, plan = golden_cases(bundle.read(part_of(bundle).golden)), tiny_plan()
    assert len(cases) == 2
    first = draw_pair(plan.ecgs.seed, PAIRED + CALIBRATION + TEST, plan.ecgs.cohort, plan.pairs.scan)
    expected = thinned_stack(first.cmr)
    np.testing.assert_array_equal(cases[0].record.images_SPHW, expected.images_SPHW)  # type: ignore[union-attr]
    assert expected.spacing_mm == (5.2, 5.2)
    assert expected.images_SPHW.shape[:2] == first.cmr.images_SPHW.shape[:2]
    for case in cases:
        assert {name: float(np.linalg.norm(rows)) for name, rows in case.outputs.items()} == {
            name: pytest.approx(1.0, abs=1e-5) for name in OUTPUTS
        }


def test_the_card_says_what_the_check_is_worth(bundle: Bundle) -> None:
    """Number of known pairs, what a limit misses, and how often a partner is found stand among the metrics."""
    metrics, card = bundle.manifest.metrics, model_card(bundle.manifest)
    for name in (
        "cross_modal_pairs",
        "cross_modal_own_below_limit_percent",
        "cross_modal_others_above_limit_percent",
        "cross_modal_ecg_to_cmr_top5_share",
    ):
        assert f"| {name} | {metrics[name]:.4g} |" in card
    assert "Cross-modal check" in card


@pytest.mark.parametrize(("noise", "others"), [(0.1, (0.0, 1.0)), (1e3, (80.0, 100.0))])
def test_what_a_limit_is_worth(noise: float, others: tuple[float, float]) -> None:
    """Images that lie where their ECG lies leave no pair of two patients above the limit; noise leaves nearly all."""
    rng = np.random.default_rng(0)
    ecg = rng.normal(size=(200, 32))
    found = known_pair_metrics(ecg, ecg + noise * rng.normal(size=ecg.shape), [str(row) for row in range(200)])
    assert others[0] <= found["cross_modal_others_above_limit_percent"] <= others[1]
    assert 0 < found["cross_modal_own_below_limit_percent"] < 10
    assert found["cross_modal_pairs"] == 200
    assert (found["cross_modal_ecg_to_cmr_top1_share"] == 1.0) == (noise < 1)


def untrained(run: EcgCmrRun) -> Aligned:
    """The networks of a variant as they begin."""
    torch.manual_seed(5)
    assert run.contrast is not None
    towers = {
        name: Frozen(build_tower(KIND[tower.look], "small")) for name, tower in zip(run.names, run.towers, strict=True)
    }
    return Aligned(EcgVit(run.encoder), towers, run.contrast).eval()


@pytest.mark.parametrize("variant", ["slice", "slice_time", "volume"])
def test_every_look_has_a_graph(variant: Variant) -> None:
    """Whatever the towers look at, the graph agrees with them for any number of patients, and another network is told apart."""
    run, plan = tiny_run(variant), tiny_plan()
    network = PairProjections(run, untrained(run)).eval()
    part = _manifest(network, run, plan)
    assert part.outputs[0].shape == (-1, 6)
    assert part.images == tuple(_image_specs(run, plan))
    graph = exported(network, part.inputs, OUTPUTS)
    for patients in (1, 3):
        inputs = some_inputs(part, patients)
        assert check_projections(graph, network, inputs) > 0.9999
    with torch.no_grad():
        network.projections["cmr"].layers[3].weight.mul_(-1)
    with pytest.raises(ParityError, match="cmr_projections of graph and network"):
        check_projections(graph, network, inputs)


def some_inputs(part: CrossModalPart, patients: int) -> dict[str, np.ndarray]:
    """Noise of the right shapes, with some slices masked."""
    rng = np.random.default_rng(patients)
    inputs = {tensor.name: rng.normal(size=(patients, *tensor.shape[1:])).astype(np.float32) for tensor in part.inputs}
    return {name: (array > 0).astype(np.float32) if name == "slice_mask" else array for name, array in inputs.items()}


def test_a_variant_without_images_compares_nothing() -> None:
    """The plan of the ECG-only variant asks for no known pairs; the triplet's asks for 400, within seven days."""
    assert release_plan(small("ecg_only")).cross_modal_pairs == 0
    plan = release_plan(small("triplet"))
    assert (plan.cross_modal_pairs, plan.window_days) == (400, 7)
    assert (plan.known_pairs.first, plan.known_pairs.patients) == (plan.paired, 400)


@pytest.mark.parametrize("pairs", [19, CALIBRATION + 1])
def test_a_plan_with_too_few_or_too_many_known_pairs_is_refused(pairs: int) -> None:
    """Fewer tell nothing, and more would be patients who are asked at the end."""
    with pytest.raises(ValueError, match="tell how similar pairs are; expected 20 to 24"):
        replace(tiny_plan(), cross_modal_pairs=pairs)
