"""The completeness rules, as a pure function of arrivals and time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orthanc_plugin.completeness import (
    RULE_CMR_QUIET,
    RULE_CMR_WHOLE,
    RULE_ECG,
    RULE_ECHO_QUIET,
    RULE_LONGEST_WAIT,
    Arrivals,
    SeriesCount,
    Waits,
    decide,
    echo_quiet_s,
    is_whole,
    series_count,
)

WAITS = Waits(
    ecg_debounce_s=0.25, echo_quiet_s=5, echo_quiet_min_s=3, echo_quiet_max_s=15, cmr_quiet_s=20, longest_wait_s=900
)
TIMES = st.floats(0, 1e6, allow_nan=False)
MODALITIES = st.sampled_from(["cmr", "echo", "ecg"])


def arrivals(*times: float) -> Arrivals:
    """Arrivals at these seconds."""
    seen = Arrivals(times[0], times[0])
    for time_s in times[1:]:
        seen = seen.and_at(time_s)
    return seen


def test_an_ecg_is_ready_at_once() -> None:
    """An ECG waits for the debounce only."""
    decision = decide("ecg", arrivals(10.0), whole=False, waits=WAITS)
    assert (decision.ready_s, decision.rule) == (10.25, RULE_ECG)


def test_an_echo_of_unknown_pace_waits_the_default() -> None:
    """While all clips came at one moment, the default quiet time holds."""
    decision = decide("echo", arrivals(10.0), whole=False, waits=WAITS)
    assert (decision.ready_s, decision.rule) == (15.0, RULE_ECHO_QUIET)


def test_the_echo_quiet_time_follows_the_sender() -> None:
    """Four times the longest pause, never below or above the bounds."""
    assert echo_quiet_s(arrivals(0, 0.1, 0.2), WAITS) == 3
    assert echo_quiet_s(arrivals(0, 2.0, 2.5), WAITS) == 8
    assert echo_quiet_s(arrivals(0, 60.0), WAITS) == 15


def test_cmr_waits_its_quiet_time_unless_whole() -> None:
    """Twenty seconds after the last image, or at once when slices x phases are complete."""
    assert decide("cmr", arrivals(0, 4.0), whole=False, waits=WAITS).ready_s == 24.0
    assert decide("cmr", arrivals(0, 4.0), whole=False, waits=WAITS).rule == RULE_CMR_QUIET
    whole = decide("cmr", arrivals(0, 4.0), whole=True, waits=WAITS)
    assert (whole.ready_s, whole.rule) == (4.0, RULE_CMR_WHOLE)


def test_a_study_that_never_falls_quiet_is_announced_all_the_same() -> None:
    """The longest wait ends every waiting."""
    decision = decide("cmr", arrivals(*range(0, 1000, 10)), whole=False, waits=WAITS)
    assert (decision.ready_s, decision.rule) == (900, RULE_LONGEST_WAIT)


@given(MODALITIES, st.lists(TIMES, min_size=1, max_size=30), st.booleans())
def test_every_study_becomes_ready(modality: str, times: list[float], whole: bool) -> None:
    """Whatever arrives in whatever order of clock readings, there is a time, within the longest wait."""
    seen = arrivals(*times)
    decision = decide(modality, seen, whole=whole, waits=WAITS)
    assert seen.first_s <= decision.ready_s <= seen.first_s + WAITS.longest_wait_s
    assert decision.rule


@given(MODALITIES, st.lists(TIMES, min_size=1, max_size=30), TIMES)
def test_a_further_arrival_never_makes_the_wait_end_before_it(modality: str, times: list[float], later: float) -> None:
    """Readiness lies after the last arrival, unless the longest wait is over."""
    seen = arrivals(*times, later)
    decision = decide(modality, seen, whole=False, waits=WAITS)
    assert decision.ready_s >= seen.last_s or decision.rule == RULE_LONGEST_WAIT


def test_a_clock_reading_before_the_last_one_counts_as_the_same_moment() -> None:
    """Arrivals never run backwards."""
    assert arrivals(10.0, 4.0) == Arrivals(10.0, 10.0, 0.0)


def test_totals_come_from_the_header() -> None:
    """Images in Acquisition times temporal positions; zero, absent and nonsense say nothing."""
    header = {"ImagesInAcquisition": "240", "CardiacNumberOfImages": "20"}
    assert series_count(header, 3) == SeriesCount(3, 240, 20)
    assert series_count({"ImagesInAcquisition": "12", "NumberOfTemporalPositions": "5"}, 3).stated_total == 60
    assert series_count({"CardiacNumberOfImages": "0", "ImagesInAcquisition": "x"}, 3) == SeriesCount(3, None, None)


def stack(slices: int, phases: int, total: int | None = None) -> tuple[SeriesCount, Counter[str]]:
    """A full stack whose header states its own size, or another one."""
    positions = Counter({f"0\\0\\{8 * number}": phases for number in range(slices)})
    count = slices * phases
    return SeriesCount(count, count if total is None else total, phases), positions


def test_a_stack_with_all_slices_and_phases_is_whole() -> None:
    """Every stated image is there and every slice holds all its phases."""
    assert is_whole([stack(10, 20)])


def test_a_stack_that_is_only_whole_so_far_is_not_whole() -> None:
    """A sender that goes slice by slice has whole slices all the time; the stated total decides."""
    assert not is_whole([stack(6, 20, total=200)])
    count, positions = stack(6, 20)
    assert not is_whole([(SeriesCount(count.instance_count, None, 20), positions)])


def test_a_slice_without_all_its_phases_is_not_whole() -> None:
    """The total alone does not do: one slice has a phase too few, another one too many."""
    count, positions = stack(10, 20)
    positions["0\\0\\0"] -= 1
    positions["0\\0\\8"] += 1
    assert not is_whole([(count, positions)])


def test_other_series_must_be_complete_too_and_alone_never_suffice() -> None:
    """A scout with an open end keeps the study waiting; scouts or single slices alone are never whole."""
    scout = (SeriesCount(15, 15, None), Counter({"a": 15}))
    open_scout = (SeriesCount(3, 15, None), Counter({"a": 3}))
    assert is_whole([stack(10, 20), scout])
    assert not is_whole([stack(10, 20), open_scout])
    assert not is_whole([scout])
    assert not is_whole([stack(1, 20)])
    assert not is_whole([])
