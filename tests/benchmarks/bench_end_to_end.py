"""Last instance stored to report stored, per modality, by stage; real Orthanc, embedded log, phantom studies."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from orthanc_plugin.wire.events import StudyReady
from stream_processors.local.arrivals import PHANTOM_METHODS, make_phantoms, of_truths
from stream_processors.local.demo import send, wait_for_outcomes
from stream_processors.local.ledger import Account
from stream_processors.local.stack import LocalStack, QuietTimes

PRODUCT_QUIET = QuietTimes(echo_s=5.0, cmr_s=20.0)


def main() -> None:
    """Send studies one after the other, so that none waits for another, and time each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truths = make_phantoms(PHANTOM_METHODS, seed=77, count=options.count, out=folder / "phantoms")
        with LocalStack(folder / "stack", quiet=PRODUCT_QUIET) as stack:
            for arrival in of_truths(truths):
                send(stack, [arrival], console)
                account = wait_for_outcomes(stack, [arrival.study_instance_uid], console)
            orthanc = httpx.get(f"{stack.orthanc.url}/system", timeout=10).json()["Version"]
    assert len(account.outcomes) == len(truths), "a study has no outcome"
    rows = [row(account, modality) for modality in PHANTOM_METHODS]
    environment = {"python": platform.python_version(), "Orthanc": orthanc, "machine": platform.machine()}
    options.out.write_text(
        json.dumps({"name": "last instance to report stored", "rows": rows, "environment": environment})
    )


def row(account: Account, modality: str) -> dict[str, Any]:
    """Medians per stage and the distribution of the whole, seconds."""
    ends = [ends[0] for ends in account.outcomes.values() if ends[0]["modality"] == modality]
    whole = sorted(whole_s(account.announced[end["claim_event_id"]], end) for end in ends)
    stages = {
        stage: statistics.median(end["stage_ms"].get(stage, 0.0) for end in ends) / 1000
        for stage in ends[0]["stage_ms"]
    }
    shown = {f"{stage}_s": seconds for stage, seconds in stages.items() if stage != "total"}
    last = whole[min(len(whole) - 1, round(0.95 * len(whole)))]
    return {"modality": modality, "studies": len(ends), "p50_s": statistics.median(whole), "p95_s": last, **shown}


def whole_s(event: StudyReady, end: dict[str, Any]) -> float:
    """From the last instance received to the outcome event, which follows the stored report."""
    received = datetime.fromisoformat(event.last_received_utc)
    return float(end["logged_ms"]) / 1000 - received.timestamp()


if __name__ == "__main__":
    main()
