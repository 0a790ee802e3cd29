"""What is promised of every bundle that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.bundle.card import NOT_FOR_CLINICAL_USE, model_card
from engines.bundle.manifest import CARD_NAME
from engines.bundle.reader import Bundle, load_bundle, released_bundle, released_bundles
from engines.errors import BundleError
from engines.predictors.base import load_predictor
from engines.records import Modality
from engines.runtime.open import RUNTIMES
from engines.selftest import open_verified_runner


@pytest.fixture(scope="module", params=list(Modality), ids=[modality.value for modality in Modality])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """The released bundle of a modality."""
    if not any(load_bundle(path).manifest.modality is request.param for path in released_bundles()):
        pytest.skip(f"no bundle is released for {request.param.value}")
    return load_bundle(released_bundle(request.param))


def test_a_runtime_serves_it(bundle: Bundle) -> None:
    """The golden records come out as stored, and the predictor says which bundle it serves."""
    predictor = load_predictor(bundle.path)
    assert predictor.modality is bundle.manifest.modality
    assert predictor.identity.bundle_sha256 == bundle.sha256
    predictor.close()


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_each_runtime_agrees_or_is_rejected_with_a_reason(name: str, bundle: Bundle) -> None:
    """Preferred, a runtime either serves the bundle or stands among the rejected ones with its reason."""
    others = [other for other in RUNTIMES if other != name]
    runner, rejected = open_verified_runner(bundle, (name, *others))
    if runner.identity.runtime == name:
        assert rejected == ()
    else:
        assert rejected[0].startswith(f"{name}: ")
        assert len(rejected[0]) > len(name) + 10
    runner.close()


def test_onnx_runtime_serves_it(bundle: Bundle) -> None:
    """The reference runtime reproduces the golden outputs by itself."""
    runner, rejected = open_verified_runner(bundle, ("onnxruntime",))
    assert rejected == ()
    runner.close()


def test_golden_prediction_answers(bundle: Bundle) -> None:
    """The first golden record gives a prediction with numbers or an explained abstention."""
    from engines.preprocess.registry import prepare

    predictor = load_predictor(bundle.path)
    prediction = predictor.predict([prepare(bundle.golden()[0].record, predictor.spec)])
    predictor.close()
    assert bool(prediction.estimates or prediction.probabilities) != (prediction.abstention is not None)
    assert prediction.out_of_distribution_score is not None


def test_it_says_what_it_is_not_for(bundle: Bundle) -> None:
    """Card and manifest say that it was trained on phantoms and is not for clinical use."""
    card = bundle.read(CARD_NAME).decode()
    for text in (card, bundle.manifest.intended_use):
        assert NOT_FOR_CLINICAL_USE in text.lower()
    assert "phantom" in bundle.manifest.training_data
    assert f"Trained on {bundle.manifest.training_data}" in card


def test_its_card_is_generated(bundle: Bundle) -> None:
    """The card in the bundle is the one its manifest generates: no number was typed."""
    assert bundle.read(CARD_NAME).decode() == model_card(bundle.manifest)


def test_its_metrics_were_measured(bundle: Bundle) -> None:
    """A released bundle states how well it does on held-out cases."""
    assert bundle.manifest.metrics


def test_a_flipped_byte_is_found(bundle: Bundle, tmp_path: Path) -> None:
    """A copy with one byte changed in any file is refused."""
    for name in bundle.manifest.files:
        copy = tmp_path / name
        copy.mkdir()
        for file in bundle.path.iterdir():
            content = bytearray(file.read_bytes())
            if file.name == name:
                content[len(content) // 2] ^= 0xFF
            (copy / file.name).write_bytes(content)
        with pytest.raises(BundleError, match="was altered"):
            load_bundle(copy)
