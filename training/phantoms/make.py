"""Makes whole studies with their truth: ``OUT/<nnn>/*.dcm`` and ``OUT/truth.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from pydicom import dcmread

from training.phantoms import cmr, echo
from training.phantoms.dicom import Patient, Study, write_cmr, write_ecg, write_echo, write_turned
from training.phantoms.draws import METHODS, Draw, even_draws, plain_draws
from training.phantoms.ecg import ecg_record
from training.phantoms.subjects import Subject, draw_subject


@dataclass(frozen=True, kw_only=True)
class StudyTruth:
    """What is true of one study; ``files`` are relative to the folder of ``truth.json``.

    ``turned_degrees`` counter-clockwise lie the stored pixels against those of ``unturned_study_instance_uid``, which
    is the study itself where nothing was turned.
    """

    study_instance_uid: str
    modality: str
    lvef_percent: float
    lvedv_ml: float
    lvesv_ml: float
    rvef_percent: float
    cardiac_output_l_min: float
    conditions: dict[str, bool]
    turned_degrees: int
    unturned_study_instance_uid: str
    files: tuple[str, ...]


def make_studies(  # noqa: PLR0913 - what, which, how many, where, and who
    method: str,
    seed: int,
    count: int,
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    patient: Patient | None = None,
    turned: bool = False,
    evenly: bool = False,
) -> list[StudyTruth]:
    """Make ``count`` studies of one method; the same seed makes the same bytes.

    With ``turned`` each study is followed by three that hold its pixels turned by 90, 180 and 270 degrees. With ``evenly``
    the hearts are a stratified sample, see ``even_draws``, and other ones than without.

    Raises:
        ValueError: unknown method, a count below 1, or turning anything but cardiac MR.
    """
    if method not in METHODS:
        msg = f"method is {method!r}; expected one of {', '.join(METHODS)}"
        raise ValueError(msg)
    if count < 1:
        msg = f"count is {count}; at least one study is needed"
        raise ValueError(msg)
    if turned and method != "cmr":
        msg = f"{method} studies cannot be turned; only the images of cmr may lie any way round"
        raise ValueError(msg)
    draws = (even_draws if evenly else plain_draws)(method, seed, count)
    truths = []
    for index, draw in enumerate(draws):
        who = patient or Patient(patient_id=f"PHANTOM-{method}-{draw.name}")
        truth = _make(draw, index, out, who)
        truths += [truth, *(_turn(truth, quarter_turns, out) for quarter_turns in (1, 2, 3) if turned)]
        if progress is not None:
            progress(index + 1, count)
    (out / "truth.json").write_text(json.dumps([asdict(truth) for truth in truths], indent=2) + "\n")
    return truths


def _make(draw: Draw, index: int, out: Path, patient: Patient) -> StudyTruth:
    rng, method = draw.generator(), draw.method
    subject = draw_subject(rng)
    key = "/".join(map(str, (method, draw.seed, *draw.heart)))
    study = Study(key=key, number=index + 1, patient=patient, subject=subject, description=f"Phantom {method.upper()}")
    folder = out / f"{index:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    files = _WRITERS[method](study, subject, rng, folder)
    return _truth(method, study, subject, tuple(str(file.relative_to(out)) for file in files))


def _turn(truth: StudyTruth, quarter_turns: int, out: Path) -> StudyTruth:
    degrees = 90 * quarter_turns
    files = [out / file for file in truth.files]
    folder = out / f"{files[0].parent.name}_turned_{degrees:03d}"
    folder.mkdir(exist_ok=True)
    written = write_turned(files, quarter_turns, folder)
    return replace(
        truth,
        study_instance_uid=str(dcmread(written[0], specific_tags=["StudyInstanceUID"]).StudyInstanceUID),
        turned_degrees=degrees,
        files=tuple(str(file.relative_to(out)) for file in written),
    )


def _make_cmr(study: Study, subject: Subject, rng: np.random.Generator, folder: Path) -> list[Path]:
    scan = cmr.draw_scan(rng)
    stack = cmr.rendered(subject, scan, rng)
    return write_cmr(study, scan, np.asarray(stack.images_SPHW, np.uint16), stack.trigger_times_ms, folder)


def _make_echo(study: Study, subject: Subject, rng: np.random.Generator, folder: Path) -> list[Path]:
    scan = echo.draw_scan(rng, subject)
    return write_echo(study, scan, echo.rendered(subject, scan, rng), folder)


def _make_ecg(study: Study, subject: Subject, rng: np.random.Generator, folder: Path) -> list[Path]:
    return write_ecg(study, ecg_record(subject, rng), rng, folder)


_WRITERS = {"cmr": _make_cmr, "echo": _make_echo, "ecg": _make_ecg}


def _truth(method: str, study: Study, subject: Subject, files: tuple[str, ...]) -> StudyTruth:
    return StudyTruth(
        study_instance_uid=study.uid("study"),
        modality=method,
        lvef_percent=subject.lvef_percent,
        lvedv_ml=subject.lvedv_ml,
        lvesv_ml=subject.lvesv_ml,
        rvef_percent=subject.rvef_percent,
        cardiac_output_l_min=subject.cardiac_output_l_min,
        conditions=dict(subject.diseases),
        turned_degrees=0,
        unturned_study_instance_uid=study.uid("study"),
        files=files,
    )
