"""Replays a bundle's golden records through the serving path; what does not come out as stored is not served.

Run by ``predictors.base.load_predictor`` at every start, and by ``purkinje-engine selftest``. It is the gate between
the machine that trained and the machine that serves: other libraries, another processor, another runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.build.limits import checks
from engines.bundle.golden import GoldenCase
from engines.bundle.reader import Bundle
from engines.bundle.second_graphs import TrustedLabel
from engines.errors import EngineError, Refusal, SelfTestFailed
from engines.predictors.view_check import ViewCheck, check_gate, gate_bundle
from engines.preprocess.registry import Prepared, prepare
from engines.runtime.open import RUNTIMES, Opener
from engines.runtime.runner import TO_TOLERANCE, Runner

PREFERENCE = tuple(RUNTIMES)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Largest absolute difference from the golden outputs, per output, over all golden records."""

    differences: Mapping[str, float]


def check_preprocessing(bundle: Bundle) -> tuple[Prepared, ...]:
    """Prepare every golden record with the code of this installation.

    Returns:
        What the records became, in the order of the golden vectors.

    Raises:
        SelfTestFailed: an array differs from the stored one by more than the manifest's tolerance.
    """
    return tuple(_checked_prepared(bundle, index, case) for index, case in enumerate(bundle.golden()))


def check_runner(bundle: Bundle, runner: Runner, prepared: Sequence[Prepared]) -> Agreement:
    """Run every prepared golden record and compare with the stored outputs.

    A runtime in FP32 keeps to the tolerances of the manifest, also where it computes products of 8-bit weights in 8 bits; one
    in fewer bits keeps to the limits of its parity gate.

    Args:
        bundle: verified.
        runner: of the same bundle.
        prepared: from ``check_preprocessing``.

    Raises:
        SelfTestFailed: an output differs by more than it may.
        InferenceError: the runtime failed.
    """
    exact = runner.identity.precision in TO_TOLERANCE
    tolerances = bundle.manifest.golden.output_tolerance if exact else _any_difference(bundle)
    largest = dict.fromkeys(tolerances, 0.0)
    for index, (case, replayed) in enumerate(zip(bundle.golden(), prepared, strict=True)):
        outputs = runner.run(replayed.arrays)
        if not exact:
            _require_limits(bundle, runner, outputs, case.outputs, f"golden record {index}")
        for name, difference in compare(outputs, case.outputs, tolerances, f"golden record {index}").items():
            largest[name] = max(largest[name], difference)
    return Agreement(differences=largest)


def _any_difference(bundle: Bundle) -> dict[str, float]:
    """Largest finite differences: names, dtypes, shapes and NaN still count."""
    return dict.fromkeys(bundle.manifest.golden.output_tolerance, sys.float_info.max)


def _require_limits(
    bundle: Bundle,
    runner: Runner,
    found: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    where: str,
) -> None:
    for check in checks(bundle.manifest, runner.identity.precision):
        value = check.value(_rows(found[check.output]), _rows(expected[check.output]))
        if not check.holds(value):
            bound = "at least" if check.at_least else "at most"
            msg = f"{where}: {check.output}: {check.measure} is {value:.4g}; expected {bound} {check.limit:g}"
            raise SelfTestFailed(msg)


def _rows(array: NDArray[Any]) -> NDArray[np.float64]:
    return array.reshape(len(array), -1).astype(np.float64)


def open_verified_runner(
    bundle: Bundle,
    preference: Sequence[str] = PREFERENCE,
    runtimes: Mapping[str, Opener] = RUNTIMES,
    *,
    prepared: Sequence[Prepared] | None = None,
) -> tuple[Runner, tuple[str, ...]]:
    """Open the first runtime whose answers agree with the golden vectors.

    Args:
        bundle: verified.
        preference: names of runtimes, best first.
        runtimes: name -> how to open it.
        prepared: what the golden records became, where that was checked already; None checks it here.

    Returns:
        The runner, and one sentence per runtime that was tried and rejected.

    Raises:
        SelfTestFailed: preprocessing does not reproduce the golden arrays, or no runtime agrees.
        ValueError: a name of ``preference`` is not a runtime.
    """
    unknown = set(preference) - runtimes.keys()
    if unknown:
        msg = f"unknown runtimes {sorted(unknown)}; expected some of {sorted(runtimes)}"
        raise ValueError(msg)
    replayed = check_preprocessing(bundle) if prepared is None else prepared
    rejected: list[str] = []
    for name in preference:
        runner = _verified(bundle, runtimes[name], replayed, name, rejected)
        if runner is not None:
            return runner, tuple(rejected)
    msg = f"no runtime serves {bundle.manifest.name}: {'; '.join(rejected) or 'none was named'}"
    raise SelfTestFailed(msg)


