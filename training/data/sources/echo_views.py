"""Loops of all views as a source of records: loop i of a seed is always the same loop.

Every second one is apical four-chamber; the others take turns. Called by ``heart_arrays``.
"""

from __future__ import annotations

import numpy as np

from training.data.sources.phantom_hearts import Heart
from training.phantoms.echo_views import VIEWS, view_loop
from training.phantoms.subjects import draw_subject

VIEW_COLUMN = "view"
"""Target: number of the view in ``VIEWS``."""
_STREAM = 0x76696577


def draw_view(seed: int, index: int) -> Heart:
    """Return loop ``index`` of the set named by ``seed``, and the number of its view."""
    rng = np.random.default_rng([_STREAM, seed, index])
    subject = draw_subject(rng)
    number = view_number(index)
    return Heart(record=view_loop(VIEWS[number], subject, rng), targets={VIEW_COLUMN: float(number)})


def view_number(index: int) -> int:
    """Return the view of a loop: 0 for the even ones."""
    return 0 if index % 2 == 0 else 1 + (index // 2) % (len(VIEWS) - 1)
