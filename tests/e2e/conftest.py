"""The local stack for end-to-end tests, and phantoms that several of them send."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stream_processors.local.arrivals import make_phantoms
from stream_processors.local.orthanc import OrthancMissing, find_orthanc


def require(condition: bool, reason: str) -> None:
    """Skip with a reason on a developer's machine; fail in CI, where everything must be there."""
    if not condition:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def orthanc_installed() -> None:
    """Skips (fails in CI) where Orthanc is not installed."""
    try:
        find_orthanc()
    except OrthancMissing as error:
        require(condition=False, reason=str(error))


@pytest.fixture(scope="session")
def console() -> Console:
    """A console that prints to the captured output."""
    return Console(width=160)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Fifty studies of mixed modality with their truths: 24 ECG, 18 echo, 8 CMR."""
    folder: Path = tmp_path_factory.mktemp("phantoms")
    counts = {"ecg": 24, "echo": 18, "cmr": 8}
    return [
        truth for method, count in counts.items() for truth in make_phantoms([method], seed=50, count=count, out=folder)
    ]
