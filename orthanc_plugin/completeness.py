"""When a study is ready: a pure function of what arrived, when, and what time it is now.

No clock, no Orthanc, no log in here; times are seconds of a monotonic clock. A decision that comes too early is
repaired by a further revision, one that never comes would lose a study: ``decide`` always names a time.

- ``ecg``: at once, after a tiny debounce.
- ``echo``: a quiet time that adapts to the sender, four times its longest pause so far, between two bounds.
- ``cmr``: at once where every MR series holds the images its header states and at least one is a stack of
  slices x phases; otherwise a quiet time. Header totals may be too high (the sender left images out) or absent; then
  the quiet time decides. A stack that is only 'whole so far' does not count: a sender may go slice by slice.

Source: PS3.3 C.8.3 and C.7.6.18.1 for (0018,1090), C.7.6.1 for (0020,1002), C.7.6.4b for (0020,0105).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

RULE_ECG = "ecg.at-once"
RULE_ECHO_QUIET = "echo.quiet-time"
RULE_CMR_WHOLE = "cmr.slices-x-phases"
RULE_CMR_QUIET = "cmr.quiet-time"
RULE_LONGEST_WAIT = "longest-wait"

PAUSE_FACTOR = 4.0
"""The echo quiet time is this multiple of the longest pause between two arrivals."""

STACK_SLICES = 3
"""A short-axis stack has at least this many slice positions; single slices never end the wait at once."""


@dataclass(frozen=True, kw_only=True)
class Waits:
    """The waiting times in seconds (see ``Settings``)."""

    ecg_debounce_s: float
    echo_quiet_s: float
    echo_quiet_min_s: float
    echo_quiet_max_s: float
    cmr_quiet_s: float
    longest_wait_s: float


@dataclass(frozen=True)
class Arrivals:
    """When instances of one study and modality arrived since it was last announced.

    Args:
        first_s: the first arrival.
        last_s: the last arrival, never before ``first_s``.
        longest_pause_s: longest time between two arrivals seen apart, or None while all came together.
    """

    first_s: float
    last_s: float
    longest_pause_s: float | None = None

    def and_at(self, arrived_s: float) -> Arrivals:
        """With one more arrival; a time before the last one counts as the same moment."""
        arrived_s = max(arrived_s, self.last_s)
        pause_s = arrived_s - self.last_s
        longest_s = pause_s if self.longest_pause_s is None else max(pause_s, self.longest_pause_s)
        return Arrivals(self.first_s, arrived_s, longest_s)


@dataclass(frozen=True)
class Decision:
    """The study is ready at ``ready_s``, for the reason ``rule``, unless something more arrives before."""

    ready_s: float
    rule: str


@dataclass(frozen=True)
class SeriesCount:
    """How far one MR series has come, from its header and the number of its instances.

    Args:
        instance_count: instances stored.
        stated_total: images the header says there are, or None.
        phases: Cardiac Number of Images (0018,1090), or None.
    """

    instance_count: int
    stated_total: int | None
    phases: int | None

    @property
    def reached(self) -> bool:
        """True where the stated total is known and stored."""
        return self.stated_total is not None and self.instance_count >= self.stated_total


def decide(modality: str, arrivals: Arrivals, *, whole: bool, waits: Waits) -> Decision:
    """When the study will be ready if nothing more arrives.

    Args:
        modality: ``cmr``, ``echo`` or ``ecg``.
        arrivals: what arrived so far.
        whole: True where ``is_whole`` says so (only asked of ``cmr``).
        waits: the waiting times.

    Returns:
        A time between the first arrival and ``longest_wait_s`` after it, and the rule that set it.
    """
    quiet = _quiet(modality, arrivals, whole=whole, waits=waits)
    latest_s = arrivals.first_s + waits.longest_wait_s
    return quiet if quiet.ready_s <= latest_s else Decision(latest_s, RULE_LONGEST_WAIT)


def _quiet(modality: str, arrivals: Arrivals, *, whole: bool, waits: Waits) -> Decision:
    if modality == "ecg":
        return Decision(arrivals.last_s + waits.ecg_debounce_s, RULE_ECG)
    if modality == "echo":
        return Decision(arrivals.last_s + echo_quiet_s(arrivals, waits), RULE_ECHO_QUIET)
    if whole:
        return Decision(arrivals.last_s, RULE_CMR_WHOLE)
    return Decision(arrivals.last_s + waits.cmr_quiet_s, RULE_CMR_QUIET)


def echo_quiet_s(arrivals: Arrivals, waits: Waits) -> float:
    """Adaptive quiet time in seconds: short for a fast sender, longer for a slow one, within the bounds."""
    if arrivals.longest_pause_s is None:
        return waits.echo_quiet_s
    return min(max(PAUSE_FACTOR * arrivals.longest_pause_s, waits.echo_quiet_min_s), waits.echo_quiet_max_s)


def series_count(header: Mapping[str, str], instance_count: int) -> SeriesCount:
    """Read the totals of an MR series from Orthanc's main DICOM tags.

    Images in Acquisition (0020,1002) times Number of Temporal Positions (0020,0105), where both are stated.
    """
    images = _positive(header.get("ImagesInAcquisition"))
    repeats = _positive(header.get("NumberOfTemporalPositions")) or 1
    total = None if images is None else images * repeats
    return SeriesCount(instance_count, total, _positive(header.get("CardiacNumberOfImages")))


def is_whole(series: Iterable[tuple[SeriesCount, Counter[str]]]) -> bool:
    """True where every MR series of a study is stored as stated and one of them is a stack of slices x phases.

    Args:
        series: for each MR series its counts and how many instances lie at each Image Position (0020,0032).
    """
    stacks = 0
    for count, positions in series:
        if not count.reached:
            return False
        if count.phases is not None and count.phases > 1:
            if any(held != count.phases for held in positions.values()):
                return False
            stacks += len(positions) >= STACK_SLICES
    return stacks > 0


def _positive(text: str | None) -> int | None:
    try:
        number = int((text or "").strip())
    except ValueError:
        return None
    return number if number > 0 else None
