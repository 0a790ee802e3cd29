"""A bundle is served only where its golden records come out as stored, and only by a runtime that agrees."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import selftest
from engines.bundle.golden import GoldenCase
from engines.bundle.reader import Bundle, load_bundle
from engines.bundle.writer import write_bundle
from engines.errors import BundleError, SelfTestFailed
from engines.predictors.distance import EmbeddingStatistics
from engines.records import LEAD_NAMES, Modality
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.open import Opener
from engines.runtime.openvino_runner import OpenVinoRunner
from engines.runtime.runner import FP32_INT8
from engines.selftest import check_preprocessing, check_runner, compare, open_verified_runner
from tests.doubles import bundles, runners


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny ECG bundle, whose golden records preprocessing accepts."""
    return load_bundle(bundles.write_tiny(tmp_path_factory.mktemp("bundles") / "ecg"))


def _distorted(distortion: runners.Distortion) -> Opener:
    return lambda bundle: runners.DistortedRunner(bundle, distortion)


def _rewritten(folder: Path, bundle: Bundle, case: GoldenCase) -> Bundle:
    path = write_bundle(
        folder / "changed",
        bundles.draft(Modality.ECG),
        onnx_bytes=bundle.graph(),
        golden=[bundle.golden()[0], case],
        embedding=EmbeddingStatistics(mean=np.zeros(4), precision=np.eye(4)),
    )
    return load_bundle(path)


@pytest.mark.parametrize("opener", [OnnxRunner, OpenVinoRunner])
def test_sound_runtime_agrees(opener: Opener, bundle: Bundle) -> None:
    """Both runtimes reproduce the golden outputs through this installation's preprocessing."""
    agreement = check_runner(bundle, opener(bundle), check_preprocessing(bundle))
    assert agreement.differences.keys() == {"estimates", "disease_logits", "embedding"}
    assert max(agreement.differences.values()) < 1e-3


def test_first_preference_serves(bundle: Bundle) -> None:
    """Where all agree, the first runtime of the preference is opened and none is rejected."""
    for preference in (("openvino", "onnxruntime"), ("onnxruntime", "openvino")):
        runner, rejected = open_verified_runner(bundle, preference)
        assert runner.identity.runtime == preference[0]
        assert rejected == ()


@pytest.mark.parametrize("distortion", runners.DISTORTIONS)
def test_broken_runtime_is_rejected_with_its_reason(distortion: runners.Distortion, bundle: Bundle) -> None:
    """A runtime with wrong, swapped, missing or misshapen outputs, or NaN, is passed over, and the reason is kept."""
    runtimes = {"openvino": _distorted(distortion), "onnxruntime": OnnxRunner}
    runner, (reason,) = open_verified_runner(bundle, runtimes=runtimes)
    assert runner.identity.runtime == "onnxruntime"
    assert reason.startswith("openvino: ")
    assert any(name in reason for name in ("estimates", "disease_logits", "embedding"))


def test_disagreement_is_named_exactly(bundle: Bundle) -> None:
    """The reason of a rejected runtime gives record, output, place, both values and the tolerance."""
    runtimes = {"openvino": _distorted(runners.wrong_numbers), "onnxruntime": OnnxRunner}
    _, (reason,) = open_verified_runner(bundle, runtimes=runtimes)
    number = r"-?[0-9.e-]+"
    spot = rf"at \[0, \d\] \(stored {number}, found {number}\)"
    assert re.search(rf"golden record 0: disease_logits differs by 0\.0\d+ {spot}; tolerance 0\.001$", reason)


