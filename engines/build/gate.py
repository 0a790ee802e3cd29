"""The parity gate: a plan serves only if it answers as FP32 does, on the golden records and on inputs nobody has seen.

A compiler may report success and compute something else, above all in half precision. So a runner is compared with the
bundle's golden outputs and with a reference runtime in FP32, in batches of several sizes, and what was found is a
``Verdict`` that ``engines.build.cache`` keeps beside the plan. How far an answer may lie is in ``engines.build.limits``.

Called by ``purkinje-engine verify`` and by whoever opens a plan for serving.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, model_validator

from engines.build.limits import Check, Rows, checks
from engines.build.verify import random_inputs
from engines.bundle.golden import GoldenCase
from engines.bundle.manifest import Manifest
from engines.bundle.parts import Sha256
from engines.bundle.reader import Bundle
from engines.errors import InferenceError
from engines.runtime.checks import check_outputs
from engines.runtime.runner import TO_TOLERANCE, Arrays, Runner

COUNT_MIN = 200
"""Fewer inputs give no verdict."""
_BATCHES = (1, 2, 4, 8)
"""Inputs in one run, in turns: a kernel chosen for one batch size may be wrong where another is right."""

Against = Literal["golden records", "reference"]
Pairs = Iterable[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]
"""Inputs, and the outputs that are expected."""


class Gpu(Protocol):
    """What a verdict holds for; ``engines.runtime.cuda.Device`` is one."""

    @property
    def name(self) -> str:
        """Of the device."""

    @property
    def driver_version(self) -> str:
        """Of the installed driver."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Difference(_Part):
    """One measured value and its limit."""

    against: Against
    output: str
    measure: str
    value: float
    limit: float
    at_least: bool
    holds: bool


class Verdict(_Part):
    """What the gate found; it holds for one plan on one kind of device with one driver.

    Args:
        passed: whether it may serve.
        reasons: why not; empty where it may.
        golden_records, inputs: how many of each were compared.
        device, driver_version: where it ran; the driver is empty where no GPU was stated.
    """

    schema_version: Literal[1] = 1
    passed: bool
    reasons: tuple[str, ...]
    bundle: str
    graph_sha256: Sha256
    plan_sha256: Sha256 | None
    runtime: str
    version: str
    precision: str
    device: str
    driver_version: str
    golden_records: int
    inputs: int
    seed: int
    differences: tuple[Difference, ...]
    reference_runtime: str
    reference_version: str
    when_utc: AwareDatetime

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if self.passed == bool(self.reasons):
            msg = f"passed is {self.passed} with reasons {self.reasons}; expected reasons where it did not, and only there"
            raise ValueError(msg)
        return self

    def holds_for(self, device: Gpu) -> bool:
        """Whether it was found on this kind of device with this driver."""
        return (self.device, self.driver_version) == (device.name, device.driver_version)


