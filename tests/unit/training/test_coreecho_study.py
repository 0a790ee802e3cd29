"""The whole comparison on a handful of videos: it runs, resumes, says what it measured, and fails where it must."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.doubles.echo_runs import discs, tiny_baseline, tiny_run, use_tiny_encoder
from training.cli import main
from training.coreecho import protocol, stages, study
from training.coreecho.evaluation import Draws
from training.coreecho.protocol import SeedVideos, echo_run, trained_network
from training.coreecho.transfer_study import TransferOptions, transfer_markdown
from training.coreecho.video_sets import Parts

RUNS = {"tiny": tiny_run, "tiny_l1": tiny_baseline}


def _phantoms(_run: object, seed: int, *_given: object, **_named: object) -> Parts:
    train, validation, test, other = (discs(count, seed=10 * seed + part) for part, count in enumerate((8, 4, 6, 6)))
    return Parts(train=train, validation=validation, test=test, other_scanner=other)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study.StudyOptions:
    """Two seeds of the tiny runs on discs."""
    use_tiny_encoder(monkeypatch)
    monkeypatch.setattr(study, "echo_run", lambda name: RUNS[name]())
    monkeypatch.setattr(study, "study_phantoms", _phantoms)
    return study.StudyOptions(
        recipe="tiny",
        baselines=("tiny_l1",),
        data=None,
        weights=None,
        transfer=TransferOptions(camus=None, hmc_qu=None, epochs=1, workers=1, device="cpu"),
        out=tmp_path / "out",
        docs=tmp_path / "docs",
        sizes=(8, 4, 6),
        seeds=2,
        first_seed=3,
        all_clips=True,
        workers=1,
        device="cpu",
        command="purkinje-train evaluate coreecho",
        draws=Draws(errors=20, order=5),
    )


def test_the_comparison_runs_and_resumes(options: study.StudyOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table, numbers and pictures are written for the seeds asked for; a second run trains nothing and says the same."""
    found = study.run_study(options, lambda _text: None)
    assert options.docs is not None
    numbers = json.loads((options.docs / "coreecho.json").read_text())
    assert numbers["seeds"] == [3, 4]
    assert [model["model"] for model in numbers["models"]] == ["CoReEcho", "L1 end to end, same encoder"]
    domains = numbers["models"][0]["domains"]
    assert list(domains) == ["in_domain", "out_of_domain", "in_domain_all_clips", "out_of_domain_all_clips"]
    assert len(domains["in_domain"]["of_each_seed"]) == 2
    assert found.holds is all(each["met"] for each in numbers["requirements"])
    assert len(numbers["requirements"]) == 3
    assert (options.docs / "coreecho" / "coreecho-small" / "map.png").exists()
    assert found.table == (options.docs / "coreecho.md").read_text()

    def no_training(*_given: object, **_named: object) -> None:
        raise AssertionError

    monkeypatch.setattr(protocol, "train_echo", no_training)
    assert study.run_study(options, lambda _text: None).table == found.table


