"""The whole comparison on a handful of pairs: it runs, resumes, refuses what is not its own, and fails where it must."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.doubles.ecg_cmr_runs import ToldHearts, tiny
from training.checkpoint import ForeignRunError
from training.cli import main
from training.config import load_recipe
from training.data.patient_split import part_of
from training.data.sources.paired_subjects import DEMOGRAPHICS as BODY
from training.ecg_cmr import protocol, study
from training.ecg_cmr.cohorts import Columns, in_all, usable
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.embeddings import embeddings, projections
from training.ecg_cmr.neural_probes import FitOptions
from training.ecg_cmr.outcome import AND_DEMOGRAPHICS, DEMOGRAPHICS, MODELS, VARIANTS, read_outcome
from training.ecg_cmr.protocol import Pairs, Probing
from training.ecg_cmr.stages import train_ecg_cmr
from training.ecg_cmr.store import PairStoreError
from training.ecg_cmr.store_build import build_pair_store
from training.ecg_cmr.variants import LOOKS

FIT = FitOptions(learning_rates=(1e-2,), epochs=1, patience=1)
SIZES = (48, 40)
ASKED = ("lvedv", "lvef")
ILL = ("coronary_artery_disease", "heart_failure")


def _hearts(*, seed: int, patients: int, cohort: str) -> ToldHearts:
    return ToldHearts(patients=patients, salt=f"{cohort}-{seed}", spec={"seed": seed})


def _easy_hearts(*, seed: int, patients: int) -> ToldHearts:
    return _hearts(seed=seed, patients=patients, cohort="easy")


def _recipe(variant: str, _size: str) -> EcgCmrRun:
    assert variant in LOOKS
    return replace(tiny(variant), recipe=f"tiny_{variant}")


def _use_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = Columns(
        targets=(*ASKED, "wall_thickness"),
        conditions=ILL,
        demographics=BODY,
    )
    monkeypatch.setattr(study, "phantom_pairs", _hearts)
    monkeypatch.setattr(study, "recipe_of", _recipe)
    monkeypatch.setattr(study, "PHANTOM_COLUMNS", columns)
    probing = Probing(kinds=("linear", "mlp", "fine_tune"), mlp=FIT, fine_tuning=FIT)
    monkeypatch.setattr(study, "PROBING", {"small": probing})
    monkeypatch.setattr(study, "easy_pairs", _easy_hearts)


def _options(folder: Path, **changed: Any) -> study.StudyOptions:
    options = study.StudyOptions(
        data=None,
        instance=2,
        size="small",
        out=folder / "out",
        docs=folder / "docs",
        sizes=SIZES,
        seeds=2,
        easy_seeds=2,
        first_seed=3,
        epochs=1,
        workers=1,
        threads=1,
        device="cpu",
        command="purkinje-train evaluate ecg_cmr",
        draws=20,
    )
    return replace(options, **changed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[study.StudyOptions, study.Study]:
    """A study of two seeds; its folder is only read afterwards."""
    options = _options(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use_tiny(monkeypatch)
        return options, study.run_study(options, _silent)


@pytest.fixture
def options(finished: tuple[study.StudyOptions, study.Study], monkeypatch: pytest.MonkeyPatch) -> study.StudyOptions:
    """Of the finished study."""
    _use_tiny(monkeypatch)
    return finished[0]


def _silent(_text: str) -> None:
    """Say nothing."""


def _numbers(options: study.StudyOptions) -> dict[str, Any]:
    assert options.docs is not None
    found: dict[str, Any] = json.loads((options.docs / "ecg_cmr.json").read_text())
    return found


def test_all_variants_and_the_baseline_are_in_the_table(finished: tuple[study.StudyOptions, study.Study]) -> None:
    """Five variants by three probes, each beside demographics too, the baseline, and the published number."""
    options, found = finished
    measured = _numbers(options)
    assert measured["seeds"] == [3, 4]
    models = {(each["model"], each["probe"]) for each in measured["models"]}
    read = {"linear", "mlp"}
    assert models == {
        *((DEMOGRAPHICS, kind) for kind in read),
        *((variant, kind) for variant in VARIANTS for kind in {*read, "fine_tune"}),
        *((f"{variant}{AND_DEMOGRAPHICS}", kind) for variant in VARIANTS for kind in read),
    }
    assert all(each["seeds"] == [3, 4] for each in measured["models"])
    assert all(words in found.table for words in (*VARIANTS.values(), MODELS[DEMOGRAPHICS], "0.605", "## Easy set"))
    assert options.docs is not None
    assert found.table == (options.docs / "ecg_cmr.md").read_text()
    assert "## Differences" in (options.docs / "ecg_cmr_details.md").read_text()


def test_the_documentation_gets_the_same_numbers_in_short(finished: tuple[study.StudyOptions, study.Study]) -> None:
    """Subgroups and single seeds stay below the folder of the runs; what is left agrees to six digits."""
    options, _ = finished
    whole, short = json.loads((options.out / "ecg_cmr.json").read_text()), _numbers(options)
    assert short.keys() == whole.keys()
    for brief, full in zip(short["models"], whole["models"], strict=True):
        assert full.keys() - brief.keys() == {"subgroups", "of_each_seed"}
        assert brief["numbers"]["lvef"]["r2"]["value"] == pytest.approx(
            full["numbers"]["lvef"]["r2"]["value"], rel=1e-5
        )


def test_what_must_hold_stands_at_the_end(finished: tuple[study.StudyOptions, study.Study]) -> None:
    """Six lines of order on the standard set and eight of retrieval on the easy one decide whether the study holds."""
    options, found = finished
    held = _numbers(options)["requirements"]
    assert len(held) == 6 + 8
    assert found.holds is all(each["met"] for each in held)
    assert found.table.index("## What must hold") > found.table.index("## Easy set")


def test_every_contrastive_variant_has_projections(finished: tuple[study.StudyOptions, study.Study]) -> None:
    """Retrieval stands once for each of the four, on both sets, and never for the variant without images."""
    measured = _numbers(finished[0])
    for each in (measured, measured["easy"]):
        found = [(one["model"], one["probe"]) for one in each["models"] if "retrieval" in one["numbers"]]
        assert found == [(variant, "linear") for variant in VARIANTS if variant != "ecg_only"]


def test_what_cannot_be_measured_is_said(finished: tuple[study.StudyOptions, study.Study]) -> None:
    """A constant target and a disease that everybody has are left out by name; the page says how many pairs were refused."""
    options, found = finished
    measured = _numbers(options)
    assert measured["targets"] == list(ASKED)
    assert "coronary_artery_disease" not in measured["conditions"]
    assert "left out, as some part does not know enough of it: coronary_artery_disease, wall_thickness" in found.table
    assert "refused by the preparation, by seed: 0 of 58, 0 of 58" in found.table


def test_the_stages_that_variants_share_are_trained_once(finished: tuple[study.StudyOptions, study.Study]) -> None:
    """One autoencoder and four towers a seed: the volume and the triplet see end-diastole by the same one."""
    shared = finished[0].out / "standard" / "seed-3" / "shared"
    names = sorted(path.name.rsplit("-", 1)[0] for path in shared.iterdir())
    assert names == ["mae", "tower-ed_volume", "tower-es_volume", "tower-slice", "tower-slice_time"]


def test_a_second_run_trains_nothing(
    finished: tuple[study.StudyOptions, study.Study], options: study.StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the outcomes give the same page."""
    monkeypatch.setattr(protocol, "train_ecg_cmr", _forbidden)
    assert study.run_study(options, _silent).table == finished[1].table


