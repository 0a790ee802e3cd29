"""Markers by folder, and the sample data that some tests read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

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
_SLOW = {
    "contract/test_log.py",
    "contract/test_phantoms_decode.py",
    "contract/test_report_validators.py",
    "unit/engines/test_batcher.py",
    "unit/engines/test_build_compile.py",
    "unit/engines/test_build_precision.py",
    "unit/engines/test_decode_cmr.py",
    "unit/engines/test_enf_graph.py",
    "unit/engines/test_plan_cache.py",
    "unit/engines/test_plan_gate.py",
    "unit/engines/test_preprocess_cavity.py",
    "unit/engines/test_preprocess_cmr.py",
    "unit/engines/test_preprocess_cmr_volume.py",
    "unit/engines/test_preprocess_ecg.py",
    "unit/engines/test_sandbox.py",
    "unit/stream_processors/test_dimse.py",
    "unit/stream_processors/test_reports_identity.py",
    "unit/training/test_coreecho_net.py",
    "unit/training/test_coreecho_stages.py",
    "unit/training/test_coreecho_study.py",
    "unit/training/test_ecg_cmr_cross_modal.py",
    "unit/training/test_ecg_cmr_losses.py",
    "unit/training/test_ecg_cmr_release.py",
    "unit/training/test_ecg_cmr_stages.py",
    "unit/training/test_ecg_cmr_study.py",
    "unit/training/test_ecg_vit.py",
    "unit/training/test_enf_equivariance.py",
    "unit/training/test_enf_export.py",
    "unit/training/test_enf_fit.py",
    "unit/training/test_enf_hearts.py",
    "unit/training/test_enf_moving_graph_refused.py",
    "unit/training/test_enf_study.py",
    "unit/training/test_export.py",
    "unit/training/test_labelled_loops.py",
    "unit/training/test_loop.py",
    "unit/training/test_measured_stacks.py",
    "unit/training/test_pair_store.py",
    "unit/training/test_phantoms_cmr.py",
    "unit/training/test_phantoms_cmr_view.py",
    "unit/training/test_short_axis_unet.py",
    "unit/training/test_sources_cmr_dicom.py",
    "unit/training/test_tower_training.py",
    "unit/training/test_view_gate.py",
}
"""Files whose tests start processes, wait or train: together half of the time; ``make test-fast`` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the marker of its folder, so that nobody forgets one, and mark the slow files."""
    for item in items:
        path = Path(item.path).relative_to(ROOT / "tests")
        if path.parts[0] in _MARKERS:
            item.add_marker(_MARKERS[path.parts[0]])
        if path.as_posix() in _SLOW:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A test that runs a command in this process configures its log; the next one starts without."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Public sample files; a test that needs them skips where they are absent."""
    folder = Path(os.environ.get("CARDIAC_SAMPLE_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no sample data: neither CARDIAC_SAMPLE_DATA nor {folder.name} beside the repository")
    return folder
