"""Whatever is sent to Orthanc: nothing crashes, nothing hangs, each announced study ends once, with a reason."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from rich.console import Console

from stream_processors.local.demo import wait_for_outcomes
from stream_processors.local.ledger import as_json
from stream_processors.local.stack import LocalStack, QuietTimes

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("orthanc_installed")]


def test_decoys_and_malformed_files(sample_data: Path, tmp_path: Path, console: Console) -> None:
    """Decoys and broken files, posted to Orthanc: it lives, the processors live, every announcement has one end and a reason."""
    files = sorted(
        file for folder in ("decoy", "malformed", "sr") for file in (sample_data / folder).rglob("*") if file.is_file()
    )
    assert len(files) > 100
    with LocalStack(tmp_path, quiet=QuietTimes(echo_s=1.0, cmr_s=1.0)) as stack:
        with httpx.Client(base_url=stack.orthanc.url, timeout=60) as client:
            taken = sum(client.post("/instances", content=file.read_bytes()).status_code == 200 for file in files)
        assert taken > 20
        account = wait_for_outcomes(stack, [], console)
        assert stack.processors is not None
        assert stack.processors.poll() is None
        assert httpx.get(f"{stack.orthanc.url}/system", timeout=10).status_code == 200
    assert account.announced
    assert not account.contradictions
    for ends in account.outcomes.values():
        assert ends[0]["outcome"] in {"refused", "not_applicable", "abstained", "failed"}, as_json(account)
        assert ends[0]["reason_code"], as_json(account)
        assert ends[0]["reason"], as_json(account)