def test_another_setting_is_trained_anew(options: study.StudyOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes of another seed of the recipe are not taken for these."""
    small = replace(options, seeds=1, all_clips=False, docs=None)
    first = study.run_study(small, lambda _text: None)
    other = replace(tiny_run(), seed=99)
    monkeypatch.setattr(study, "echo_run", lambda name: other if name == "tiny" else tiny_baseline())
    second = study.run_study(small, lambda _text: None)
    assert first.table != second.table


def test_each_seed_has_weights_of_its_own() -> None:
    """The runs of two seeds differ in their seed alone."""
    one, two = (protocol.seeded(tiny_run(), seed) for seed in (0, 1))
    assert one == tiny_run()
    assert replace(two, seed=one.seed) == one
    assert two.seed != one.seed


def test_pictures_of_patients_stay_out_of_the_documentation(
    options: study.StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a data set the page gets the map alone; clips are drawn below ``out`` only; nothing is required."""
    monkeypatch.setattr(study, "echonet", lambda *_given, **_named: replace(_phantoms(None, 0), other_scanner=None))
    patients = replace(options, data=Path("echonet"), seeds=1, all_clips=False)
    found = study.run_study(patients, lambda _text: None)
    assert found.holds
    assert "EchoNet-Dynamic (Trained and tested on a data set of patients" in found.table
    assert options.docs is not None
    pictures = {path.name for path in (options.docs / "coreecho").rglob("*") if path.is_file()}
    assert pictures == {"map.png"}
    assert list((options.out / "coreecho").rglob("*-attention.gif"))


def test_recipes_of_another_kind_are_refused(options: study.StudyOptions) -> None:
    """The baseline in the place of the method, and a recipe that is not of clips."""
    with pytest.raises(ValueError, match="expected a recipe of CoReEcho against"):
        study.run_study(replace(options, recipe="tiny_l1"), lambda _text: None)
    with pytest.raises(ValueError, match="enf_small is no recipe on clips"):
        echo_run("enf_small")


def test_an_unfinished_run_is_not_taken_for_a_trained_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stage 2 cut short the message says how many epochs are there; with all of them the network loads."""
    use_tiny_encoder(monkeypatch)
    run = tiny_run()
    stages.train_echo(run, discs(8), discs(4, seed=1), tmp_path)
    assert not trained_network(run, tmp_path).training
    longer = replace(run, stage2=replace(run.stage2, epochs=4))
    with pytest.raises(FileNotFoundError, match="2 of 4 epochs of stage2"):
        trained_network(longer, tmp_path)


def test_phantoms_have_two_test_sets_and_patients_one() -> None:
    """The hearts seen by another scanner are a test set of their own."""
    parts = _phantoms(None, 0)
    assert list(SeedVideos.of(parts).tests) == ["in_domain", "out_of_domain"]
    assert list(SeedVideos.of(replace(parts, other_scanner=None)).tests) == ["in_domain"]


def test_transfer_stands_beside_the_published_rows() -> None:
    """Ours with intervals; without a data set there is no section."""
    interval = {"value": 0.8, "low": 0.7, "high": 0.9}
    camus = {"correlation": interval, "mae": {"value": 5.5, "low": 5.0, "high": 6.0}, "videos": 9}
    numbers = [
        {"data_set": "camus", "model": "CoReEcho", "mode": "probe", "good_and_medium": camus, "poor": {"videos": 1}},
        {
            "data_set": "hmc_qu",
            "model": "CoReEcho",
            "mode": "finetune",
            "f1": 0.9,
            **dict.fromkeys(("sensitivity", "specificity", "accuracy"), interval),
            "precision": None,
        },
    ]
    page = transfer_markdown(numbers)
    assert "| **ours: CoReEcho** | MLP probing | 0.800 [0.700, 0.900] | 5.50 [5.00, 6.00] | too few videos |" in page
    assert "| **ours: CoReEcho** | fine-tuning | 80.0 [70.0, 90.0] | 80.0 [70.0, 90.0] | undefined | 90.0 |" in page
    assert "| CoReEcho | fine-tuning | 0.807 | 5.29 | 0.693 | 6.81 |" in page
    assert transfer_markdown([]) == ""


def test_the_command_ends_with_one_where_something_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is printed either way, and the options arrive."""
    asked = []

    def run_study(options: study.StudyOptions, _progress: object) -> study.Study:
        asked.append(options)
        return study.Study(table="the page", holds=options.first_seed == 7)

    monkeypatch.setattr(study, "run_study", run_study)
    good = CliRunner().invoke(main, ["evaluate", "coreecho", "--first-seed", "7", "--sizes", "6,1,2"])
    bad = CliRunner().invoke(main, ["evaluate", "coreecho"])
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "the page" in good.output
    assert "the page" in bad.output
    assert asked[0].sizes == (6, 1, 2)
    assert (asked[1].seeds, asked[1].sizes, asked[1].baselines) == (3, (600, 100, 200), ("echocotr_small",))


def test_a_broken_data_set_is_a_message(tmp_path: Path) -> None:
    """An empty folder is no EchoNet-Dynamic."""
    result = CliRunner().invoke(main, ["evaluate", "coreecho", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "FileList.csv" in result.output


def test_explain_needs_a_trained_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the message says to train first; a recipe of another kind is named."""
    from training.coreecho import release

    parts = Parts(train=discs(8), validation=discs(4), test=discs(4, seed=2))
    monkeypatch.setattr(release, "release_videos", lambda *_given: parts)
    given = ["--out", str(tmp_path), "--pictures", str(tmp_path / "pictures")]
    result = CliRunner().invoke(main, ["explain", "coreecho_small", *given])
    assert result.exit_code == 1
    assert "train the run to its end first" in result.output
    assert "no recipe on clips" in CliRunner().invoke(main, ["explain", "enf_small", *given]).output


def test_explain_writes_the_pictures_of_a_trained_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints the files it wrote, one a line."""
    from training.coreecho import release

    use_tiny_encoder(monkeypatch)
    run = tiny_run()
    parts = Parts(train=discs(8), validation=discs(4), test=discs(4, seed=2))
    monkeypatch.setattr(release, "release_videos", lambda *_given: parts)
    monkeypatch.setattr(protocol, "load_recipe", lambda _name: run)
    stages.train_echo(run, parts.train, parts.validation, release.run_folder(run, parts, tmp_path))
    given = ["--out", str(tmp_path), "--pictures", str(tmp_path / "pictures"), "--shown", "1"]
    result = CliRunner().invoke(main, ["explain", "tiny", *given])
    assert result.exit_code == 0, result.output
    files = [Path(line) for line in result.output.splitlines() if line.startswith(str(tmp_path))]
    assert len(files) == 4
    assert all(file.exists() for file in files)


def test_what_is_no_number_is_written_as_null() -> None:
    """Embeddings that have all become one have no order; the page is still written."""
    document = {"order": math.nan, "models": [{"mae": 2.0, "interval": (1.0, math.inf)}], "name": "CoReEcho"}
    written = json.loads(json.dumps(study.without_nan(document), allow_nan=False))
    assert written == {"order": None, "models": [{"mae": 2.0, "interval": [1.0, None]}], "name": "CoReEcho"}
