"""How far an embedding lies from the training set: Mahalanobis distance under a shrunk covariance.

The training exporter fits the statistics and the limit with the functions here; ``predictors.base`` scores with them,
so that both sides mean the same distance. Score = distance / limit: 0 typical, 1 the limit of abstention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.bundle.golden import npz_arrays, npz_bytes
from engines.errors import BundleCorrupt


@dataclass(frozen=True, kw_only=True)
class EmbeddingStatistics:
    """Mean and precision matrix of the training embeddings.

    Args:
        mean: float64 [E].
        precision: float64 [E, E], the inverse of the shrunk covariance.
    """

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]

    def __post_init__(self) -> None:
        size = self.mean.size
        if self.mean.shape != (size,) or self.precision.shape != (size, size) or size == 0:
            msg = f"mean {self.mean.shape} and precision {self.precision.shape}; expected [E] and [E, E]"
            raise ValueError(msg)
        if not (np.isfinite(self.mean).all() and np.isfinite(self.precision).all()):
            msg = "mean and precision of the embeddings hold values that are not finite"
            raise ValueError(msg)

    @classmethod
    def fit(cls, embeddings_NE: NDArray[np.floating]) -> Self:
        """Fit to training embeddings with the Ledoit-Wolf shrinkage towards a scaled identity.

        Raises:
            ValueError: there are too few different embeddings.

        Source: Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
        """
        samples = np.asarray(embeddings_NE, dtype=np.float64)
        mean = samples.mean(axis=0)
        try:
            precision = np.linalg.inv(_shrunk_covariance(samples - mean))
        except np.linalg.LinAlgError as error:
            msg = f"{len(samples)} embeddings of length {mean.size} have no covariance; give more different ones"
            raise ValueError(msg) from error
        return cls(mean=mean, precision=np.asarray(precision, dtype=np.float64))

    def distance(self, embeddings_BE: NDArray[np.floating]) -> float:
        """Distance of one clip, image or record set: the mean over the rows (the clips of one candidate).

        Args:
            embeddings_BE: float [B, E], B at least 1.

        Returns:
            The mean Mahalanobis distance, 0 or more.
        """
        offset_BE = np.asarray(embeddings_BE, dtype=np.float64) - self.mean
        squared_B = np.einsum("be,ef,bf->b", offset_BE, self.precision, offset_BE)
        return float(np.sqrt(np.maximum(squared_B, 0.0)).mean())

    def to_bytes(self) -> bytes:
        """Return the ``.npz`` that ``from_bytes`` reads."""
        return npz_bytes({"mean": self.mean, "precision": self.precision})

    @classmethod
    def from_bytes(cls, archive: bytes, *, size: int) -> Self:
        """Read the statistics of embeddings of length ``size``.

        Raises:
            BundleCorrupt: the archive does not hold them.
        """
        arrays = npz_arrays(archive)
        try:
            statistics = cls(mean=arrays["mean"], precision=arrays["precision"])
        except (KeyError, ValueError, TypeError) as error:
            msg = f"the embedding statistics cannot be read ({error}); export the bundle again"
            raise BundleCorrupt(msg) from error
        if statistics.mean.size != size:
            msg = f"the embedding statistics have {statistics.mean.size} dimensions; the network gives {size}"
            raise BundleCorrupt(msg)
        return statistics


def _shrunk_covariance(centred_NE: NDArray[np.float64]) -> NDArray[np.float64]:
    count, size = centred_NE.shape
    covariance = centred_NE.T @ centred_NE / count
    scale = np.trace(covariance) / size
    identity = np.eye(size)
    spread = np.sum((covariance - scale * identity) ** 2)
    fourth = np.sum(np.sum(centred_NE**2, axis=1) ** 2) / count - np.sum(covariance**2)
    shrinkage = 1.0 if spread == 0 else min(1.0, max(0.0, fourth / count / spread))
    return np.asarray((1.0 - shrinkage) * covariance + shrinkage * scale * identity)