def gate(  # noqa: PLR0913 - two runners and what they share
    bundle: Bundle,
    runner: Runner,
    reference: Runner,
    *,
    count: int = COUNT_MIN,
    seed: int = 0,
    device: Gpu | None = None,
) -> Verdict:
    """Compare a runner with the golden outputs of its bundle and with a reference.

    Args:
        bundle: verified.
        runner: of this bundle; the bare runtime, which neither batches nor falls back.
        reference: of this bundle, in FP32.
        count: random inputs, at least ``COUNT_MIN``.
        seed: of the inputs.
        device: the GPU the runner computes on; None for a CPU.

    Returns:
        The verdict. Outputs that are missing, not finite or of a wrong shape are a reason not to pass.

    Raises:
        ValueError: ``count`` is too small, or the reference does not compute in FP32.
        InferenceError: a runtime failed (out of memory, device lost): nothing is known of its numbers.
        SelfTestFailed: the bundle has no golden vectors.
    """
    _require(count, reference)
    cases = bundle.golden()
    stored: Pairs = ((case.prepared, case.outputs) for case in cases)
    sources: Mapping[Against, Pairs] = {"golden records": stored, "reference": _answered(reference, cases, count, seed)}
    compared: list[Difference] = []
    unfit = ""
    for against, pairs in sources.items():
        try:
            compared += _differences(bundle.manifest, runner, against, pairs)
        except _Unfit as error:
            unfit = f"against the {against}: {error}"
            break  # what gives no numbers once is not asked again
    reasons = (*(_reason(difference) for difference in compared if not difference.holds), *([unfit] if unfit else ()))
    identity = runner.identity
    return Verdict(
        passed=not reasons,
        reasons=reasons,
        bundle=f"{bundle.manifest.name} {bundle.manifest.version}",
        graph_sha256=bundle.weights_sha256,
        plan_sha256=identity.plan_sha256,
        runtime=identity.runtime,
        version=identity.version,
        precision=identity.precision,
        device=device.name if device else identity.device,
        driver_version=device.driver_version if device else "",
        golden_records=len(cases),
        inputs=count,
        seed=seed,
        differences=tuple(compared),
        reference_runtime=reference.identity.runtime,
        reference_version=reference.identity.version,
        when_utc=datetime.now(UTC),
    )


class _Unfit(Exception):
    """Outputs that cannot be compared."""


def _require(count: int, reference: Runner) -> None:
    if count < COUNT_MIN:
        msg = f"{count} inputs; a verdict needs at least {COUNT_MIN}"
        raise ValueError(msg)
    if reference.identity.precision not in TO_TOLERANCE:
        msg = f"the reference computes in {reference.identity.precision}; expected fp32"
        raise ValueError(msg)


def _answered(reference: Runner, cases: Sequence[GoldenCase], count: int, seed: int) -> Pairs:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        inputs = random_inputs(cases, rng)
        yield inputs, reference.run(inputs)


def _differences(manifest: Manifest, runner: Runner, against: Against, pairs: Pairs) -> list[Difference]:
    found: dict[str, list[Rows]] = {tensor.name: [] for tensor in manifest.outputs}
    expected: dict[str, list[Rows]] = {tensor.name: [] for tensor in manifest.outputs}
    for inputs, wanted in _batches(pairs):
        outputs = _outputs(manifest, runner, inputs)
        for name, rows in found.items():
            rows.append(_rows(outputs[name]))
            expected[name].append(_rows(wanted[name]))
    joined = {name: (np.concatenate(found[name]), np.concatenate(expected[name])) for name in found}
    return [_measured(check, against, *joined[check.output]) for check in checks(manifest, runner.identity.precision)]


def _batches(pairs: Pairs) -> Iterator[tuple[Arrays, Arrays]]:
    sizes, remaining = cycle(_BATCHES), iter(pairs)
    while group := tuple(islice(remaining, next(sizes))):
        yield _joined([inputs for inputs, _ in group]), _joined([outputs for _, outputs in group])


def _joined(parts: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _outputs(manifest: Manifest, runner: Runner, inputs: Arrays) -> Arrays:
    try:
        outputs = runner.run(inputs)
        check_outputs(manifest.outputs, outputs, len(next(iter(inputs.values()))))
    except InferenceError as error:
        if error.__cause__ is not None or type(error) is not InferenceError:  # the runtime failed, not its numbers
            raise
        raise _Unfit(str(error)) from error
    return outputs


def _rows(array: NDArray[Any]) -> Rows:
    return array.reshape(len(array), -1).astype(np.float64)


def _measured(check: Check, against: Against, found: Rows, expected: Rows) -> Difference:
    value = check.value(found, expected)
    return Difference(
        against=against,
        output=check.output,
        measure=check.measure,
        value=value,
        limit=check.limit,
        at_least=check.at_least,
        holds=check.holds(value),
    )


def _reason(difference: Difference) -> str:
    bound = "at least" if difference.at_least else "at most"
    return (
        f"{difference.output}: {difference.measure} is {difference.value:.4g} against the {difference.against}; "
        f"expected {bound} {difference.limit:g}"
    )
