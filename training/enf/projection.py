"""Embeddings in two dimensions, for the eye only: distances between far groups mean nothing.

Called by ``training.enf.figures``. UMAP compiles when first used (about ten seconds), so it is imported late.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

FEWEST_FOR_UMAP = 15
_NEIGHBOURS = 15


def project(embeddings_nE: FloatArray, *, seed: int) -> tuple[FloatArray, str]:
    """Return positions [n,2] and the name of the projection: UMAP, or PCA for fewer than 15 hearts.

    Columns are first scaled to unit standard deviation; constant columns carry nothing and become 0.

    Raises:
        ValueError: when there are fewer than three hearts or the embedding is not [n,E] and finite.

    Source: L. McInnes, J. Healy, J. Melville, arXiv 1802.03426.
    """
    if embeddings_nE.ndim != 2 or len(embeddings_nE) < 3 or not np.isfinite(embeddings_nE).all():
        raise ValueError(f"embeddings have shape {embeddings_nE.shape}; expected finite [n,E] with n >= 3")
    scaled_nE = _standardised(embeddings_nE.astype(np.float64))
    if len(scaled_nE) < FEWEST_FOR_UMAP:
        return _pca(scaled_nE), f"PCA (fewer than {FEWEST_FOR_UMAP} hearts, too few for UMAP)"
    return _umap(scaled_nE, seed), "UMAP"


def _standardised(values_nE: FloatArray) -> FloatArray:
    centred_nE = values_nE - values_nE.mean(axis=0)
    sd_E = centred_nE.std(axis=0)
    scaled_nE: FloatArray = np.divide(centred_nE, sd_E, out=np.zeros_like(centred_nE), where=sd_E > 0)
    return scaled_nE


def _pca(scaled_nE: FloatArray) -> FloatArray:
    """Return the first two principal components; a second one of zeros where the embedding has one column."""
    left_nK, singular_K, _ = np.linalg.svd(scaled_nE, full_matrices=False)
    positions_n2 = np.zeros((len(scaled_nE), 2))
    kept = min(2, len(singular_K))
    positions_n2[:, :kept] = left_nK[:, :kept] * singular_K[:kept]
    return positions_n2


def _umap(scaled_nE: FloatArray, seed: int) -> FloatArray:
    import umap

    neighbours = min(_NEIGHBOURS, len(scaled_nE) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(scaled_nE), dtype=np.float64)