def _forbidden(*_given: object, **_named: object) -> None:
    raise AssertionError


class _Killed(Exception):
    """Stands for a kill."""


def test_a_killed_study_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its third variant, it trains only the last three and ends as if nothing had been."""
    _use_tiny(monkeypatch)
    small = _options(tmp_path, seeds=1, sizes=(48, 0), docs=None)
    trained: list[str] = []

    def counted(limit: int) -> Callable[..., Any]:
        def train(run: EcgCmrRun, *given: Any, **named: Any) -> Any:
            if len(trained) == limit:
                raise _Killed
            trained.append(run.recipe)
            return train_ecg_cmr(run, *given, **named)

        return train

    monkeypatch.setattr(protocol, "train_ecg_cmr", counted(2))
    with pytest.raises(_Killed):
        study.run_study(small, _silent)
    monkeypatch.setattr(protocol, "train_ecg_cmr", counted(-1))
    study.run_study(small, _silent)
    assert trained == [f"tiny_{variant}" for variant in VARIANTS]


def test_foreign_pairs_are_refused(options: study.StudyOptions) -> None:
    """Another number of patients asks for another folder."""
    with pytest.raises(PairStoreError, match="give another folder"):
        study.run_study(replace(options, sizes=(50, 40)), _silent)


def test_foreign_runs_are_refused(options: study.StudyOptions) -> None:
    """Another number of epochs asks for another folder."""
    with pytest.raises(ForeignRunError, match="choose another folder"):
        study.run_study(replace(options, epochs=2), _silent)


def test_answers_of_another_probe_are_not_taken_for_these(
    options: study.StudyOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other settings of a probe the outcomes of the baseline have another origin, and are made again."""
    small = replace(options, out=tmp_path / "out", docs=None, seeds=1)
    (each,) = (one for one in study._sets(small) if one.name == "easy")
    (job,) = study._jobs(small, each, _silent)
    bare = replace(job, runs={})
    protocol.run_job(bare, _silent)
    file = job.folder / "outcomes" / f"{DEMOGRAPHICS}-linear.npz"
    first = file.stat().st_mtime_ns
    protocol.run_job(bare, _silent)
    assert file.stat().st_mtime_ns == first
    protocol.run_job(replace(bare, probing=replace(job.probing, mlp=replace(FIT, epochs=2))), _silent)
    assert file.stat().st_mtime_ns > first


