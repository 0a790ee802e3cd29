"""Arms of a benchmark one after the other in every round, so that whatever else the machine does holds them up alike.

The order changes from round to round: an arm that clears the caches would otherwise hold up the same successor every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(
    arms: Mapping[str, Callable[[], Any]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the milliseconds of every arm in every round; one round before that is not counted.

    Args:
        arms: by name; all are known to be right before they are timed.
        rounds: that count.
        clock: seconds; ``time.process_time`` counts the processor alone.
    """
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for count in range(rounds + 1):
        for name in order_of_round(list(arms), count):
            started = clock()
            arms[name]()
            if count:
                taken[name].append(1000 * (clock() - started))
    return taken


def order_of_round(names: list[str], count: int) -> list[str]:
    """Every arm is first, and after either neighbour, alike often: turned by one every second round, reversed in between."""
    start = count // 2 % len(names)
    turned = names[start:] + names[:start]
    return turned[::-1] if count % 2 else turned
