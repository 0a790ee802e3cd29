"""How a manifest states what the outputs of a network mean: estimates and probabilities, calibrated on held-out cases.

Called by ``bundle.manifest``.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from engines.bundle.parts import CoveragePercent, NonNegative, Part, Positive, Probability, require
from engines.records import Modality


class ConformalEstimate(Part):
    """One number the network estimates, and its split-conformal interval: value +/- half width.

    Args:
        quantity: key of the report's code table (``lvef``).
        unit: UCUM code (``%``, ``l/min``).
        coverage_percent: what the interval was calibrated to hold.
        conformal_quantile: half width in ``unit``; where ``sd_offset`` is set, half width divided by
            (between-clip SD + ``sd_offset``).
        sd_offset: in ``unit``, or None when the interval does not depend on the spread between clips.
        minimum, maximum: what the quantity can be at all; a value outside is reported at the limit, with a note.
    """

    quantity: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    unit: Annotated[str, Field(min_length=1, max_length=16)]
    coverage_percent: CoveragePercent
    conformal_quantile: Positive
    sd_offset: Positive | None
    minimum: float
    maximum: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        require(self.minimum < self.maximum, "minimum < maximum")
        return self


class ProbabilityTable(Part):
    """Inductive Venn-Abers calibration of one condition, tabulated over the network's logit.

    At a logit, ``low`` and ``high`` are the calibrated probabilities when the case is added to the calibration
    set as absent and as present; between the grid points they are interpolated, outside they are constant.

    Args:
        condition: key of the report's code table.
        threshold_probability: above it the condition is called present; inside the interval nothing is called.
        coverage_percent: nominal coverage of the pair (100: one of its ends is calibrated by construction).
        logits: the grid, strictly increasing.
        low, high: non-decreasing, low <= high, one value per grid point.

    Source: Vovk, Petej, "Venn-Abers predictors", UAI 2014.
    """

    condition: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    threshold_probability: Annotated[float, Field(gt=0, lt=1)]
    coverage_percent: CoveragePercent
    logits: Annotated[tuple[float, ...], Field(min_length=2, max_length=4096)]
    low: tuple[Probability, ...]
    high: tuple[Probability, ...]

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        require(len(self.logits) == len(self.low) == len(self.high), "one low and one high per logit")
        require(bool(np.all(np.diff(self.logits) > 0)), "logits increase strictly")
        require(bool(np.all(np.diff(self.low) >= 0) and np.all(np.diff(self.high) >= 0)), "low and high never fall")
        require(bool(np.all(np.asarray(self.low) <= np.asarray(self.high))), "low <= high")
        return self

    @property
    def crossing_logit(self) -> float:
        """The first logit of the grid whose merged probability lies above the threshold; infinite where none does."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        above = np.flatnonzero(high / (1.0 - low + high) > self.threshold_probability)
        return float(self.logits[above[0]]) if above.size else math.inf


class EchoPostprocess(Part):
    """Clips to one ejection fraction; ``clip_sd_limit_percent`` is the spread above which the engine abstains."""

    modality: Literal[Modality.ECHO]
    lvef: ConformalEstimate
    clip_sd_limit_percent: Positive


class ReconstructionGate(Part):
    """How well the network must have rebuilt both frames of a study before its logit counts.

    Args:
        output: name of the network output with the PSNR of the frames (end-diastole, end-systole), in dB.
        minimum_db: PSNR of either frame below which the engine abstains.
        percentile: share of the held-out hearts below ``minimum_db``, in percent.
    """

    output: Literal["psnr_db"]
    minimum_db: Positive
    percentile: CoveragePercent


class CmrPostprocess(Part):
    """One logit to the probability of a low LVEF, such as at most 40 %.

    Args:
        risk: calibration of the output ``logit``.
        undecided_logits: the condition is not called within this distance of ``risk.crossing_logit``.
        reconstruction_gate: None for a network that rebuilds nothing, and only for one.
    """

    modality: Literal[Modality.CMR]
    risk: ProbabilityTable
    undecided_logits: NonNegative
    reconstruction_gate: ReconstructionGate | None

    @model_validator(mode="after")
    def _condition_names_a_threshold(self) -> CmrPostprocess:
        found = self.risk.condition
        require(re.fullmatch(r"lvef_at_most_\d+", found) is not None, f"a condition like lvef_at_most_40, not {found}")
        return self


class WideIntervals(Part):
    """A second interval around every estimate, calibrated on the same cases.

    Args:
        coverage_percent: above that of the first intervals.
        conformal_quantiles: half widths in the unit of each estimate, in the order of the estimates; none is narrower than
            that of the first interval.
    """

    coverage_percent: CoveragePercent
    conformal_quantiles: Annotated[tuple[Positive, ...], Field(min_length=1)]


class EcgPostprocess(Part):
    """``estimates`` and ``conditions`` in the order of the columns of ``estimates`` and ``disease_logits``."""

    modality: Literal[Modality.ECG]
    estimates: Annotated[tuple[ConformalEstimate, ...], Field(min_length=1)]
    conditions: Annotated[tuple[ProbabilityTable, ...], Field(min_length=1)]


Postprocess = Annotated[EchoPostprocess | CmrPostprocess | EcgPostprocess, Field(discriminator="modality")]