def test_of_patients_nothing_is_required(
    options: study.StudyOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One store serves every seed, the page says whose data it is and what decides a label, and no line must hold."""
    opened: list[tuple[Path, int]] = []

    def ukbb(root: Path, *, options: Any, **_named: object) -> ToldHearts:
        opened.append((root, options.instance))
        return ToldHearts(patients=48, salt="standard-3")

    monkeypatch.setattr(study, "ukbb_pairs", ukbb)
    monkeypatch.setattr(study, "UKBB_COLUMNS", study.PHANTOM_COLUMNS)
    bare = study.PROBING["small"]
    monkeypatch.setattr(study, "PROBING", {"small": replace(bare, kinds=("linear",))})
    patients = replace(options, data=Path("ukbb"), instance=3, out=tmp_path / "out", docs=tmp_path / "docs")
    found = study.run_study(patients, _silent)
    assert opened == [(Path("ukbb"), 3)]
    assert found.holds
    assert [path.name for path in (patients.out / "stores").iterdir()] == ["ukbb"]
    assert "a data set of patients" in found.table
    assert "incident one after it" in found.table
    assert "## What must hold" not in found.table
    assert _numbers(patients)["requirements"] == []


def test_two_workers_say_what_one_says(options: study.StudyOptions, finished: Any) -> None:
    """Every job in a process of its own gives the outcomes in the same order."""
    small = study._sets(replace(options, seeds=2))
    jobs = [job for each in small for job in study._jobs(options, each, _silent)]
    outcomes = study._all([replace(job, runs={}) for job in jobs], 2, _silent)
    assert [[each.model for each in one] for one in outcomes] == [[DEMOGRAPHICS] * 2] * 2 + [[DEMOGRAPHICS]] * 2
    assert [one[0].seed for one in outcomes] == [3, 4, 3, 4]
    assert finished[0] is options


def test_the_easy_set_is_run_on_the_first_seeds(options: study.StudyOptions) -> None:
    """Fewer seeds where asked; the standard set is run on all."""
    standard, easy = study._sets(replace(options, easy_seeds=1))
    assert (list(standard.sources), list(easy.sources)) == ([3, 4], [3])


def test_each_seed_has_pairs_and_weights_of_its_own(options: study.StudyOptions) -> None:
    """Two seeds differ in hearts and in the seed of every stage; two sets of a seed train the same recipes."""
    standard, easy = study._sets(options)
    jobs = {each.name: study._jobs(options, each, _silent) for each in (standard, easy)}
    one, two = jobs["standard"]
    assert one.store_sha256 != two.store_sha256
    assert {one.runs[variant].seed for variant in VARIANTS} == {300 + 3}
    assert {two.runs[variant].towers[0].seed for variant in VARIANTS if variant != "ecg_only"} == {400 + 3}
    assert jobs["easy"][0].runs == one.runs


def test_patients_without_demographics_are_in_no_model(options: study.StudyOptions) -> None:
    """The baseline and the variants answer for the same rows: the one who does not state a weight is in no part."""
    outcomes = [read_outcome(file) for file in sorted(options.out.glob("standard/seed-3/outcomes/*.npz"))]
    assert len(outcomes) == 2 + 15 + 10
    assert len({outcome.answers.cohort.keys for outcome in outcomes}) == 1
    assert not np.isnan(outcomes[0].answers.cohort.demographics_NG).any()
    salts = {salt: part_of("heart-2", salt) for salt in (f"standard-{seed}" for seed in range(40))}
    salt = next(salt for salt, part in salts.items() if part == "test")
    store = build_pair_store(ToldHearts(patients=40, salt=salt), options.out / "stores" / "lacking")
    pairs = Pairs.of(store, Columns(targets=ASKED, conditions=(), demographics=BODY))
    missing = [key for key in store.subset("test").keys if key not in pairs.stores["test"].keys]
    assert [key.split("/")[0] for key in missing] == ["heart-2"]


def test_a_column_has_to_be_known_in_every_part(tmp_path: Path) -> None:
    """A disease of one class in training is left out, one of one class in the test part stays."""
    store = build_pair_store(ToldHearts(patients=40), tmp_path)
    parts = [store.only([0, 1, 2, 3, 4, 5, 6, 7]), store.only([8, 9]), store.only([10])]
    asked = Columns(targets=("lvedv",), conditions=ILL, demographics=("age_years",))
    kept = usable(parts, asked)
    assert kept.targets == ()  # one heart has one volume
    assert kept.conditions == ("heart_failure",)
    wide = replace(asked, targets=("lvedv",))
    assert in_all([wide, kept]) == kept


def test_embeddings_and_projections_do_not_depend_on_the_chunk(
    options: study.StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows stay with their pair; two towers count evenly, so the cosine is the mean of both cosines."""
    job = study._jobs(options, study._sets(options)[0], _silent)[0]
    store = build_pair_store(_hearts(seed=3, patients=48, cohort="standard"), job.store)
    run = job.runs["triplet"]
    trained = train_ecg_cmr(run, store, job.folder / "triplet", shared=job.folder / "shared")
    assert trained.aligned is not None
    part = store.subset("test")
    whole = embeddings(trained.encoder, part), *projections(run, trained.aligned, part)
    from training.ecg_cmr import embeddings as module

    monkeypatch.setattr(module, "_AT_ONCE", 2)
    pieces = embeddings(trained.encoder, part), *projections(run, trained.aligned, part)
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    _, ecg, cmr = whole
    assert ecg.shape == cmr.shape == (len(part), 2 * 6)
    np.testing.assert_allclose(np.linalg.norm(cmr, axis=1), np.sqrt(2), atol=1e-6)
    assert not any(weight.requires_grad and weight.grad is not None for weight in trained.aligned.towers.parameters())
    assert not torch.is_inference(next(trained.encoder.parameters()))


def test_the_command_ends_with_1_where_something_does_not_hold(
    options: study.StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is printed either way; a mistake is said in one line."""
    given: list[study.StudyOptions] = []

    def run(asked: study.StudyOptions, _progress: object) -> study.Study:
        given.append(asked)
        return study.Study(table="the page", holds=len(given) > 1)

    monkeypatch.setattr(study, "run_study", run)
    arguments = ["evaluate", "ecg_cmr", "--out", str(options.out), "--sizes", "60,50", "--seeds", "1"]
    results = [CliRunner().invoke(main, arguments) for _ in range(2)]
    assert [each.exit_code for each in results] == [1, 0]
    assert all("the page" in each.output for each in results)
    assert given[0].sizes == (60, 50)
    assert given[0].seeds == 1

    def refuse(*_given: object) -> None:
        raise ForeignRunError("choose another folder")

    monkeypatch.setattr(study, "run_study", refuse)
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "Error: choose another folder" in result.output) == (1, True)


def test_the_recipes_of_both_sizes_share_what_they_should() -> None:
    """All five of a size have one encoder, one autoencoder and one contrast budget: they differ in what they look at."""
    for size in ("small", "published"):
        runs: Mapping[str, EcgCmrRun] = {variant: _loaded(variant, size) for variant in VARIANTS}
        assert len({(run.encoder, run.mae, run.augment) for run in runs.values()}) == 1
        assert len({run.contrast.optim for run in runs.values() if run.contrast is not None}) == 1


def _loaded(variant: str, size: str) -> EcgCmrRun:
    run = load_recipe(f"ecg_cmr_{variant}_{size}")
    assert isinstance(run, EcgCmrRun)
    return run
