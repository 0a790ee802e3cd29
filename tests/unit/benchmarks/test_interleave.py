"""Arms of a benchmark: each once a round, in an order that changes, and the first round is not counted."""

from __future__ import annotations

from collections import Counter
from itertools import count, permutations

from tests.benchmarks.interleave import interleaved


def test_each_arm_runs_once_a_round_and_all_orders_take_turns() -> None:
    """Twelve rounds of three arms, one of them not counted: each of the six orders twice."""
    ran: list[str] = []
    taken = interleaved({name: lambda name=name: ran.append(name) for name in "abc"}, 11)
    rounds = [tuple(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert Counter(rounds) == dict.fromkeys(permutations("abc"), 2)
    assert {name: len(times) for name, times in taken.items()} == {"a": 11, "b": 11, "c": 11}


def test_times_are_milliseconds_of_the_clock_after_a_first_round() -> None:
    """A clock that reads one second more each time gives 1,000 ms; what ran in the first round stands nowhere."""
    seconds = count()
    taken = interleaved({"only": lambda: next(seconds) if next(seconds) < 3 else None}, 4, clock=lambda: next(seconds))
    assert taken == {"only": [2000.0, 2000.0, 2000.0, 2000.0]}
