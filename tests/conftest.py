"""Markers by folder, and the sample data that some tests read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_MARKERS = {
    "unit": "unit",
    "contract": "contract",
    "integration": "integration",
    "e2e": "e2e",
    "gpu": "gpu",
    "fuzz": "fuzz",
    "benchmarks": "benchmark",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the marker of its folder, so that nobody forgets one."""
    for item in items:
        folder = Path(item.path).relative_to(ROOT / "tests").parts[0]
        if folder in _MARKERS:
            item.add_marker(_MARKERS[folder])


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Public sample files; a test that needs them skips where they are absent."""
    folder = Path(os.environ.get("CARDIAC_SAMPLE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data: neither CARDIAC_SAMPLE_DATA nor {folder.name} beside the repository")
    return folder
