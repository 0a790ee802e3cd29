"""Which ECG belongs to which images: by patient and day, never by place in a list.

Called by what builds stores of pairs. Messages count pairs and name rows, never patients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import structlog

HOSPITAL_WINDOW_DAYS = 7
"""ECG and images within a week of each other are of one heart; UK Biobank takes both in one visit (0 days)."""

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Visit:
    """An ECG or a set of images: its key in its own data set, whose it is, and when it was taken."""

    key: str = field(repr=False)
    patient: str = field(repr=False)
    day: date


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An ECG and images of one patient."""

    ecg: Visit
    cmr: Visit

    def __post_init__(self) -> None:
        """Refuse two patients."""
        if self.ecg.patient != self.cmr.patient:
            raise ValueError("an ECG and images of two patients are no pair; join them by patient")

    @property
    def patient(self) -> str:
        """Whose pair it is."""
        return self.ecg.patient

    @property
    def days(self) -> int:
        """Days from ECG to images; negative where the images came first."""
        return (self.cmr.day - self.ecg.day).days


def pair_visits(
    ecgs: Iterable[Visit],
    cmrs: Iterable[Visit],
    *,
    window_days: int = HOSPITAL_WINDOW_DAYS,
    procedures: Mapping[str, Collection[date]] | None = None,
    one_per_patient: bool = True,
) -> list[Pair]:
    """Return the nearest pairs of each patient within the window, sorted by patient and day.

    Each ECG and each set of images is in at most one pair. Of equally near ones the earlier images, then the earlier ECG.

    Args:
        ecgs: in any order.
        cmrs: in any order; who lacks the other is left out and counted in the log.
        window_days: most days between the two, either way.
        procedures: days by patient on which the heart was changed; a pair with one in between is none.
        one_per_patient: the nearest pair only, as a contrast wants it: two visits of a patient are no negatives.

    Raises:
        ValueError: the window is negative, a key is there twice, or there is no pair at all.
    """
    if window_days < 0:
        raise ValueError(f"window_days is {window_days}; expected 0 or more")
    by_patient = _by_patient(ecgs, "ECGs"), _by_patient(cmrs, "images")
    changed = procedures or {}
    pairs = [
        pair
        for patient in sorted(by_patient[0].keys() & by_patient[1].keys())
        for pair in _nearest(by_patient[0][patient], by_patient[1][patient], window_days, changed.get(patient, ()))[
            : 1 if one_per_patient else None
        ]
    ]
    counts = [sum(map(len, each.values())) for each in by_patient]
    _log.info("pairs.found", pairs=len(pairs), ecgs=counts[0], images=counts[1], window_days=window_days)
    if not pairs:
        raise ValueError(
            f"{counts[0]} ECGs and {counts[1]} sets of images make no pair within {window_days} days; compare how both name"
            " patients and days"
        )
    return sorted(pairs, key=lambda pair: (pair.patient, pair.cmr.day, pair.ecg.day))


def _by_patient(visits: Iterable[Visit], what: str) -> dict[str, list[Visit]]:
    found: dict[str, list[Visit]] = defaultdict(list)
    keys: set[str] = set()
    for visit in visits:
        if visit.key in keys:
            raise ValueError(f"a key of the {what} is there twice; expected one visit a key")
        keys.add(visit.key)
        found[visit.patient].append(visit)
    return found


def _nearest(
    ecgs: Sequence[Visit], cmrs: Sequence[Visit], window_days: int, procedures: Collection[date]
) -> list[Pair]:
    """Pairs of one patient, nearest first, no visit twice."""
    near = [pair for pair in _all(ecgs, cmrs) if abs(pair.days) <= window_days and not _between(pair, procedures)]
    near.sort(key=lambda pair: (abs(pair.days), pair.cmr.day, pair.ecg.day, pair.cmr.key, pair.ecg.key))
    taken: set[tuple[str, str]] = set()
    chosen = []
    for pair in near:
        both = {("ecg", pair.ecg.key), ("cmr", pair.cmr.key)}
        if not both & taken:
            taken |= both
            chosen.append(pair)
    return chosen


def _all(ecgs: Sequence[Visit], cmrs: Sequence[Visit]) -> Iterator[Pair]:
    return (Pair(ecg=ecg, cmr=cmr) for cmr in cmrs for ecg in ecgs)


def _between(pair: Pair, procedures: Collection[date]) -> bool:
    first, last = sorted((pair.ecg.day, pair.cmr.day))
    return any(first <= day <= last for day in procedures)


def require_rows(pairs: Sequence[Pair], ecg_keys: Sequence[str], cmr_keys: Sequence[str]) -> None:
    """Refuse stored rows that are not those of the pairs; called when a store of pairs is opened.

    Raises:
        ValueError: another number of rows, or a row holds another ECG or other images than its pair.
    """
    if not len(pairs) == len(ecg_keys) == len(cmr_keys):
        raise ValueError(f"{len(pairs)} pairs, {len(ecg_keys)} ECGs and {len(cmr_keys)} images; build the store again")
    for row, (pair, ecg, cmr) in enumerate(zip(pairs, ecg_keys, cmr_keys, strict=True)):
        if (pair.ecg.key, pair.cmr.key) != (ecg, cmr):
            raise ValueError(
                f"row {row} holds another {'ECG' if pair.ecg.key != ecg else 'heart'} than its pair; build it again"
            )
