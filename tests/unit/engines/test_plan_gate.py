"""The parity gate lets a right plan pass and gives the reason why a wrong one must not serve."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pydantic import ValidationError

from engines import cli
from engines.build import limits
from engines.build.cache import PlanCache
from engines.build.gate import Verdict, gate
from engines.build.limits import checks
from engines.build.plan import PlanRecipe, write_plan
from engines.bundle.calibration import ProbabilityTable
from engines.bundle.parts import TensorSpec
from engines.bundle.reader import Bundle, load_bundle
from engines.errors import DeviceLost, InferenceError, OutOfMemory, PlanRefused
from engines.records import Modality
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.runner import Arrays, RuntimeIdentity
from tests.doubles import bundles
from tests.doubles import runners as d

FP16 = RuntimeIdentity(runtime="tensorrt", version="10.15", precision="fp16", device="NVIDIA H100 sm_90")
Distortion = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Gpu:
    """A device as the verdict knows it."""

    name: str = "NVIDIA H100"
    driver_version: str = "580.1"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Modality, Bundle]:
    """A tiny bundle of each modality."""
    folder = tmp_path_factory.mktemp("bundles")
    return {one: load_bundle(bundles.write_tiny(folder / one.value, one)) for one in Modality}


@pytest.fixture
def ecg(opened: Mapping[Modality, Bundle]) -> Bundle:
    """The tiny ECG bundle."""
    return opened[Modality.ECG]


def _gated(bundle: Bundle, distortion: Distortion, identity: RuntimeIdentity = FP16, **options: Any) -> Verdict:
    return gate(bundle, d.DistortedRunner(bundle, distortion, identity), OnnxRunner(bundle), **options)


def _changed(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Distortion:
    return lambda outputs: {**outputs, name: change(outputs[name]).astype(np.float32)}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("modality", list(Modality))
def test_right_runtime_passes(opened: Mapping[Modality, Bundle], modality: Modality, precision: str) -> None:
    """What answers as FP32 does passes in every precision, and the verdict says what was compared."""
    bundle = opened[modality]
    verdict = _gated(bundle, d.unaltered, replace(FP16, precision=precision), seed=3)
    assert verdict.passed
    assert (verdict.golden_records, verdict.inputs, verdict.seed) == (2, 200, 3)
    assert (verdict.reference_runtime, verdict.precision) == ("onnxruntime", precision)
    assert {one.output for one in verdict.differences} == {tensor.name for tensor in bundle.manifest.outputs}
    assert {one.against for one in verdict.differences} == {"golden records", "reference"}


@pytest.mark.parametrize("modality", list(Modality))
def test_slightly_wrong_numbers_pass(opened: Mapping[Modality, Bundle], modality: Modality) -> None:
    """Numbers rounded to half precision pass in reduced precision; the differences are in the verdict."""
    verdict = _gated(opened[modality], d.slightly_wrong)
    assert verdict.passed, verdict.reasons
    assert any(one.value > 0 for one in verdict.differences if "largest" in one.measure)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("distortion", "reason"),
    [
        (d.not_a_number, r"estimates holds 1 values that are not finite"),
        (d.wrong_shape, r"estimates has shape \(3,\), expected \(1, 3\)"),
        (d.wrong_dtype, r"estimates is float16, expected float32"),
        (d.missing_output, r"found \['disease_logits', 'estimates'\], expected"),
        (d.swapped_outputs, r"estimates has shape \(1, 4\), expected \(1, 3\)"),
        (d.swapped_columns, r"estimates: .*difference.* is .* against the golden records; expected at most"),
    ],
)
def test_broken_outputs_fail_with_a_plain_reason(
    ecg: Bundle, distortion: Distortion, reason: str, precision: str
) -> None:
    """NaN, wrong shapes and dtypes, missing and swapped outputs fail in every precision; the reason names the output."""
    verdict = _gated(ecg, distortion, replace(FP16, precision=precision))
    assert not verdict.passed
    assert any(re.search(reason, one) for one in verdict.reasons), verdict.reasons


@pytest.mark.parametrize("modality", list(Modality))
def test_wrong_numbers_fail_in_fp32(opened: Mapping[Modality, Bundle], modality: Modality) -> None:
    """In FP32 the tolerances of the manifest hold for every output."""
    verdict = _gated(opened[modality], d.wrong_numbers, d.IDENTITY)
    names = {tensor.name for tensor in opened[modality].manifest.outputs}
    assert {reason.split(":")[0] for reason in verdict.reasons} == names
    assert all("expected at most 0.001" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("modality", "distortion", "reason"),
    [
        (Modality.ECHO, _changed("ef", lambda ef: ef + 0.11), "ef: mean difference, lvef in % is 0.11"),
        (Modality.ECG, _changed("estimates", lambda v: v + np.array([0, 0.11, 0])), "mean difference, rvef in %"),
        (
            Modality.ECG,
            _changed("estimates", lambda v: v + np.array([0, 0, 0.011])),
            "mean difference, cardiac_output in l/min",
        ),
        (Modality.ECG, _changed("disease_logits", lambda v: v + 0.03), "as a share of 0.02 + 0.005 x |value| is"),
        (Modality.CMR, _changed("logit", lambda v: v + 0.03), "as a share of 0.02 + 0.005 x |value| is"),
        (Modality.CMR, _changed("embedding", lambda v: v[:, ::-1]), "embedding: smallest cosine is"),
        (Modality.ECG, _changed("embedding", lambda v: v * 1.06), "embedding: largest distance by length is 0.06"),
        (Modality.ECHO, d.scaled, "embedding: largest distance by length is 0.2"),
    ],
)
def test_each_limit_of_reduced_precision_is_seen(
    opened: Mapping[Modality, Bundle], modality: Modality, distortion: Distortion, reason: str
) -> None:
    """Each output that is off by a little more than its limit fails, and the reason has the value."""
    verdict = _gated(opened[modality], distortion)
    assert any(reason in one for one in verdict.reasons), verdict.reasons


def test_limits_of_reduced_precision_are_not_those_of_fp32(ecg: Bundle) -> None:
    """The same small error passes in half precision and fails in FP32."""
    distortion = _changed("estimates", lambda v: v + 0.005)
    assert _gated(ecg, distortion).passed
    assert not _gated(ecg, distortion, replace(FP16, precision="fp32")).passed


# wrong somewhere only


def _once(change: Callable[[NDArray[Any]], NDArray[Any]], name: str, at: int) -> Distortion:
    """Change one answer, the one of call ``at``."""
    calls = 0

    def distortion(outputs: Arrays) -> Arrays:
        nonlocal calls
        calls += 1
        return {**outputs, name: change(outputs[name].copy())} if calls == at else outputs

    return distortion


def _first_row(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(rows: NDArray[Any]) -> NDArray[Any]:
        rows[0] += value
        return rows

    return change


def test_one_large_difference_fails(opened: Mapping[Modality, Bundle]) -> None:
    """One clip of hundreds that is off by more than the largest difference fails, though the mean does not see it."""
    verdict = _gated(opened[Modality.ECHO], _once(_first_row(0.6), "ef", 20))
    (reason,) = verdict.reasons
    assert reason.startswith("ef: largest difference, lvef in % is 0.6 against the reference")


def test_one_nan_late_fails(opened: Mapping[Modality, Bundle]) -> None:
    """One NaN among hundreds of answers fails and ends the comparison."""
    verdict = _gated(opened[Modality.ECHO], _once(_first_row(np.nan), "ef", 30))
    (reason,) = verdict.reasons
    assert reason.startswith("against the reference: outputs do not fit the manifest: ef holds 1 values that are not")


def test_wrong_only_in_batches_fails(ecg: Bundle) -> None:
    """A kernel that is right for one record and mixes the rows of a batch fails."""
    verdict = _gated(ecg, lambda outputs: {name: rows[::-1].copy() for name, rows in outputs.items()})
    assert not verdict.passed


def test_batches_of_several_sizes_are_run(ecg: Bundle) -> None:
    """The runner is asked in batches of 1, 2, 4 and 8; all inputs are seen, each once."""
    inner = OnnxRunner(ecg)
    double = d.ScriptedRunner(ecg.manifest, inner.run)
    assert gate(ecg, double, OnnxRunner(ecg)).passed
    assert set(double.batches) >= {1, 2, 4, 8}
    assert sum(double.batches) == 2 + 200


# classes


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Bundle]:
    """Write a tiny echo bundle whose ejection fractions lie near a number."""
    graph = bundles.graph

    def write(ef: float) -> Bundle:
        monkeypatch.setattr(bundles, "graph", lambda inputs, outputs: graph(inputs, outputs, bias={"ef": ef}))
        return load_bundle(bundles.write_tiny(tmp_path / f"near_{ef:g}", Modality.ECHO))

    return write


def test_one_flip_across_40_fails(near: Callable[[float], Bundle]) -> None:
    """One ejection fraction that moves over 40 % fails although every difference is within its limit."""
    bundle = near(40.0)
    lowest = min(float(case.outputs["ef"].min()) for case in bundle.golden())
    bundle = near(40.0 + 40.3 - lowest)
    verdict = _gated(bundle, _once(lambda rows: np.where(rows == rows.min(), np.float32(39.95), rows), "ef", 20))
    (reason,) = verdict.reasons
    assert reason == "ef: flips across 40 and 50, lvef in % is 1 against the reference; expected at most 0"


@pytest.mark.parametrize(
    ("expected", "found", "flips"),
    [
        ([40.05], [39.97], 0),  # a tie: FP32 itself is not clear
        ([40.11], [39.99], 1),
        ([39.89], [40.0], 1),
        ([39.89], [39.99], 0),
        ([50.2, 49.8, 40.3], [49.9, 50.1, 39.9], 3),
        ([60.0, 30.0], [59.6, 30.4], 0),
        ([50.0], [49.6], 0),
    ],
)
def test_flips_and_ties(expected: list[float], found: list[float], flips: int) -> None:
    """A class counts as changed where FP32 is more than 0.1 points from the cut, however small the difference."""
    assert limits.flips(np.array(found), np.array(expected)) == flips


def _table() -> ProbabilityTable:
    return ProbabilityTable(
        condition="lvef_at_most_40",
        threshold_probability=0.5,
        coverage_percent=100.0,
        logits=(-1.0, 0.0, 0.01, 1.0),
        low=(0.0, 0.4, 0.6, 0.9),
        high=(0.1, 0.45, 0.65, 1.0),
    )


@pytest.mark.parametrize(
    ("expected", "found", "changed"),
    [(-0.01, 0.009, 1), (0.0, 0.0045, 0), (0.003, 0.009, 0), (0.02, 0.001, 1), (0.9, 0.5, 0)],
)
def test_calls_and_ties(expected: float, found: float, changed: int) -> None:
    """A call that changes counts where FP32 makes the same call a little to either side."""
    rows = (np.array([[found]]), np.array([[expected]]))
    assert limits._changed_calls([_table()], *rows) == changed


def test_risk_is_compared_after_calibration(opened: Mapping[Modality, Bundle]) -> None:
    """A small difference of the logit on a steep part of the calibration is a large one of the risk."""
    manifest = opened[Modality.CMR].manifest
    steep = manifest.model_copy(update={"postprocess": manifest.postprocess.model_copy(update={"risk": _table()})})
    (risk,) = [check for check in checks(steep, "fp16") if "risk" in check.measure]
    expected = np.array([[0.0], [0.5]])
    assert not risk.holds(risk.value(expected + 0.002, expected))
    assert risk.holds(risk.value(expected + 0.0001, expected))


def test_cosine_and_distance_of_nothing() -> None:
    """Rows of zeros are alike and nothing else is like them."""
    zeros, ones = np.zeros((2, 3)), np.ones((2, 3))
    assert (limits.smallest_cosine(zeros, zeros), limits.largest_distance(zeros, zeros)) == (1.0, 0.0)
    assert (limits.smallest_cosine(ones, zeros), limits.smallest_cosine(zeros, ones)) == (0.0, 0.0)
    assert (limits.largest_distance(ones, zeros), limits.largest_distance(zeros, ones)) == (np.inf, 1.0)
    assert limits.smallest_cosine(-ones, ones) == pytest.approx(-1.0)


def test_every_output_of_the_manifest_has_a_limit(opened: Mapping[Modality, Bundle]) -> None:
    """No output goes unchecked, also one whose name means nothing to us; an unknown unit has a limit from its interval."""
    for bundle in opened.values():
        tensors = (*bundle.manifest.outputs, TensorSpec(name="new", dtype="float32", shape=(-1, 2, 3)))
        manifest = bundle.manifest.model_copy(update={"outputs": tensors})
        assert {check.output for check in checks(manifest, "bf16")} == {tensor.name for tensor in tensors}
    litres = bundles.conformal("volume", unit="l")
    found = [check.limit for check in limits._estimate("estimates", 0, litres)]
    assert found == [pytest.approx(0.25), pytest.approx(0.05)]


# no verdict


def test_too_few_inputs_give_no_verdict(ecg: Bundle) -> None:
    """Fewer than 200 inputs, or a reference that does not compute in FP32, are refused."""
    with pytest.raises(ValueError, match="199 inputs; a verdict needs at least 200"):
        _gated(ecg, d.unaltered, count=199)
    half = d.DistortedRunner(ecg, d.unaltered, FP16)
    with pytest.raises(ValueError, match="reference computes in fp16"):
        gate(ecg, OnnxRunner(ecg), half)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error"), InferenceError),
        (RuntimeError("out of memory"), OutOfMemory),
        (DeviceLost("gone"), DeviceLost),
    ],
)
def test_runtime_that_fails_gives_no_verdict(ecg: Bundle, error: Exception, kind: type[InferenceError]) -> None:
    """A runtime that cannot compute now says nothing of its numbers: the error is passed on, nothing is held against it."""

    def failing(_: Mapping[str, NDArray[Any]]) -> Arrays:
        raise error

    with pytest.raises(kind):
        gate(ecg, d.ScriptedRunner(ecg.manifest, failing), OnnxRunner(ecg))


def test_seed_decides_the_inputs(ecg: Bundle) -> None:
    """The same seed gives the same differences, another seed others."""
    one, again, other = (_gated(ecg, d.slightly_wrong, seed=seed).differences for seed in (1, 1, 2))
    assert one == again != other


def test_verdict_names_device_and_plan(ecg: Bundle) -> None:
    """The verdict holds for the device and the driver it was found with, and names the plan."""
    identity = replace(FP16, plan_sha256="ef" * 32)
    verdict = _gated(ecg, d.unaltered, identity, device=Gpu())
    assert (verdict.plan_sha256, verdict.device, verdict.driver_version) == ("ef" * 32, "NVIDIA H100", "580.1")
    assert verdict.holds_for(Gpu())
    assert not verdict.holds_for(Gpu(driver_version="590"))
    assert not _gated(ecg, d.unaltered, identity).holds_for(Gpu())
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_verdict_has_reasons_only_where_it_failed(ecg: Bundle) -> None:
    """A verdict that failed without a reason, or passed with one, cannot be made; infinite values are kept."""
    verdict = _gated(ecg, d.unaltered)
    for wrong in ({"passed": False}, {"reasons": ("why",)}):
        with pytest.raises(ValidationError, match="expected reasons where it did not"):
            Verdict.model_validate({**verdict.model_dump(), **wrong})
    endless = verdict.differences[0].model_copy(update={"value": np.inf})
    kept = verdict.model_copy(update={"differences": (endless,)})
    assert Verdict.model_validate_json(kept.model_dump_json()) == kept


def test_gate_does_not_trust_the_runner_to_check(ecg: Bundle) -> None:
    """A runner that hands out NaN without a check of its own fails as well."""

    class Careless(OnnxRunner):
        """Checks nothing."""

        def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
            return d.not_a_number(super().run(inputs))

    verdict = gate(ecg, Careless(ecg), OnnxRunner(ecg))
    assert not verdict.passed
    assert "not finite" in verdict.reasons[0]


# the command


@pytest.fixture
def plan(ecg: Bundle, tmp_path: Path) -> Path:
    """A plan of the bundle in a folder."""
    recipe = PlanRecipe(
        runtime="tensorrt",
        version="10.15",
        target="sm_90",
        precision="fp16",
        tf32=False,
        batch_minimum=1,
        batch_optimum=1,
        batch_maximum=8,
        graph_sha256=ecg.weights_sha256,
    )
    return write_plan(tmp_path / "plans", recipe, b"a compiled plan")


def _verify(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["verify", *map(str, arguments)])


def _gpu_gives(monkeypatch: pytest.MonkeyPatch, distortion: Distortion) -> None:
    """Put a double in the place of the GPU."""

    def opened(bundle: Bundle, plan: Any) -> Any:
        identity = replace(FP16, plan_sha256=plan.sha256)
        return nullcontext((d.DistortedRunner(bundle, distortion, identity), Gpu()))

    monkeypatch.setattr(cli, "_on_gpu", opened)


def test_command_keeps_the_verdict_of_a_plan(ecg: Bundle, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that passes is shown with its differences and serves from then on."""
    _gpu_gives(monkeypatch, d.slightly_wrong)
    result = _verify(ecg.path, "--plan", plan)
    assert result.exit_code == 0, result.output
    assert "smallest cosine" in result.output
    assert "DISAGREES" not in result.output
    assert "(fp16 on NVIDIA H100): 2 golden records and 200 inputs" in result.output
    recipe = PlanCache(plan.parent).entries()[0].recipe
    assert recipe is not None
    assert PlanCache(plan.parent).to_serve(recipe, Gpu()).content == b"a compiled plan"


