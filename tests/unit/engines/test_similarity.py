"""Similarity of an ECG and images, read against pairs of one patient and of two."""

from __future__ import annotations

import numpy as np
import pytest

from engines.bundle.golden import npz_bytes
from engines.errors import BundleCorrupt
from engines.predictors.similarity import GRID, LOW_PERCENT, SimilarityStatistics


def pairs(count: int, seed: int, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings that share a part; lengths differ, which a cosine does not see."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, 16))
    ecg, cmr = (shared + noise * rng.standard_normal((count, 16)) for _ in range(2))
    return ecg * rng.uniform(0.5, 2, (count, 1)), cmr, [f"p{row}" for row in range(count)]


@pytest.fixture(scope="module")
def statistics() -> SimilarityStatistics:
    """Of 300 pairs."""
    return SimilarityStatistics.fit(*pairs(300, 0))


def test_new_pairs_of_one_patient_are_rarely_called_unlike(statistics: SimilarityStatistics) -> None:
    """About the stated share lies below the limit, and most pairs of two patients do."""
    ecg, cmr, _ = pairs(400, 1)
    own = [statistics.read(one, other) for one, other in zip(ecg, cmr, strict=True)]
    others = [statistics.read(one, other) for one, other in zip(ecg, np.roll(cmr, 1, axis=0), strict=True)]
    assert 100 * np.mean([each.below_limit for each in own]) == pytest.approx(LOW_PERCENT, abs=2.5)
    assert np.mean([each.below_limit for each in others]) > 0.9
    assert 100 * np.mean([not each.below_limit for each in others]) == pytest.approx(
        statistics.others_above_limit_percent, abs=4
    )


def test_percentiles_are_of_both_kinds_of_pairs(statistics: SimilarityStatistics) -> None:
    """A typical pair of one patient is in the middle of its kind and at the end of the other; ends are 0 and 100."""
    ecg, cmr, _ = pairs(400, 1)
    own = [statistics.read(one, other) for one, other in zip(ecg, cmr, strict=True)]
    assert np.median([each.own_percent for each in own]) == pytest.approx(50, abs=8)
    assert np.median([each.others_percent for each in own]) > 99
    same, opposite = statistics.read(ecg[0], ecg[0]), statistics.read(ecg[0], -ecg[0])
    assert (same.cosine, same.own_percent) == (pytest.approx(1.0), 100.0)
    assert (opposite.cosine, opposite.own_percent, opposite.others_percent) == (pytest.approx(-1.0), 0.0, 0.0)
    assert opposite.below_limit


def test_two_visits_of_a_patient_are_no_pair_of_two_patients() -> None:
    """Copies of the pairs under the same names change neither kind."""
    ecg, cmr, names = pairs(60, 2)
    once = SimilarityStatistics.fit(ecg, cmr, names)
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (ecg, cmr)]
    cosines = units[0] @ units[1].T
    assert once.others[-1] == pytest.approx(np.max(cosines[~np.eye(60, dtype=bool)]))
    twice = SimilarityStatistics.fit(np.tile(ecg, (2, 1)), np.tile(cmr, (2, 1)), names * 2)
    np.testing.assert_allclose(twice.others, once.others, atol=5e-3)
    assert twice.others[-1] == pytest.approx(once.others[-1])


def test_they_come_back_as_written(statistics: SimilarityStatistics) -> None:
    """The bytes give back the same numbers, and other bytes a corrupt bundle."""
    back = SimilarityStatistics.from_bytes(statistics.to_bytes())
    np.testing.assert_array_equal(back.own, statistics.own)
    np.testing.assert_array_equal(back.others, statistics.others)
    for broken in ({"own": statistics.own}, {"own": statistics.own[::-1], "others": statistics.others}):
        with pytest.raises(BundleCorrupt, match="similarity statistics"):
            SimilarityStatistics.from_bytes(npz_bytes(broken))
    with pytest.raises(ValueError, match="do not decrease"):
        SimilarityStatistics(own=np.linspace(0, 2, GRID), others=statistics.others)


def test_what_has_no_direction_or_no_pairs_is_refused(statistics: SimilarityStatistics) -> None:
    """Zero and infinite vectors, two spaces, rows that do not match, too few patients."""
    ecg, cmr, names = pairs(30, 3)
    with pytest.raises(ValueError, match="no direction"):
        statistics.read(np.zeros(16), cmr[0])
    with pytest.raises(ValueError, match="no direction"):
        statistics.read(np.full(16, np.nan), cmr[0])
    with pytest.raises(ValueError, match="one shared space"):
        statistics.read(np.ones(8), cmr[0])
    with pytest.raises(ValueError, match="one row a pair"):
        SimilarityStatistics.fit(ecg, cmr[:29], names)
    with pytest.raises(ValueError, match="1 patients do not tell"):
        SimilarityStatistics.fit(ecg, cmr, ["p"] * 30)
