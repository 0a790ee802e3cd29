"""``purkinje demo``: real C-STORE in, reports out, on this machine, and nothing left running."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import httpx
from PIL import Image
from pydicom import dcmread
from rich.console import Console

from orthanc_plugin.wire.events import is_uid
from stream_processors.local.arrivals import PHANTOM_METHODS, Arrival, arrivals_in, make_phantoms, of_truths
from stream_processors.local.ledger import Account
from stream_processors.local.orthanc import AE_TITLE
from stream_processors.local.results import summarise, table_of, write_summary
from stream_processors.local.stack import LocalStack, StackFailed

DEMO_SEED = 2026
WHERE_TO_LOOK = """
Where to look next: `make viewer` shows the reports in OHIF, `make demo KEEP=1` keeps everything up and prints the addresses,
`make demo OUT=dir` leaves summary.json and the reports, `make demo INPUT=path` reads your own DICOM files."""
_PATIENCE_S = 180.0
_POLL_S = 0.3


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the user asked for; see ``purkinje demo --help``."""

    input: Path | None
    out: Path | None
    log: Literal["sqlite", "kafka"]
    keep: bool
    viewer: bool


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the demo; return the exit code (0 when every study has its outcome)."""
    with tempfile.TemporaryDirectory(prefix="purkinje-demo-") as name:
        folder = Path(name)
        arrivals = _arrivals(options.input, folder, console)
        stack = LocalStack(folder / "stack", log=options.log)
        with console.status(f"starting Orthanc, the {options.log} log and the processors"):
            stack.start()
        try:
            return _through(stack, arrivals, options, console)
        finally:
            stack.stop()


def _arrivals(given: Path | None, folder: Path, console: Console) -> list[Arrival]:
    if given is not None:
        return arrivals_in(given)
    with console.status("making one phantom study each: cardiac MR, echo, ECG"):
        return of_truths(make_phantoms(PHANTOM_METHODS, seed=DEMO_SEED, count=1, out=folder / "phantoms"))


def _through(stack: LocalStack, arrivals: Sequence[Arrival], options: DemoOptions, console: Console) -> int:
    send(stack, arrivals, console)
    studies = [arrival.study_instance_uid for arrival in arrivals]
    entries = summarise(wait_for_outcomes(stack, studies, console), studies)
    reports = fetch_reports(stack, entries)
    pictures = fetch_pictures(stack, entries, reports)
    if options.out is not None:
        _leave(options.out, entries, reports, pictures)
    console.print(table_of(entries))
    _show_one(reports, console)
    if options.out is not None:
        console.print(f"\n{options.out / 'summary.json'} and {len(reports)} files in {options.out / 'reports'}")
        for uid in pictures:
            console.print(f"What carries an answer: {options.out / 'pictures' / uid}.png")
    if options.keep:
        _keep_up(stack, options, console)
    else:
        console.print(WHERE_TO_LOOK)
    return 0


def send(stack: LocalStack, arrivals: Sequence[Arrival], console: Console) -> None:
    """C-STORE every file of every arrival."""
    from stream_processors.pacs.send import send_files

    files = [file for arrival in arrivals for file in arrival.files]
    port = stack.orthanc.dicom_port
    result = send_files(files, host="127.0.0.1", port=port, called_ae_title=AE_TITLE, console=console)
    for path, reason in (*result.skipped.items(), *result.failed.items()):
        console.print(f"not sent: {path}: {reason}", highlight=False, markup=False)


def wait_for_outcomes(stack: LocalStack, studies: Sequence[str], console: Console) -> Account:
    """Return once every announced study has ended and the plugin waits for nothing more.

    Raises:
        StackFailed: the processors died, or patience ran out; the message says what is missing.
    """
    deadline = time.monotonic() + max(_PATIENCE_S, 10.0 * len(studies))
    with console.status("") as status:
        while time.monotonic() < deadline:
            settled, account = _look(stack)
            ended = sum(bool(account.of_study(study)) for study in studies)
            status.update(f"{len(account.announced)} announced, {ended} of {len(studies)} studies ended")
            if settled:
                return account
            time.sleep(_POLL_S)
    missing = [event.study_instance_uid for event in account.open_events]
    raise StackFailed(f"not ended in time: {missing or 'the plugin still waits'}\n{stack.processor_log_tail()}")


def _look(stack: LocalStack) -> tuple[bool, Account]:
    if stack.processors is not None and stack.processors.poll() is not None:
        raise StackFailed(f"the processors ended with {stack.processors.returncode}:\n{stack.processor_log_tail()}")
    quiet = _plugin_waits_for_nothing(stack)  # first: what it announces later, the account below would miss
    account = stack.account()
    return quiet and not account.open_events, account


def _plugin_waits_for_nothing(stack: LocalStack) -> bool:
    status = stack.plugin_status()
    last = httpx.get(f"{stack.orthanc.url}/changes?last", timeout=10).json()["Last"]
    walked, pending = int(status["walked"] or 0), int(status["backlog"]["pending"])
    return bool(status["state"] == "running") and walked >= int(last) and pending == 0


def fetch_reports(stack: LocalStack, entries: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """Fetch every report and companion back from the PACS: Part 10 bytes by SOP Instance UID."""
    roles = ("report_sop_instance_uid", "companion_sop_instance_uid")
    uids = [entry[role] for entry in entries for role in roles if entry.get(role)]
    with httpx.Client(base_url=stack.orthanc.url, timeout=30) as client:
        return {uid: _file(client, uid) for uid in uids}


def fetch_pictures(stack: LocalStack, entries: Sequence[dict[str, Any]], reports: dict[str, bytes]) -> dict[str, bytes]:
    """Fetch the images that reports refer to as what carries their answer: Part 10 bytes by SOP Instance UID."""
    from stream_processors.reports.read import read_report

    main = [reports[uid] for uid in (entry.get("report_sop_instance_uid") for entry in entries) if uid]
    uids = [read_report(dcmread(BytesIO(report))).picture_sop_instance_uid for report in main]
    with httpx.Client(base_url=stack.orthanc.url, timeout=30) as client:
        return {uid: _file(client, uid) for uid in uids if uid is not None}


def _file(client: httpx.Client, uid: str) -> bytes:
    assert is_uid(uid)
    found = client.post("/tools/lookup", content=uid).raise_for_status().json()
    instance = next(each["ID"] for each in found if each["Type"] == "Instance")
    return client.get(f"/instances/{instance}/file").raise_for_status().content


def _show_one(reports: dict[str, bytes], console: Console) -> None:
    from stream_processors.reports.read import render_tree

    if reports:
        console.print("\nOne of the reports, as it stands in the PACS:", style="bold")
        console.print(render_tree(next(iter(reports.values()))), highlight=False, markup=False)


def _leave(out: Path, entries: Sequence[dict[str, Any]], reports: dict[str, bytes], pictures: dict[str, bytes]) -> None:
    write_summary(out, entries)
    for folder in ("reports", "pictures"):
        (out / folder).mkdir(exist_ok=True)
    for uid, content in reports.items():
        (out / "reports" / f"{uid}.dcm").write_bytes(content)
    for uid, content in pictures.items():
        Image.fromarray(dcmread(BytesIO(content)).pixel_array).save(out / "pictures" / f"{uid}.png")


def _keep_up(stack: LocalStack, options: DemoOptions, console: Console) -> None:
    from stream_processors.local.viewer import LocalViewer

    console.print(f"\nOrthanc: {stack.orthanc.url}  (DICOM port {stack.orthanc.dicom_port}, AE title ORTHANC)")
    console.print(f"Plugin:  {stack.orthanc.url}/purkinje/status")
    console.print(f"Log:     {stack.log_url}")
    viewer = LocalViewer(stack.orthanc.url) if options.viewer else None
    try:
        if viewer is not None:
            viewer.start()
            console.print(f"Viewer:  {viewer.url}", style="bold")
        console.print("Ctrl-C ends it.")
        _until_interrupted()
    finally:
        if viewer is not None:
            viewer.stop()


def _until_interrupted() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