def test_command_refuses_a_wrong_plan(ecg: Bundle, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that fails is shown with its reasons, exit code 1, and is refused from then on."""
    _gpu_gives(monkeypatch, d.swapped_columns)
    result = _verify(ecg.path, "--plan", plan)
    assert result.exit_code == 1
    assert "DISAGREES" in result.output
    assert "1 of 1 do not agree with FP32 and must not serve" in result.output
    recipe = PlanCache(plan.parent).entries()[0].recipe
    assert recipe is not None
    with pytest.raises(PlanRefused, match="failed its parity gate on NVIDIA H100"):
        PlanCache(plan.parent).get(recipe)


def test_command_without_a_gpu_says_so(ecg: Bundle, plan: Path) -> None:
    """Where no GPU is, a plan cannot be verified: one sentence, exit code 1, and no verdict."""
    result = _verify(ecg.path, "--plan", plan)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert not plan.with_suffix(".verdict.json").exists()


def test_command_takes_no_fewer_inputs_and_one_bundle(ecg: Bundle, plan: Path) -> None:
    """Fewer than 200 inputs, or a plan without its bundle, are a mistake of the caller."""
    assert _verify(ecg.path, "--count", 199).exit_code == 2
    assert "a plan is of one bundle" in _verify(ecg.path, ecg.path, "--plan", plan).output
