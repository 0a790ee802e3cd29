"""Two real patients with a low ejection fraction through the released engine: a class with its probability, or a reason."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

from engines.bundle.manifest import CmrPostprocess
from engines.bundle.reader import RELEASED, load_bundle
from engines.decode.cmr import decode_cmr
from engines.errors import RefusalCode
from engines.predictions import Prediction
from engines.predictors.base import load_predictor
from engines.preprocess.registry import prepare

FOLDER = RELEASED / "cmr_risk"
THRESHOLD_PERCENT = 40
LVEF_PERCENT = {"SCD0000101_SC-HF-I-1": 26, "SCD0000301_SC-HF-I-4": 22}
"""By the contours of the experts."""


@pytest.fixture(scope="module", params=list(LVEF_PERCENT))
def prediction(request: pytest.FixtureRequest, sample_data: Path) -> Prediction:
    """What the released engine says of a real stack."""
    with tarfile.open(sample_data / "cmr" / str(request.param) / "dicom.tar.xz") as archive:
        opened = (archive.extractfile(member) for member in archive if member.isfile())
        stack = decode_cmr([io.BytesIO(file.read()) for file in opened if file is not None])
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


def test_the_reconstruction_of_a_real_patient_is_reported(prediction: Prediction) -> None:
    """How well the field rebuilt the images stands in what is said, in dB, for both frames."""
    calibration = load_bundle(FOLDER).manifest.postprocess
    assert isinstance(calibration, CmrPostprocess)
    assert calibration.reconstruction_gate is not None
    said = " ".join([*prediction.notes, *([prediction.abstention.reason] if prediction.abstention else [])])
    found = [float(value) for value in re.findall(r"(\d+\.\d) dB", said)]
    assert len(found) >= 2, said
