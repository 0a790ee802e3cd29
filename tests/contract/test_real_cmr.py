"""Two real patients with a low ejection fraction through the released engine: a class, or a reason; and what is refused."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from engines.bundle.calibration import CmrPostprocess
from engines.bundle.reader import RELEASED, load_bundle
from engines.decode.cmr import decode_cmr
from engines.errors import InputRefused, RefusalCode
from engines.predictions import Prediction
from engines.predictors.base import load_predictor
from engines.preprocess.registry import prepare
from engines.records import CineStack

FOLDER = RELEASED / "cmr_risk"
THRESHOLD_PERCENT = 40
LVEF_PERCENT = {"SCD0000101_SC-HF-I-1": 26, "SCD0000301_SC-HF-I-4": 22}
"""By the contours of the experts."""
OUTCOMES: dict[str, bool | RefusalCode | None] = {
    "SCD0000101_SC-HF-I-1": True,
    "SCD0000301_SC-HF-I-4": True,
}
"""What the released bundle says: the decision (None: called neither way), or the code it abstains under.

A newly released bundle may change a line; whoever releases it changes it here, knowingly.
"""


def instances_of(subject: str, sample_data: Path) -> list[bytes]:
    """Every instance of a real subject, in the order of its instance numbers."""
    with tarfile.open(sample_data / "cmr" / subject / "dicom.tar.xz") as archive:
        opened = (archive.extractfile(member) for member in archive if member.isfile())
        files = [file.read() for file in opened if file is not None]
    return sorted(files, key=lambda file: int(header_of(file).InstanceNumber))


def header_of(file: bytes) -> Dataset:
    """Its header."""
    return dcmread(io.BytesIO(file), stop_before_pixels=True)


def stack_of(files: Iterable[bytes]) -> CineStack:
    """The decoded stack of some instances."""
    return decode_cmr([io.BytesIO(file) for file in files])


@pytest.fixture(scope="module", params=list(LVEF_PERCENT))
def subject(request: pytest.FixtureRequest) -> str:
    """Name of a real subject."""
    return str(request.param)


@pytest.fixture(scope="module")
def prediction(subject: str, sample_data: Path) -> Prediction:
    """What the released engine says of a real stack."""
    stack = stack_of(instances_of(subject, sample_data))
    predictor = load_predictor(FOLDER)
    found = predictor.predict([prepare(stack, predictor.spec)])
    predictor.close()
    return found


def test_a_real_patient_is_classed_or_left_with_a_reason(prediction: Prediction) -> None:
    """Never both and never nothing: a class that is right (LVEF <= 40 %), or what was found and what was expected."""
    if prediction.abstention is None:
        (risk,) = prediction.probabilities
        assert risk.interval.low <= risk.probability <= risk.interval.high
        assert risk.decision in {True, None}, (
            f"classed above {THRESHOLD_PERCENT} % at probability {risk.probability:.2f}"
        )
    else:
        assert not prediction.probabilities
        assert prediction.abstention.code in {RefusalCode.OUT_OF_DISTRIBUTION, RefusalCode.RECONSTRUCTION_POOR}
        assert re.search(r"\d", prediction.abstention.reason)


def test_what_the_released_bundle_says_is_known(subject: str, prediction: Prediction) -> None:
    """Each real subject has the outcome of the table; another is a change that someone must have meant."""
    found = prediction.probabilities[0].decision if prediction.abstention is None else prediction.abstention.code
    assert found == OUTCOMES[subject]


def test_the_reconstruction_of_a_real_patient_is_reported(prediction: Prediction) -> None:
    """How well the field rebuilt the images stands in what is said, in dB, for both frames."""
    calibration = load_bundle(FOLDER).manifest.postprocess
    assert isinstance(calibration, CmrPostprocess)
    assert calibration.reconstruction_gate is not None
    said = " ".join([*prediction.notes, *([prediction.abstention.reason] if prediction.abstention else [])])
    found = [float(value) for value in re.findall(r"(\d+\.\d) dB", said)]
    assert len(found) >= 2, said


def refusal_of(files: Iterable[bytes]) -> InputRefused:
    """How a study is refused, at decoding or at preparation."""
    with pytest.raises(InputRefused) as caught:
        prepare(stack_of(files), load_bundle(FOLDER).manifest.preprocess)
    return caught.value


def test_localizers_are_refused_as_no_cine(sample_data: Path) -> None:
    """Scouts of a real patient: the reason counts them and says what is expected."""
    files = [path.read_bytes() for path in sorted((sample_data / "cmr/SCD0000101_localizers").rglob("*.dcm"))]
    refusal = refusal_of(files)
    assert refusal.code is RefusalCode.NO_SHORT_AXIS_CINE
    assert refusal.reason == (
        f"{len(files)} heart images, but no gated cine stack: scouts, maps or stills; a short-axis cine is expected"
    )


def test_two_phases_a_slice_are_refused_as_no_cine(sample_data: Path) -> None:
    """End-diastole and end-systole alone of a real patient: the reason says how many phases were found and expected."""
    files = instances_of("SCD0000101_SC-HF-I-1", sample_data)
    refusal = refusal_of(file for number, file in enumerate(files) if number % 20 in {7, 19})
    assert refusal.code is RefusalCode.TOO_FEW_PHASES
    assert refusal.reason == "at most 2 phases a slice; a cine of at least 8 phases is expected"


def test_one_cine_slice_is_refused_as_long_axis(sample_data: Path) -> None:
    """A single cine slice, as long-axis series are: the reason asks for a stack."""
    refusal = refusal_of(instances_of("SCD0000101_SC-HF-I-1", sample_data)[100:120])
    assert refusal.code is RefusalCode.NO_SHORT_AXIS_CINE
    assert refusal.reason == ("single cine slices only (long axis?); a stack of parallel short-axis slices is expected")


def test_a_stack_along_the_heart_is_refused(sample_data: Path) -> None:
    """A real stack said to lie along the long axis: the reason gives the angle found and expected."""
    stack = stack_of(instances_of("SCD0000101_SC-HF-I-1", sample_data))
    row, column = np.array(stack.orientation[:3]), np.array(stack.orientation[3:])
    a, b, c, d, e, f = (float(cosine) for cosine in (*np.cross(row, column), *column))
    with pytest.raises(InputRefused) as caught:
        prepare(replace(stack, orientation=(a, b, c, d, e, f)), load_bundle(FOLDER).manifest.preprocess)
    assert caught.value.code is RefusalCode.NO_SHORT_AXIS_CINE
    assert re.fullmatch(
        r"the slices lie \d+ degrees from the usual long axis of a heart \(long axis\?\); a stack across the heart is "
        r"expected, from 30 degrees on",
        caught.value.reason,
    )
