"""How far a runtime's answers may lie from those of FP32 before it must not serve: one table.

FP32: every output within its tolerance in the manifest, as at every start. Reduced precision:

==================  ==========================================  ====================================================
output              limit                                       reason
==================  ==========================================  ====================================================
EF in ``ef``        mean difference 0.1, largest 0.5 EF points  a tenth is the last digit the report shows; readers
                                                                disagree by more than ten times the largest
EF across 40, 50    no flip of the class                        treatment changes there
EF in ``estimates`` as ``ef``                                   the same quantity
cardiac output      mean difference 0.01, largest 0.05 l/min    the same share (1 %) of a normal value as for EF
other estimates     mean difference 1 %, largest 5 % of the     what 0.5 EF points and 0.05 l/min come to
                    half width of the interval
logits              0.02 + 0.005 x |value|                      a logistic curve rises by a quarter at most: 0.005 of
                                                                probability; where it is flat the logits are large
called conditions   no change of present, absent, undecided     the reader sees nothing else first
ENF risk            0.005 of calibrated probability             half of the last digit the report shows
``psnr_db``         0.1 dB                                      the last digit the report shows
``poses``           0.001                                       constants in -1 to 1, rounded to half precision
all others,         cosine at least 0.999, and distance at      the cosine does not see a wrong scale; 0.05 is what
the embedding too   most 0.05 of the length                     an angle of that cosine comes to
==================  ==========================================  ====================================================

Ties: where FP32 itself lies within a fifth of the largest difference from a limit between two classes (0.1 EF points,
0.004 of a logit), the class is not stable under differences that are accepted, and a flip there is no flip; the
difference itself still counts. Farther away every flip counts, however small the difference.

These limits are ours, from the resolution of the report; no published standard was found. Read by
``engines.build.gate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engines.bundle.calibration import (
    CmrPostprocess,
    ConformalEstimate,
    EcgPostprocess,
    EchoPostprocess,
    ProbabilityTable,
)
from engines.bundle.manifest import Manifest
from engines.predictors.answer import probability
from engines.runtime.runner import TO_TOLERANCE

Rows = NDArray[np.float64]
Measure = Callable[[Rows, Rows], float]
"""Found and expected rows to one number."""

EF_LARGEST = 0.5
EF_CUTS = (40.0, 50.0)
LOGIT_ABSOLUTE = 0.02
LOGIT_RELATIVE = 0.005
_FIFTH = 5
RISK = 0.005
COSINE = 0.999
DISTANCE = 0.05
_LARGEST_BY_UNIT = {"%": EF_LARGEST, "l/min": 0.05}
_INTERVAL_SHARE = 0.05
_LARGEST_BY_OUTPUT = {"psnr_db": 0.1, "poses": 0.001}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that is measured of one output.

    Args:
        output: its name.
        measure: what is measured, in words.
        limit: of the measured value.
        value: measures all rows.
        at_least: whether ``limit`` is the smallest allowed value, not the largest.
    """

    output: str
    measure: str
    limit: float
    value: Measure
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether a measured value is within the limit; what is not a number is not."""
        return value >= self.limit if self.at_least else value <= self.limit


def checks(manifest: Manifest, precision: str) -> tuple[Check, ...]:
    """Return all that is checked of a bundle's outputs.

    Args:
        manifest: of the bundle.
        precision: that the runtime computes in; anything but ``TO_TOLERANCE`` is reduced.
    """
    if precision in TO_TOLERANCE:
        tolerances = manifest.golden.output_tolerance
        return tuple(_largest(tensor.name, tolerances[tensor.name]) for tensor in manifest.outputs)
    return tuple(check for tensor in manifest.outputs for check in _reduced(manifest, tensor.name))


def _reduced(manifest: Manifest, output: str) -> Iterator[Check]:
    post = manifest.postprocess
    if isinstance(post, EchoPostprocess) and output == "ef":
        yield from _estimate(output, 0, post.lvef)
    elif isinstance(post, EcgPostprocess) and output == "estimates":
        for column, quantity in enumerate(post.estimates):
            yield from _estimate(output, column, quantity)
    elif isinstance(post, EcgPostprocess) and output == "disease_logits":
        yield from _logits(output, post.conditions)
    elif isinstance(post, CmrPostprocess) and output == "logit":
        yield from _logits(output, (post.risk,))
        yield Check(
            output=output, measure="largest difference of the risk", limit=RISK, value=partial(_risk, post.risk)
        )
    elif output in _LARGEST_BY_OUTPUT:
        yield _largest(output, _LARGEST_BY_OUTPUT[output])
    else:
        yield from _direction(output)


def _estimate(output: str, column: int, calibration: ConformalEstimate) -> Iterator[Check]:
    """Of one quantity; the mean may lie at a fifth of the largest difference."""
    largest = _LARGEST_BY_UNIT.get(calibration.unit, _INTERVAL_SHARE * calibration.conformal_quantile)
    stated = f"{calibration.quantity} in {calibration.unit}"
    measures: list[tuple[str, float, Measure]] = [
        ("largest difference", largest, largest_difference),
        ("mean difference", largest / _FIFTH, mean_difference),
    ]
    if calibration.quantity == "lvef":
        measures.append((f"flips across {' and '.join(f'{cut:g}' for cut in EF_CUTS)}", 0, flips))
    for words, limit, measure in measures:
        yield Check(output=output, measure=f"{words}, {stated}", limit=limit, value=_of(column, measure))


def _logits(output: str, tables: Sequence[ProbabilityTable]) -> Iterator[Check]:
    allowed = f"{LOGIT_ABSOLUTE:g} + {LOGIT_RELATIVE:g} x |value|"
    yield Check(output=output, measure=f"largest difference as a share of {allowed}", limit=1, value=logit_share)
    yield Check(output=output, measure="changed calls", limit=0, value=partial(_changed_calls, tables))


def _direction(output: str) -> Iterator[Check]:
    yield Check(output=output, measure="smallest cosine", limit=COSINE, value=smallest_cosine, at_least=True)
    yield Check(output=output, measure="largest distance by length", limit=DISTANCE, value=largest_distance)


def _largest(output: str, limit: float) -> Check:
    return Check(output=output, measure="largest difference", limit=limit, value=largest_difference)


def _of(column: int, measure: Measure) -> Measure:
    return lambda found, expected: measure(found[:, column], expected[:, column])


def largest_difference(found: Rows, expected: Rows) -> float:
    """Largest absolute difference."""
    return float(np.abs(found - expected).max())


def mean_difference(found: Rows, expected: Rows) -> float:
    """Mean absolute difference."""
    return float(np.abs(found - expected).mean())


def logit_share(found: Rows, expected: Rows) -> float:
    """Largest difference as a share of what is allowed at the expected value."""
    allowed = LOGIT_ABSOLUTE + LOGIT_RELATIVE * np.abs(expected)
    return float((np.abs(found - expected) / allowed).max())


def flips(found: Rows, expected: Rows) -> float:
    """How many ejection fractions lie on different sides of a cut, ties left out."""
    count = 0
    for cut in EF_CUTS:
        clear = np.abs(expected - cut) > EF_LARGEST / _FIFTH
        count += int((clear & ((found < cut) != (expected < cut))).sum())
    return float(count)


def smallest_cosine(found: Rows, expected: Rows) -> float:
    """Smallest cosine of the angle between the rows; two rows of nothing are alike."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    products = np.einsum("nk,nk->n", found, expected)
    both_nothing = ~found.any(axis=1) & ~expected.any(axis=1)
    return float(np.where(both_nothing, 1.0, products / np.where(lengths == 0, 1.0, lengths)).min())


