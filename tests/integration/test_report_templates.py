"""The templates of the reports before PixelMed's validator; seconds per file, so outside the fast tests."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from engines.records import Modality
from stream_processors.reports.measurement_report import build_reports, encode
from stream_processors.reports.validate import PIXELMED, Complaint
from tests.doubles.reports import make_context, make_header, make_picture, make_prediction

TYPES = [
    (Modality.ECHO, "answered", 0),
    (Modality.CMR, "undecided", 0),
    (Modality.ECG, "answered", 0),
    (Modality.ECHO, "abstained", 0),
    (Modality.ECG, "answered", 1),
    (Modality.CMR, "explained", 0),
    (Modality.CMR, "explained", 1),
]


@pytest.fixture(scope="session")
def pixelmed() -> None:
    """PixelMed's validator; absent it skips, and fails in continuous integration."""
    if PIXELMED.is_available:
        return
    message = f"PixelMed's validator is missing (Debian: {PIXELMED.package})"
    pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)


def complain(modality: Modality, answer: str, which: int, folder: Path) -> list[Complaint]:
    """Everything PixelMed says of one document (0 report, 1 companion)."""
    headers = [make_header(modality, number) for number in (1, 2)]
    prediction = make_prediction(modality, "answered" if answer == "explained" else answer, headers)
    picture = make_picture() if answer == "explained" else None
    documents = build_reports(replace(prediction, picture=picture), make_context(modality, headers))
    path = folder / "document.dcm"
    path.write_bytes(encode(documents[which]))
    return PIXELMED.complaints(path)


@pytest.mark.usefixtures("pixelmed")
@pytest.mark.parametrize(("modality", "answer", "which"), TYPES)
def test_every_document_follows_its_template(modality: Modality, answer: str, which: int, tmp_path: Path) -> None:
    """Errors and warnings are only those whose reason we know."""
    assert [complaint.line for complaint in complain(modality, answer, which, tmp_path) if complaint.counts] == []
