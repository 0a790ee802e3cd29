"""What a radiologist sees: real OHIF in a real browser, in front of a real Orthanc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from engines.records import Modality
from stream_processors.local.orthanc import LocalOrthanc, OrthancMissing
from stream_processors.local.viewer import LocalViewer, ViewerMissing
from stream_processors.reports.measurement_report import build_reports
from stream_processors.reports.read import read_report
from tests.doubles.reports import make_context, make_header, make_prediction

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--headless=new",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
]
PATIENCE_MS = 60_000
REDRAW_MS = 8_000
WIDTH = 1400
HEIGHTS = (880, 900, 880, 900)
ACUSON = "us/echo_a4c_acuson_sequoia_65f_jpegbaseline.dcm"
STRAY_DELIMITER = 0xFFFEE0DD


def unavailable(reason: str) -> None:
    """Skip with the reason, and fail in continuous integration."""
    pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOrthanc]:
    """An Orthanc without our plugin."""
    try:
        started = LocalOrthanc(tmp_path_factory.mktemp("orthanc"))
        started.start()
    except OrthancMissing as error:
        unavailable(str(error))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def viewer(orthanc: LocalOrthanc) -> Iterator[LocalViewer]:
    """OHIF in front of it."""
    try:
        started = LocalViewer(orthanc.url)
    except ViewerMissing as error:
        unavailable(str(error))
    with started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    """Debian's Chromium, without a screen."""
    if not CHROMIUM.exists():
        unavailable(f"{CHROMIUM} is missing (Debian: chromium)")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """A fresh page."""
    opened = browser.new_page(viewport={"width": WIDTH, "height": HEIGHTS[-1]})
    yield opened
    opened.close()


