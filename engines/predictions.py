"""What an engine says of one study: values with unit and interval, or an abstention with its reason.

Made by ``engines.predictors``; read by ``stream_processors.reports``. Frozen and, but for the picture, JSON-ready.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.errors import RefusalCode
from engines.records import Modality, SourceInstance


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A prediction interval in the unit of its value; ``coverage_percent`` is what it was calibrated to hold."""

    low: float
    high: float
    coverage_percent: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            msg = f"interval {self.low} to {self.high} is not an ordered pair of finite numbers"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number of the report.

    Args:
        quantity: key of ``stream_processors.reports.codes`` (``lvef``, ``rvef``, ``cardiac_output``).
        value: in ``unit``.
        unit: UCUM code (``%``, ``l/min``, ``ml``, ``g``).
        interval: where the true value is expected.
        between_clip_sd: standard deviation between the clips that were averaged, same unit, or None.
        wide_interval: a second interval of a higher coverage, which holds the first, or None.
    """

    quantity: str
    value: float
    unit: str
    interval: Interval
    between_clip_sd: float | None = None
    wide_interval: Interval | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            msg = f"{self.quantity} is {self.value}; a measurement is finite"
            raise ValueError(msg)
        wide, first = self.wide_interval, self.interval
        if wide is not None and not (
            wide.low <= first.low <= first.high <= wide.high and first.coverage_percent < wide.coverage_percent
        ):
            msg = f"the wide interval of {self.quantity} is {wide}; expected one that holds {first} and covers more"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """Calibrated probability that a condition is present.

    Args:
        condition: key of ``stream_processors.reports.codes`` (``lvef_at_most_40``, ``heart_failure``).
        probability: 0 to 1.
        interval: of the probability, 0 to 1.
        decision: True present, False absent, None when the interval straddles ``threshold_probability``.
    """

    condition: str
    probability: float
    interval: Interval
    threshold_probability: float
    decision: bool | None

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            msg = f"probability of {self.condition} is {self.probability}; expected 0 to 1"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """The engine ran or looked, and declines to answer."""

    code: RefusalCode
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which engine said it; enough to find the bytes again.

    ``bundle_sha256`` is the digest of the manifest (which holds the digest of every file);
    ``weights_sha256`` that of the ONNX graph; ``plan_sha256`` that of the plan compiled from it, or None where the graph
    runs as it is. ``fallback`` says in one sentence why a preferred runtime did not compute, or is None.
    """

    name: str
    version: str
    method: str
    bundle_sha256: str
    weights_sha256: str
    preprocess_sha256: str
    runtime: str
    runtime_version: str
    precision: str
    device: str
    training_data: str
    intended_use: str
    plan_sha256: str | None = None
    fallback: str | None = None


@dataclass(frozen=True, kw_only=True)
class CrossModal:
    """How alike an ECG and cardiac MR images of one patient are; it checks identity and measures nothing.

    Args:
        cosine: -1 to 1.
        own_percent: share of known pairs of one patient that are less similar, 0 to 100.
        others_percent: share of pairs of two patients that are less similar, 0 to 100.
        below_limit: whether nearly all known pairs of one patient are more similar.
        embedding: where the images lie in the space shared with ECGs, a unit vector.
    """

    cosine: float
    own_percent: float
    others_percent: float
    below_limit: bool
    embedding: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (self.cosine, self.own_percent, self.others_percent, *self.embedding)
        percents = (self.own_percent, self.others_percent)
        within = -1.0 <= self.cosine <= 1.0 and all(0.0 <= percent <= 100.0 for percent in percents)
        if not (self.embedding and all(map(math.isfinite, numbers)) and within):
            msg = (
                f"a cosine of {self.cosine} at {percents} percent with {len(self.embedding)} numbers of an embedding; expected "
                "-1 to 1, 0 to 100, and finite numbers"
            )
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An explanation as an image; two pictures are equal only where they are the same object.

    Args:
        rgb_HW3: uint8 [H, W, 3]; no patient data is drawn.
        caption: what it shows and how to read it, in sentences without patient data.
    """

    rgb_HW3: NDArray[np.uint8]
    caption: str

    def __post_init__(self) -> None:
        shape, dtype = self.rgb_HW3.shape, self.rgb_HW3.dtype
        if dtype != np.uint8 or self.rgb_HW3.ndim != 3 or shape[2] != 3 or 0 in shape:
            msg = f"a picture is {dtype} {shape}; expected uint8 [H, W, 3]"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer of one engine for one study.

    Exactly one of ``abstention`` and (``estimates`` or ``probabilities``) is filled.

    Args:
        sources: the instances (and frames) the numbers were inferred from; the first is the one to show.
        region_px: (x0, y0, x1, y1) in the first source frame of ``sources[0]`` that was analysed, or None.
        out_of_distribution_score: 0 typical; 1 is the limit above which the engine abstains; None when not run.
        notes: sentences for the reader (warnings of decoding, quality), without patient data.
        picture: why the engine says it, or None; never with an abstention, whose answer it would give away.
    """

    modality: Modality
    model: ModelIdentity
    sources: tuple[SourceInstance, ...]
    estimates: tuple[Estimate, ...] = ()
    probabilities: tuple[ClassProbability, ...] = ()
    abstention: Abstention | None = None
    region_px: tuple[int, int, int, int] | None = None
    out_of_distribution_score: float | None = None
    notes: tuple[str, ...] = field(default=())
    picture: Picture | None = None

    def __post_init__(self) -> None:
        answered = bool(self.estimates or self.probabilities)
        if answered == (self.abstention is not None):
            msg = "a prediction either answers or abstains: exactly one of the two"
            raise ValueError(msg)
        if self.picture is not None and not answered:
            msg = "an abstention carries no picture: it would show what the engine declines to say"
            raise ValueError(msg)
