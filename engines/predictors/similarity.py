"""Whether an ECG and cardiac MR images look like one heart: cosine of their embeddings, read against known pairs.

The training exporter fits the statistics with the functions here on patients no network saw; the cross-modal check reads them,
so that both sides mean the same number. It is a check of identity and consistency, never a measurement of the heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.bundle.golden import npz_arrays, npz_bytes
from engines.errors import BundleCorrupt

GRID = 201
LEAST_PATIENTS = 20
LOW_PERCENT = 2.5
"""Share of true pairs that lie below the limit."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """What the check says of one ECG and one set of images.

    Args:
        cosine: -1 to 1.
        own_percent: share of known pairs of one patient that are less similar, 0 to 100.
        others_percent: share of pairs of two patients that are less similar, 0 to 100.
        below_limit: whether it is less similar than ``LOW_PERCENT`` of the known pairs of one patient.
    """

    cosine: float
    own_percent: float
    others_percent: float
    below_limit: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SimilarityStatistics:
    """Quantiles of the cosine of pairs of one patient and of pairs of two, each float64 [``GRID``], non-decreasing.

    Args:
        own: at 0 to 100 percent of the pairs of one patient.
        others: of the pairs of two patients.
    """

    own: FloatArray
    others: FloatArray

    def __post_init__(self) -> None:
        for name, values in (("own", self.own), ("others", self.others)):
            ordered = values.shape == (GRID,) and np.isfinite(values).all() and (np.diff(values) >= 0).all()
            if not ordered or abs(values[0]) > 1 + 1e-9 or abs(values[-1]) > 1 + 1e-9:
                msg = f"quantiles {name} are {values.shape}; expected {GRID} cosines that do not decrease"
                raise ValueError(msg)

    @classmethod
    def fit(cls, ecg_NE: NDArray[np.floating], cmr_NE: NDArray[np.floating], patients: Sequence[str]) -> Self:
        """Fit to pairs, row by row of one patient.

        Args:
            ecg_NE: embeddings of ECGs in the space shared with the images.
            cmr_NE: of the images.
            patients: of the rows; pairs of two visits of a patient count for neither side.

        Raises:
            ValueError: shapes differ, a vector is zero, or there are fewer than ``LEAST_PATIENTS`` patients.
        """
        names = np.asarray(patients)
        if ecg_NE.shape != cmr_NE.shape or len(ecg_NE) != len(names):
            msg = f"ECGs {ecg_NE.shape}, images {cmr_NE.shape}, {len(names)} patients; expected one row a pair in each"
            raise ValueError(msg)
        if len(set(patients)) < LEAST_PATIENTS:
            msg = f"{len(set(patients))} patients do not tell how similar pairs are; give at least {LEAST_PATIENTS}"
            raise ValueError(msg)
        cosine_NN = directions(ecg_NE) @ directions(cmr_NE).T
        apart_NN = names[:, None] != names[None, :]
        shares = np.linspace(0.0, 1.0, GRID)
        own, others = np.quantile(np.diag(cosine_NN), shares), np.quantile(cosine_NN[apart_NN], shares)
        # A quantile is interpolated: rounding must not make it fall.
        return cls(own=np.maximum.accumulate(own), others=np.maximum.accumulate(others))

    @property
    def limit(self) -> float:
        """Cosine that ``LOW_PERCENT`` of the pairs of one patient stay below."""
        return float(np.interp(LOW_PERCENT / 100.0, np.linspace(0.0, 1.0, GRID), self.own))

    @property
    def others_above_limit_percent(self) -> float:
        """Share of pairs of two patients that the limit does not catch: what the check is worth."""
        return 100.0 - _percent_below(self.limit, self.others)

    def read(self, ecg_E: NDArray[np.floating], cmr_E: NDArray[np.floating]) -> Similarity:
        """Compare one ECG with one set of images.

        Raises:
            ValueError: the vectors have no direction or differ in length.
        """
        first, second = directions(np.atleast_2d(ecg_E))[0], directions(np.atleast_2d(cmr_E))[0]
        if first.shape != second.shape:
            msg = f"the embeddings have lengths {first.size} and {second.size}; expected those of one shared space"
            raise ValueError(msg)
        cosine = float(np.clip(first @ second, -1.0, 1.0))
        return Similarity(
            cosine=cosine,
            own_percent=_percent_below(cosine, self.own),
            others_percent=_percent_below(cosine, self.others),
            below_limit=cosine < self.limit,
        )

    def to_bytes(self) -> bytes:
        """Return the ``.npz`` that ``from_bytes`` reads."""
        return npz_bytes({"own": self.own, "others": self.others})

    @classmethod
    def from_bytes(cls, archive: bytes) -> Self:
        """Read the statistics.

        Raises:
            BundleCorrupt: the archive does not hold them.
        """
        arrays = npz_arrays(archive)
        try:
            return cls(own=arrays["own"], others=arrays["others"])
        except (KeyError, ValueError, TypeError) as error:
            msg = f"the similarity statistics cannot be read ({error}); export the bundle again"
            raise BundleCorrupt(msg) from error


def _percent_below(cosine: float, quantiles: FloatArray) -> float:
    return float(np.interp(cosine, quantiles, np.linspace(0.0, 100.0, GRID), left=0.0, right=100.0))


def directions(vectors_NE: NDArray[np.floating]) -> FloatArray:
    """Vectors of length 1, float64 [N, E].

    Raises:
        ValueError: one is zero or not finite.
    """
    vectors = np.asarray(vectors_NE, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        msg = "an embedding is zero or not finite and has no direction; look at the network"
        raise ValueError(msg)
    return np.asarray(vectors / lengths)