def largest_distance(found: Rows, expected: Rows) -> float:
    """Largest length of the difference of two rows by that of the expected one; two rows of nothing are alike."""
    apart = np.linalg.norm(found - expected, axis=1)
    lengths = np.linalg.norm(expected, axis=1)
    shares = apart / np.where(lengths == 0, 1.0, lengths)
    return float(np.where((lengths == 0) & (apart > 0), np.inf, shares).max())


def _risk(table: ProbabilityTable, found: Rows, expected: Rows) -> float:
    pairs = zip(found[:, 0], expected[:, 0], strict=True)
    return max(abs(_merged(table, one) - _merged(table, other)) for one, other in pairs)


def _merged(table: ProbabilityTable, logit: float) -> float:
    return probability(table, float(logit)).probability


def _changed_calls(tables: Sequence[ProbabilityTable], found: Rows, expected: Rows) -> float:
    """How many conditions are called otherwise, ties left out."""
    return float(
        sum(
            _call_changed(table, float(one), float(other))
            for column, table in enumerate(tables)
            for one, other in zip(found[:, column], expected[:, column], strict=True)
        )
    )


def _call_changed(table: ProbabilityTable, found: float, expected: float) -> bool:
    tie = LOGIT_ABSOLUTE / _FIFTH
    calls = {probability(table, expected + shift).decision for shift in (-tie, 0.0, tie)}
    return len(calls) == 1 and probability(table, found).decision not in calls
