"""``purkinje-train evaluate ecg_cmr``: the whole comparison as one command, its table and its numbers.

What it costs, in seconds on one quiet core for each patient of the standard set and a seed, validation included: pairs 0.36;
autoencoder, 20 epochs of the 70 % that train at 6.5 ms, 0.09; towers, 30 epochs at 1 + 11 + 8 + 8 ms, 0.59; contrast, four
variants of 30 epochs at 9.7 ms, 0.81; fine-tuning, five encoders of at most 12 epochs at 7.5 ms, 0.32. Together 2.2; of the easy
set more train and none is fine-tuned, 2.2 too. The default of three seeds of 600 patients and one of 800 easy ones takes 5,700 s
or 48 minutes on two cores, each at work on seeds of its own; probes and drawings take some ten minutes more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from engines.preprocess.cmr_volume import CmrVolumeSpec
from training.config import load_recipe
from training.data.sources.paired_subjects import DEMOGRAPHICS, TARGETS
from training.data.sources.ukbb_ecg import INCIDENT, UkbbOptions
from training.data.sources.ukbb_fields import THIRTEEN_TARGETS
from training.data.targets import DISEASES
from training.data.worker_pool import worker_pool
from training.ecg_cmr.cohorts import Columns, in_all
from training.ecg_cmr.config import EcgCmrRun, with_ecg_cmr_epochs, with_seed
from training.ecg_cmr.easy_pairs import easy_pairs
from training.ecg_cmr.evaluation import DRAWS
from training.ecg_cmr.measured_stacks import read_measured
from training.ecg_cmr.measurements import Comparison, document
from training.ecg_cmr.neural_probes import FINE_TUNING, PEER_MLP
from training.ecg_cmr.outcome import VARIANTS, Outcome
from training.ecg_cmr.pair_source import PairSource, PhantomPairs
from training.ecg_cmr.preparation import cmr_volume_published, cmr_volume_small, ecg_of_pairs, phantom_pairs
from training.ecg_cmr.protocol import Job, Pairs, Probing, run_job
from training.ecg_cmr.requirements import as_markdown, as_rows, requirements
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.store_build import build_pair_store
from training.ecg_cmr.table import details, markdown, section
from training.ecg_cmr.ukbb_pairs import ukbb_pairs
from training.phantoms.paired import Cohort as PhantomCohort

Progress = Callable[[str], None]
Size = Literal["small", "published"]
Document = dict[str, Any]

PHANTOM_COLUMNS = Columns(targets=TARGETS, conditions=DISEASES, demographics=DEMOGRAPHICS)
UKBB_COLUMNS = Columns(
    targets=THIRTEEN_TARGETS,
    conditions=(*DISEASES, *(f"{INCIDENT}{name}" for name in DISEASES)),
    demographics=DEMOGRAPHICS,
)
PROBING: Mapping[Size, Probing] = {
    "small": Probing(
        kinds=("linear", "mlp", "fine_tune"),
        mlp=PEER_MLP,
        fine_tuning=replace(FINE_TUNING, learning_rates=(3e-4,), epochs=12, patience=4),
    ),
    "published": Probing(kinds=("linear", "mlp", "fine_tune"), mlp=PEER_MLP, fine_tuning=FINE_TUNING),
}
"""The small fine-tuning has one learning rate and few epochs, the same for every variant."""
_PHANTOMS = "Trained and tested on digital phantoms. Not for clinical use."
_PATIENTS = "Trained and tested on a data set of patients by a research protocol. Not for clinical use."
_SEEDS_APART = 100
_NAME = "ecg_cmr"
"""Of what is written."""
_POINTER = f"Every target, condition, difference and subgroup: [details]({_NAME}_details.md).\n"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What the command was asked for.

    Args:
        data: folder of UK Biobank, or None for digital phantoms.
        instance: UK Biobank: 2 is the first imaging visit, 3 the repeat.
        size: of the five recipes, ``small`` or ``published``.
        out: folder of everything that is kept between runs.
        docs: folder that receives table and numbers; None writes them below ``out`` only.
        sizes: phantoms of the standard and of the easy set, for each seed; 0 leaves the easy set out.
        seeds: how many.
        easy_seeds: how many of them the easy set is run on.
        first_seed: the first of them.
        epochs: of every stage, for trials; None as the recipes say.
        workers: processes; each makes pairs, then trains a seed.
        threads: of torch in each.
        device: of training, such as ``cuda``.
        command: as it stands in the table.
        draws: of patients, for the intervals.
        measured: UK Biobank: table of ``segmentation_study`` for participants whose tables state no quantity, or None.
    """

    data: Path | None
    instance: int
    size: Size
    out: Path
    docs: Path | None
    sizes: tuple[int, int]
    seeds: int
    easy_seeds: int
    first_seed: int
    epochs: int | None
    workers: int
    threads: int
    device: str
    command: str
    draws: int = DRAWS
    measured: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """The page with all tables, and whether everything holds that must."""

    table: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class _Set:
    """Pairs that every variant is compared on, by the seed of the study.

    Args:
        name: of its folder.
        words: of the table.
        sources: by seed; of one data set the same for each.
        columns: asked for.
        probing: of every embedding.
    """

    name: str
    words: str
    sources: Mapping[int, PairSource]
    columns: Columns
    probing: Probing