def store(orthanc: LocalOrthanc, dataset: Dataset) -> None:
    """Put one object into Orthanc."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    httpx.post(f"{orthanc.url}/instances", content=buffer.getvalue(), timeout=30).raise_for_status()


def with_pixels(header: Dataset, frames: int) -> Dataset:
    """A grey ramp for the header, in its rows and columns."""
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit = 7
    if frames > 1:
        header.NumberOfFrames = frames
    ramp = np.linspace(0, 255, header.Rows * header.Columns, dtype=np.uint8)
    header.PixelData = np.tile(ramp, frames).tobytes()
    return header


def study(modality: Modality, uid: str, answer: str = "answered") -> tuple[list[Dataset], Dataset, Dataset]:
    """One made study: its instances, and what is said of them."""
    changes = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1", "SOPInstanceUID": f"{uid}.1.1"}
    header = make_header(modality, Modality=("ECG" if modality is Modality.ECG else "US"), **changes)
    if modality is Modality.ECG:
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    else:
        header = with_pixels(header, 40 if modality is Modality.ECHO else 1)
    context = make_context(modality, [header], content_digest=sha256(uid.encode()).hexdigest())
    report, companion = build_reports(make_prediction(modality, answer, [header]), context)
    return [header], report, companion


def open_document(page: sync_api.Page, viewer: LocalViewer, document: Dataset) -> None:
    """Open the study, end the tour, double-click the document in the list."""
    page.goto(viewer.study_url(document.StudyInstanceUID))
    item = page.locator('[data-cy="study-browser-thumbnail-no-image"]', has_text=f"S:{document.SeriesNumber}")
    item.wait_for(timeout=PATIENCE_MS)
    tour = page.get_by_text("Skip all")
    page.add_locator_handler(tour, tour.click)
    item.dblclick()


def keep(page: sync_api.Page, root: Path, name: str) -> None:
    """Leave a screenshot under ``out/viewer``."""
    folder = root / "out" / "viewer"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def number_on_the_image(page: sync_api.Page, name: str) -> float:
    """The number that stands behind a name in the drawing over the image."""
    label = page.locator("svg text", has_text=name).first
    for height in (*HEIGHTS, None):
        try:
            label.wait_for(timeout=REDRAW_MS)
            break
        except sync_api.TimeoutError:
            if height is None:
                raise
            # OHIF draws annotations when it renders; a slow machine adds ours after the last render, so cause another.
            page.set_viewport_size({"width": WIDTH, "height": height})
    found = re.search(rf"{re.escape(name)}: (\d+\.\d\d) %", label.text_content() or "")
    assert found
    return float(found[1])


def test_the_ejection_fraction_stands_on_the_image(
    page: sync_api.Page, viewer: LocalViewer, orthanc: LocalOrthanc, root: Path
) -> None:
    """Opening the echo report shows the clip with the region and the number of the report, and no offer to edit it."""
    instances, report, companion = study(Modality.ECHO, "1.2.826.1")
    for dataset in (*instances, report, companion):
        store(orthanc, dataset)
    open_document(page, viewer, report)
    number = number_on_the_image(page, "Left Ventricular Ejection Fraction by US")
    keep(page, root, "echo")
    assert page.get_by_text("continue tracking measurements").count() == 0
    assert number == read_report(report).measurements[0].value


def test_the_probability_stands_on_the_image(
    page: sync_api.Page, viewer: LocalViewer, orthanc: LocalOrthanc, root: Path
) -> None:
    """Opening the cardiac MR report shows the analysed crop on its frame, and the probability on it."""
    instances, report, companion = study(Modality.CMR, "1.2.826.3")
    for dataset in (*instances, report, companion):
        store(orthanc, dataset)
    open_document(page, viewer, report)
    number = number_on_the_image(page, "Probability")
    keep(page, root, "cmr")
    assert number == read_report(report).probabilities[0].value


@pytest.mark.parametrize("modality", Modality)
def test_the_companion_is_readable(
    page: sync_api.Page, viewer: LocalViewer, orthanc: LocalOrthanc, root: Path, modality: Modality
) -> None:
    """The text shows every number of the report, that nobody has reviewed it, and that it is not for clinical use."""
    instances, report, companion = study(modality, f"1.2.826.4.{len(modality.value)}.{ord(modality.value[0])}")
    for dataset in (*instances, report, companion):
        store(orthanc, dataset)
    open_document(page, viewer, companion)
    page.get_by_text("AI output, not reviewed.").wait_for(timeout=PATIENCE_MS)
    shown = page.inner_text("body")
    keep(page, root, f"{modality.value}_text")
    read = read_report(report)
    assert "Trained on phantoms, not for clinical use." in shown
    for number in (*read.measurements, *read.probabilities):
        kind = f"{number.coverage_percent:g} %" if number in read.measurements else "Venn-Abers"
        bounds = f"{kind} interval {number.interval_low} to {number.interval_high} {number.unit}"
        if number.wide_interval is not None:
            low, high = number.wide_interval
            bounds += f", {number.wide_coverage_percent:g} % interval {low} to {high} {number.unit}"
        assert re.search(rf"{number.value} {re.escape(number.unit)} \({re.escape(bounds)}\)", shown)


def test_an_abstention_is_readable(page: sync_api.Page, viewer: LocalViewer, orthanc: LocalOrthanc, root: Path) -> None:
    """Where there is no number the text says why."""
    instances, report, companion = study(Modality.ECHO, "1.2.826.5", "abstained")
    for dataset in (*instances, report, companion):
        store(orthanc, dataset)
    open_document(page, viewer, companion)
    page.get_by_text(f"No result: {read_report(report).reason}").wait_for(timeout=PATIENCE_MS)
    keep(page, root, "abstention_text")
    assert "Reason code: out_of_distribution" in page.inner_text("body")


@pytest.mark.sample_data
def test_a_real_clip_shows_its_number(
    page: sync_api.Page, viewer: LocalViewer, orthanc: LocalOrthanc, root: Path, sample_data: Path
) -> None:
    """A clip that a scanner wrote opens with the region and the number on it."""
    clip = dcmread(sample_data / ACUSON)
    clip._dict.pop(STRAY_DELIMITER, None)
    prediction = replace(make_prediction(Modality.ECHO, "answered", [clip]), region_px=(120, 40, 470, 420))
    report, _ = build_reports(prediction, make_context(Modality.ECHO, [clip]))
    for dataset in (clip, report):
        store(orthanc, dataset)
    open_document(page, viewer, report)
    number = number_on_the_image(page, "Left Ventricular Ejection Fraction by US")
    keep(page, root, "echo_real_clip")
    assert number == read_report(report).measurements[0].value