def test_truly_different_graph_rejects_openvino(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """When OpenVINO computes something else than ONNX Runtime, OpenVINO is rejected and ONNX Runtime serves."""
    other = bundles.graph(*bundles.signature(Modality.ECG), bias={"estimates": 0.6})
    original = Bundle.graph

    def openvino(opened: Bundle) -> OpenVinoRunner:
        with monkeypatch.context() as patch:
            patch.setattr(Bundle, "graph", lambda _self: other)
            return OpenVinoRunner(opened)

    runner, (reason,) = open_verified_runner(bundle, runtimes={"openvino": openvino, "onnxruntime": OnnxRunner})
    assert Bundle.graph is original
    assert runner.identity.runtime == "onnxruntime"
    assert "estimates differs by 0.1" in reason


def test_products_in_8_bits_keep_to_the_tolerance_of_fp32(bundle: Bundle) -> None:
    """Off by more than the manifest allows is wrong, whatever a parity gate of fewer bits would let pass."""

    def eight_bits(of: Bundle) -> runners.DistortedRunner:
        return runners.DistortedRunner(of, runners.wrong_numbers, replace(runners.IDENTITY, precision=FP32_INT8))

    def half(of: Bundle) -> runners.DistortedRunner:
        return runners.DistortedRunner(of, runners.wrong_numbers, replace(runners.IDENTITY, precision="fp16"))

    served, (reason,) = open_verified_runner(bundle, runtimes={"openvino": eight_bits, "onnxruntime": OnnxRunner})
    assert served.identity.runtime == "onnxruntime"
    assert "tolerance" in reason
    assert open_verified_runner(bundle, runtimes={"openvino": half, "onnxruntime": OnnxRunner})[1] == ()


def test_rejected_runner_is_closed(bundle: Bundle) -> None:
    """The memory of a rejected runtime is given back."""
    opened: list[runners.DistortedRunner] = []

    def broken(of: Bundle) -> runners.DistortedRunner:
        opened.append(runners.DistortedRunner(of, runners.wrong_numbers))
        return opened[0]

    open_verified_runner(bundle, runtimes={"openvino": broken, "onnxruntime": OnnxRunner})
    with pytest.raises(ValueError, match="closed"):
        opened[0].run(bundle.golden()[0].prepared)


def test_no_runtime_agrees(bundle: Bundle) -> None:
    """Where no runtime agrees nothing is served, and every reason is in the message."""
    broken = _distorted(runners.wrong_numbers)
    with pytest.raises(SelfTestFailed, match=r"no runtime serves tiny-ecg: openvino: .*; onnxruntime: "):
        open_verified_runner(bundle, runtimes={"openvino": broken, "onnxruntime": broken})


def test_runtime_that_cannot_open_is_passed_over(bundle: Bundle) -> None:
    """A runtime that is not installed is rejected with that reason."""

    def absent(_bundle: Bundle) -> OnnxRunner:
        raise BundleError("OpenVINO cannot be imported")

    runner, rejected = open_verified_runner(bundle, runtimes={"openvino": absent, "onnxruntime": OnnxRunner})
    assert runner.identity.runtime == "onnxruntime"
    assert rejected == ("openvino: OpenVINO cannot be imported",)


def test_unknown_runtime_is_the_callers_mistake(bundle: Bundle) -> None:
    """A name that is no runtime is refused, and the known ones are listed."""
    with pytest.raises(ValueError, match=r"unknown runtimes \['tensorflow'\]; expected some of"):
        open_verified_runner(bundle, ("tensorflow",))


def test_changed_preprocessing_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """If this installation prepares a golden record differently, no runtime is even tried."""
    case = bundle.golden()[1]
    shifted = {"ecg": case.prepared["ecg"] + np.float32(0.001)}
    tried: list[str] = []
    with pytest.raises(SelfTestFailed, match=r"golden record 1: ecg differs by 0\.00"):
        open_verified_runner(
            _rewritten(tmp_path, bundle, replace(case, prepared=shifted)),
            runtimes={"openvino": lambda _: tried.append("openvino"), "onnxruntime": OnnxRunner},
        )
    assert tried == []


def test_golden_record_that_is_refused_is_a_failure(bundle: Bundle, tmp_path: Path) -> None:
    """A golden record that preprocessing no longer accepts fails the self-test, with preprocessing's reason."""
    case = bundle.golden()[0]
    signal = case.record.signal_mv.copy()
    signal[LEAD_NAMES.index("V3")] = 0.0
    flat = replace(case, record=replace(case.record, signal_mv=signal))
    with pytest.raises(SelfTestFailed, match="golden record 1 of tiny-ecg is refused by preprocessing: lead_off"):
        check_preprocessing(_rewritten(tmp_path, bundle, flat))


def test_runner_is_fed_by_the_serving_path(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner is given what this installation prepared, not what the bundle stored."""
    prepared = check_preprocessing(bundle)
    fed: list[object] = []
    double = runners.ScriptedRunner(bundle.manifest, lambda inputs: fed.append(inputs["ecg"]) or {})
    monkeypatch.setattr(selftest, "compare", lambda *_: {})
    monkeypatch.setattr("engines.runtime.runner.check_outputs", lambda *_: None)
    check_runner(bundle, double, prepared)
    assert [array is own.arrays["ecg"] for array, own in zip(fed, prepared, strict=True)] == [True, True]


@given(difference=st.floats(-10, 10), tolerance=st.floats(0, 10))
def test_compare_accepts_up_to_the_tolerance(difference: float, tolerance: float) -> None:
    """A difference passes exactly when its size is at most the tolerance."""
    expected = {"ef": np.zeros((1, 1))}
    found = {"ef": np.full((1, 1), difference)}
    if abs(difference) <= tolerance:
        assert compare(found, expected, {"ef": tolerance}, "here") == {"ef": abs(difference)}
    else:
        with pytest.raises(SelfTestFailed, match="here: ef differs by"):
            compare(found, expected, {"ef": tolerance}, "here")


def test_compare_finds_the_largest_difference_of_bytes() -> None:
    """Differences of unsigned bytes do not wrap around."""
    expected, found = {"clip": np.array([3, 250], np.uint8)}, {"clip": np.array([5, 249], np.uint8)}
    assert compare(found, expected, {"clip": 2.0}, "here") == {"clip": 2.0}
    with pytest.raises(SelfTestFailed, match=r"differs by 2 at \[0\] \(stored 3, found 5\); tolerance 1"):
        compare(found, expected, {"clip": 1.0}, "here")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_compare_never_accepts_a_value_that_is_not_finite(value: float) -> None:
    """A NaN or an infinity differs by more than any tolerance."""
    with pytest.raises(SelfTestFailed, match="differs by inf"):
        compare({"ef": np.array([value])}, {"ef": np.array([0.0])}, {"ef": 1e9}, "here")


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"ef": np.zeros(2, np.float32), "more": np.zeros(1)},
        {"ef": np.zeros(2, np.float64)},
        {"ef": np.zeros((2, 1), np.float32)},
    ],
)
def test_compare_needs_equal_names_dtypes_and_shapes(found: dict[str, np.ndarray]) -> None:
    """Arrays with other names, dtypes or shapes are never compared by broadcasting."""
    with pytest.raises(SelfTestFailed):
        compare(found, {"ef": np.zeros(2, np.float32)}, {"ef": 1.0}, "here")