def run_study(options: StudyOptions, progress: Progress) -> Study:
    """Run what is missing, write table and numbers, and return the table.

    Raises:
        ForeignRunError: a folder below ``out`` holds runs of other settings.
        ValueError: a folder holds other pairs (``PairStoreError``), or the data set folder is broken.
    """
    sets = _sets(options)
    jobs = {each.name: _jobs(options, each, progress) for each in sets}
    found = iter(_all([job for name in jobs for job in jobs[name]], options.workers, progress))
    outcomes = {name: [outcome for _ in jobs[name] for outcome in next(found)] for name in jobs}
    documents = {
        each.name: document(outcomes[each.name], _comparison(options, each, jobs[each.name]), draws=options.draws)
        for each in sets
    }
    return _written(options, documents)


def recipe_of(variant: str, size: Size) -> EcgCmrRun:
    """Return the recipe of a variant."""
    run = load_recipe(f"ecg_cmr_{variant}_{size}")
    assert isinstance(run, EcgCmrRun)
    return run


def _written(options: StudyOptions, documents: Mapping[str, Document]) -> Study:
    """The first set is the study, the easy one beside it shows that the contrast works where the ECG tells all."""
    names = list(documents)
    measured, easy = documents[names[0]], documents.get("easy")
    found = requirements(measured, phantoms=options.data is None, easy=easy)
    easy_page = section("Easy set", easy) if easy else ""
    pages = [markdown(measured), easy_page, as_markdown(found) if found else "", _POINTER]
    table = "\n".join(page for page in pages if page)
    numbers = measured | {"easy": easy, "requirements": as_rows(found)}
    _write(options.out, table, details(measured), numbers)
    if options.docs is not None:
        _write(options.docs, table, details(measured), _brief(numbers))
    return Study(table=table, holds=all(each.met for each in found))


