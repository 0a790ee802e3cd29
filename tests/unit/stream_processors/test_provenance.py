"""On what an answer was computed: in the report, in its companion, and back out of the report."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from engines.predictions import ModelIdentity
from engines.records import Modality
from stream_processors.reported import content_of
from stream_processors.reports.measurement_report import build_reports, encode
from stream_processors.reports.read import read_report, render_tree
from tests.doubles.reports import ANSWERS, make_context, make_header, make_model, make_prediction

REASON = "the GPU had not enough memory for a batch of 8: 512 MB free of 24 GB"
CASES = [(modality, answer) for modality in Modality for answer in ANSWERS]


def _model(modality: Modality, *, plan: bool = True, fallback: str | None = None) -> ModelIdentity:
    """The identity of an engine that runs as a plan, or of its fallback."""
    model = make_model(modality)
    if plan:
        model = replace(
            model,
            runtime="tensorrt",
            runtime_version="10.15.1.29",
            precision="fp16",
            device="NVIDIA L4, sm_89",
            plan_sha256="e" * 64,
        )
    return replace(model, fallback=fallback)


def _written(model: ModelIdentity, modality: Modality, answer: str = "answered") -> tuple[Dataset, Dataset]:
    headers = [make_header(modality)]
    prediction = replace(make_prediction(modality, answer, headers), model=model)
    report, companion = (
        dcmread(DicomBytesIO(encode(document)))
        for document in build_reports(prediction, make_context(modality, headers))
    )
    return report, companion


@pytest.mark.parametrize(("modality", "answer"), CASES)
@pytest.mark.parametrize("fallback", [None, REASON])
@pytest.mark.parametrize("plan", [True, False])
def test_on_what_an_answer_was_computed_reads_back_whole(
    modality: Modality, answer: str, plan: bool, fallback: str | None
) -> None:
    """Runtime, version, GPU, precision, plan and fallback come back out of every kind of report."""
    model = _model(modality, plan=plan, fallback=fallback)
    report, _ = _written(model, modality, answer)
    assert content_of(report).engine == model


@pytest.mark.parametrize("modality", Modality)
def test_the_parameters_name_gpu_precision_plan_and_fallback(modality: Modality) -> None:
    """TID 4019 holds each as one ``key=value``."""
    report, _ = _written(_model(modality, fallback=REASON), modality)
    parameters = read_report(report).model
    assert parameters["runtime"] == "tensorrt 10.15.1.29"
    assert (parameters["device"], parameters["precision"]) == ("NVIDIA L4, sm_89", "fp16")
    assert (parameters["plan_sha256"], parameters["fallback"]) == ("e" * 64, REASON)


@pytest.mark.parametrize("modality", Modality)
def test_a_report_without_plan_and_fallback_says_nothing_of_them(modality: Modality) -> None:
    """A graph that a CPU runs as it is has neither parameter, and its companion no sentence about them."""
    report, companion = _written(make_model(modality), modality)
    assert not {"plan_sha256", "fallback"} & set(read_report(report).model)
    said = render_tree(companion)
    assert "Plan SHA-256" not in said
    assert "fallback" not in said


@pytest.mark.parametrize("modality", Modality)
def test_the_companion_says_that_a_fallback_computed(modality: Modality) -> None:
    """One sentence for people says that it was the fallback, and why; another which plan ran where."""
    _, companion = _written(_model(modality, fallback=f"{REASON}."), modality)
    said = render_tree(companion)
    assert f"A fallback computed this answer: {REASON}.\n" in f"{said}\n"
    assert f"Plan SHA-256 {'e' * 64}, on NVIDIA L4, sm_89." in said
