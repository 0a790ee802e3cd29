"""Processes that make arrays of records, each on one core: the one place that starts them. Called by the command line too.

Products of many small matrices are thirty times slower when the BLAS library of every process asks for all cores.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.pool import Pool

import numpy as np  # noqa: F401 - loads the library whose threads are limited
import scipy.linalg  # noqa: F401 - likewise
from threadpoolctl import threadpool_limits


def worker_pool(workers: int) -> Pool:
    """Return a pool of fresh processes whose BLAS uses one thread each; a context manager."""
    return multiprocessing.get_context("spawn").Pool(workers, initializer=use_one_thread)


def use_one_thread() -> None:
    """Let numpy and scipy multiply matrices on the thread that asks for it; torch has threads of its own."""
    threadpool_limits(limits=1, user_api="blas")