def _write(folder: Path, table: str, more: str, numbers: Document) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{_NAME}.md").write_text(table, encoding="utf-8")
    (folder / f"{_NAME}_details.md").write_text(more, encoding="utf-8")
    text = json.dumps(numbers, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    (folder / f"{_NAME}.json").write_text(text + "\n", encoding="utf-8")


def _brief(numbers: Document) -> Document:
    """The numbers for the documentation: without subgroups and single seeds, which lie below ``out``, and to six digits."""
    easy = numbers["easy"]
    short: Document = _rounded(numbers | {"models": _without_parts(numbers)})
    return short | {"easy": None if easy is None else _rounded(easy | {"models": _without_parts(easy)})}


def _without_parts(measured: Document) -> list[Document]:
    left_out = {"subgroups", "of_each_seed"}
    return [{key: value for key, value in model.items() if key not in left_out} for model in measured["models"]]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _sets(options: StudyOptions) -> list[_Set]:
    probing = PROBING[options.size]
    if options.data is not None:
        return [_ukbb(options, options.data, probing)]
    standard, easy = options.sizes
    hearts = {seed: phantom_pairs(seed=seed, patients=standard, cohort="standard") for seed in _seeds(options)}
    sets = [_phantoms("standard", hearts, options, probing)]
    if easy:
        plain = {seed: easy_pairs(seed=seed, patients=easy) for seed in _seeds(options)[: options.easy_seeds]}
        sets.append(_phantoms("easy", plain, options, replace(probing, kinds=("linear",))))
    return sets


def _phantoms(
    cohort: PhantomCohort, hearts: Mapping[int, PhantomPairs], options: StudyOptions, probing: Probing
) -> _Set:
    sources = {seed: replace(each, cmr=_cmr(options.size)) for seed, each in hearts.items()}
    words = f"digital phantoms, {cohort} set, other hearts for each seed; a disease counts whether diagnosed before or after"
    return _Set(name=cohort, words=words, sources=sources, columns=PHANTOM_COLUMNS, probing=probing)


def _ukbb(options: StudyOptions, root: Path, probing: Probing) -> _Set:
    measured = {} if options.measured is None else read_measured(options.measured)
    chosen = UkbbOptions(instance=options.instance, quantities=not measured, measured=measured)
    source = ukbb_pairs(root, ecg=ecg_of_pairs(), cmr=_cmr(options.size), options=chosen)
    sources: dict[int, PairSource] = dict.fromkeys(_seeds(options), source)
    words = f"{source.name}; a disease counts where it was coded before the visit, an incident one after it"
    words += "; quantities by segmentation where the tables state none" if measured else ""
    return _Set(name="ukbb", words=words, sources=sources, columns=UKBB_COLUMNS, probing=probing)


def _cmr(size: Size) -> CmrVolumeSpec:
    return cmr_volume_small() if size == "small" else cmr_volume_published()


def _seeds(options: StudyOptions) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def _jobs(options: StudyOptions, of: _Set, progress: Progress) -> list[Job]:
    """Make the pairs of every seed, and return what is to be trained on them.

    What is asked for is the same for every seed: what one cannot answer is left out of all.
    """
    stores: dict[int, PairStore] = {}
    for seed, source in of.sources.items():
        name = of.name if options.data is not None else f"{of.name}-seed-{seed}"
        progress(f"{name}: pairs of {len(source.entries())} patients")
        stores[seed] = build_pair_store(source, options.out / "stores" / name, workers=options.workers)
    columns = in_all([Pairs.of(store, of.columns).columns for store in stores.values()])
    return [_job(options, of, seed, store, columns) for seed, store in stores.items()]


def _job(options: StudyOptions, of: _Set, seed: int, store: PairStore, columns: Columns) -> Job:
    return Job(
        name=f"{of.name} seed {seed}",
        seed=seed,
        runs={variant: _run(variant, options, seed) for variant in VARIANTS},
        store=store.folder,
        store_sha256=store.sha256,
        columns=columns,
        probing=of.probing,
        folder=options.out / of.name / f"seed-{seed}",
        device=options.device,
        threads=options.threads,
    )


def _run(variant: str, options: StudyOptions, seed: int) -> EcgCmrRun:
    """A recipe with weights, order, masks and random changes of its own."""
    run = with_ecg_cmr_epochs(recipe_of(variant, options.size), options.epochs)
    return with_seed(run, run.seed + _SEEDS_APART * seed)


def _all(jobs: Sequence[Job], workers: int, progress: Progress) -> list[list[Outcome]]:
    """Outcomes of every job, in order; with several workers each job has a process of its own, the large sets first."""
    work = partial(run_job, progress=progress)
    if min(workers, len(jobs)) == 1:
        return [work(job) for job in jobs]
    with worker_pool(min(workers, len(jobs))) as pool:
        return list(pool.imap(work, jobs))


def _comparison(options: StudyOptions, of: _Set, jobs: Sequence[Job]) -> Comparison:
    stores = [PairStore.open(job.store, check_arrays=False) for job in jobs]
    return Comparison(
        data_set=of.words,
        caution=_PHANTOMS if options.data is None else _PATIENTS,
        sizes=Pairs.of(stores[0], of.columns).sizes,
        command=options.command,
        settings=(*_settings(jobs[0]), *_left_out(stores, of.columns, jobs[0].columns)),
    )


def _left_out(stores: Sequence[PairStore], asked: Columns, kept: Columns) -> list[str]:
    """What the numbers do not cover."""
    refused = ", ".join(f"{len(store.refused)} of {len(store.refused) + len(store)}" for store in stores)
    names = {*asked.targets, *asked.conditions} - {*kept.targets, *kept.conditions}
    return [
        f"Pairs refused by the preparation, by seed: {refused}",
        *(
            [f"Asked for and left out, as some part does not know enough of it: {', '.join(sorted(names))}"]
            if names
            else []
        ),
    ]


def _settings(job: Job) -> list[str]:
    """What decides the runs, in lines of the page."""
    run = next(each for each in job.runs.values() if each.contrast is not None)
    assert run.contrast is not None
    shape, stage, fit = run.encoder, run.contrast, job.probing.fine_tuning
    rates = ", ".join(f"{rate:g}" for rate in fit.learning_rates)
    return [
        f"ECG encoder: {shape.width} x {shape.depth}, {shape.tokens} tokens; masked autoencoder: {_budget(run.mae.optim)}",
        "The autoencoder is trained once a seed and shared by all variants: ECG only is this encoder and nothing more",
        f"Towers ({run.towers[0].size}): {_budget(run.towers[0].optim)}; trained once a seed, then frozen; not in the seconds",
        f"Contrast of each of the four others: {_budget(stage.optim)}, temperature {stage.temperature:g}",
        f"Fine-tuning of all five: at most {fit.epochs} epochs, learning rates {rates}",
    ]


def _budget(optim: Any) -> str:
    return f"{optim.epochs} epochs of batches of {optim.batch_size}, learning rate {optim.learning_rate:g}"
