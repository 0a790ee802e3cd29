"""Processes that make arrays keep to one core each."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from training.data.worker_pool import use_one_thread, worker_pool


def blas_threads(_: int = 0) -> list[int]:
    """How many threads each BLAS library of this process uses."""
    assert np.ones((2, 2)).sum() == 4
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_a_process_is_told_to_use_one_thread() -> None:
    """Whatever it used before, it uses one."""
    with threadpool_limits(limits=2, user_api="blas"):
        assert set(blas_threads()) == {2}
        use_one_thread()
        assert set(blas_threads()) == {1}


def test_every_worker_uses_one_thread() -> None:
    """Fresh processes have the library loaded, and one thread in it."""
    with worker_pool(2) as pool:
        found = pool.map(blas_threads, range(4))
    assert all(each and set(each) == {1} for each in found)