def open_view_check(
    bundle: Bundle,
    preference: Sequence[str] = PREFERENCE,
    runtimes: Mapping[str, Opener] = RUNTIMES,
    *,
    trusted: Sequence[TrustedLabel] = (),
) -> ViewCheck | None:
    """Open the gate of a bundle in the first runtime that agrees with its golden logits; None for a bundle without one.

    Args:
        bundle: verified.
        preference: names of runtimes, best first.
        runtimes: name -> how to open one.
        trusted: labels the site trusts besides those of the bundle.

    Raises:
        SelfTestFailed: no runtime agrees.
    """
    gate = bundle.manifest.gate
    if gate is None:
        return None
    rejected: list[str] = []
    for name in preference:
        runner = None
        try:
            runner = runtimes[name](gate_bundle(bundle, gate))
            check_gate(bundle, gate, runner)
        except EngineError as error:
            rejected.append(f"{name}: {error}")
            if runner is not None:
                runner.close()
            continue
        return ViewCheck(gate, runner, trusted)
    msg = f"no runtime serves the view check of {bundle.manifest.name}: {'; '.join(rejected) or 'none was named'}"
    raise SelfTestFailed(msg)


def compare(
    found: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    tolerances: Mapping[str, float],
    where: str,
) -> dict[str, float]:
    """Return the largest absolute difference per array.

    Args:
        found: arrays of this installation.
        expected: stored arrays.
        tolerances: absolute, per name.
        where: what is compared, for the message.

    Raises:
        SelfTestFailed: names, dtypes or shapes differ, or a difference exceeds its tolerance; the message gives the
            place and both values.
    """
    if not found.keys() == expected.keys() == tolerances.keys():
        msg = f"{where}: found {sorted(found)}, stored {sorted(expected)}, with tolerances {sorted(tolerances)}"
        raise SelfTestFailed(msg)
    return {
        name: _largest_difference(found[name], expected[name], tolerances[name], f"{where}: {name}")
        for name in expected
    }


def _largest_difference(found: NDArray[Any], expected: NDArray[Any], tolerance: float, where: str) -> float:
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        msg = f"{where} is {found.dtype} {found.shape}; stored {expected.dtype} {expected.shape}"
        raise SelfTestFailed(msg)
    differences = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    # A NaN on either side is the largest difference there is.
    differences[~np.isfinite(differences)] = np.inf
    place = np.unravel_index(int(differences.argmax()), differences.shape)
    largest = float(differences[place])
    if largest > tolerance:
        spot = [int(index) for index in place]
        msg = (
            f"{where} differs by {largest:.6g} at {spot} (stored {expected[place]:.6g}, found {found[place]:.6g}); "
            f"tolerance {tolerance:.6g}"
        )
        raise SelfTestFailed(msg)
    return largest


def _checked_prepared(bundle: Bundle, index: int, case: GoldenCase) -> Prepared:
    where = f"golden record {index}"
    try:
        prepared = prepare(case.record, bundle.manifest.preprocess)
    except (Refusal, ValueError) as error:
        msg = f"{where} of {bundle.manifest.name} is refused by preprocessing: {error}"
        raise SelfTestFailed(msg) from error
    compare(prepared.arrays, case.prepared, bundle.manifest.golden.prepared_tolerance, where)
    return prepared


def _verified(
    bundle: Bundle, opener: Opener, prepared: Sequence[Prepared], name: str, rejected: list[str]
) -> Runner | None:
    runner = None
    try:
        runner = opener(bundle)
        check_runner(bundle, runner, prepared)
    except EngineError as error:
        rejected.append(f"{name}: {error}")
        if runner is not None:
            runner.close()
        return None
    return runner
