"""``purkinje``: the processors and the tools around them.

Every command imports what it needs when it runs, so that ``--help`` answers at once. Exit codes: 0 done, 1 something
was not as it should be (the output says what), 2 wrong usage or settings, 3 an engine needs an operator.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console

    from stream_processors.settings import Settings

EXIT_NOT_WELL = 1
EXIT_USAGE = 2
EXIT_OPERATOR = 3

_settings_option = click.option(
    "--settings",
    "settings_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML or JSON file with settings; the environment (PURKINJE_...) wins over it.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="purkinje")
def main() -> None:
    r"""Cardiac AI on PACS arrival: studies come in by C-STORE, DICOM Structured Reports go back.

    \b
    To see it work:       purkinje demo
    To serve:             purkinje check, then purkinje run
    To look after it:     purkinje status, purkinje dead-letter list

    Needed to serve: PURKINJE_SITE_URL (this site's own address, part of every report's UID) and PURKINJE_LOG
    (sqlite:///absolute/path.db or kafka://host:port). `purkinje settings` shows everything else.
    """


@main.command("demo")
@click.option("--input", "input_path", type=click.Path(path_type=Path), help="Your DICOM file or folder, not phantoms.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Leave summary.json and reports/*.dcm here."
)
@click.option(
    "--log", type=click.Choice(["sqlite", "kafka"]), default="sqlite", show_default=True, help="The log to use."
)
@click.option("--keep", is_flag=True, help="Keep everything up until Ctrl-C and print the addresses.")
@click.option("--viewer", is_flag=True, help="Put the OHIF viewer in front (with --keep).")
def demo_command(
    input_path: Path | None, out: Path | None, log: Literal["sqlite", "kafka"], *, keep: bool, viewer: bool
) -> None:
    """Show it: start Orthanc and the processors here, send studies by C-STORE, print what came back."""
    from stream_processors.local.demo import DemoOptions, run_demo

    _silence_libraries()
    with _explained():
        options = DemoOptions(input=input_path, out=out, log=log, keep=keep, viewer=viewer)
        sys.exit(run_demo(options, _wide_console()))


@main.command("verify")
@click.option(
    "--method", type=click.Choice(["cmr", "echo", "ecg"]), required=True, help="What kind of phantoms to send."
)
@click.option("--seed", type=int, required=True, help="Any number: other hearts each time.")
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True, help="How many studies.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Leave verify.json and reports/*.dcm here."
)
@click.option(
    "--rotate",
    is_flag=True,
    help="Send each study also turned by 90, 180 and 270 degrees (cmr); fail when that changes an answer.",
)
def verify_command(method: str, seed: int, count: int, out: Path | None, *, rotate: bool) -> None:
    """Send new phantom studies through the whole way and hold each report against the truth."""
    if rotate and method != "cmr":
        msg = f"--rotate turns the images of cardiac MR studies; found --method {method}, expected --method cmr"
        raise click.UsageError(msg)
    from stream_processors.local.verify import VerifyOptions, run_verify

    _silence_libraries()
    with _explained():
        options = VerifyOptions(method=method, seed=seed, count=count, out=out, rotate=rotate)
        sys.exit(run_verify(options, _wide_console()))


@main.command("run")
@_settings_option
@click.option("--replaced", default="", hidden=True, help="When this process replaced itself; it writes this itself.")
def run_command(settings_path: Path | None, replaced: str) -> None:
    """Run the processors until SIGTERM: one lane each for CMR, echo and ECG."""
    from stream_processors.telemetry import configure_logging

    configure_logging()
    with _explained():
        settings = _load(settings_path)
        from stream_processors.processors import run
        from stream_processors.restart import replacements_of

        sys.exit(run(settings, replacements_of(replaced)))


@main.command("send")
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--ecg",
    "ecg_paths",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An ECG that is no DICOM (WFDB header, CardioSoft, aECG, Philips or MUSE XML); it is sent as a DICOM ECG.",
)
@click.option("--patient-id", help="Whose ECG it is, with --ecg; wins over the file.")
@click.option("--patient-name", help="Family^Given, with --ecg; wins over the file.")
@click.option("--accession", help="Accession number, with --ecg; wins over the file.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the PACS.")
@click.option("--port", default=4242, show_default=True, type=click.IntRange(1, 65535), help="Its DICOM port.")
@click.option("--called", default="ORTHANC", show_default=True, help="Its AE title.")
@click.option("--calling", default="PURKINJE", show_default=True, help="Our AE title.")
@click.option("--timeout-s", default=60.0, show_default=True, help="Longest wait for one answer.")
def send_command(  # noqa: PLR0913, PLR0917 - one parameter per option
    paths: tuple[Path, ...],
    ecg_paths: tuple[Path, ...],
    patient_id: str | None,
    patient_name: str | None,
    accession: str | None,
    host: str,
    port: int,
    called: str,
    calling: str,
    timeout_s: float,
) -> None:
    """Send DICOM files and folders to a PACS by C-STORE, unchanged; ECG files of other formats with --ecg."""
    if not paths and not ecg_paths:
        msg = "nothing to send: name DICOM files or folders, or an ECG file with --ecg"
        raise click.UsageError(msg)
    from stream_processors.pacs.association import Peer
    from stream_processors.pacs.ecg_object import Identity
    from stream_processors.pacs.send import SendResult, send_ecg_files, send_files

    _silence_libraries()
    address: dict[str, Any] = {"host": host, "port": port, "called_ae_title": called, "calling_ae_title": calling}
    identity = Identity(patient_id=patient_id, patient_name=patient_name, accession_number=accession)
    results = []
    with _explained():
        if paths:
            from rich.console import Console

            results.append(send_files(paths, **address, timeout_s=timeout_s, console=Console(stderr=True)))
        if ecg_paths:
            results.append(send_ecg_files(ecg_paths, Peer(**address, timeout_s=timeout_s), identity))
    result = SendResult()
    for each in results:
        result.sent += each.sent
        result.mended |= each.mended
        result.skipped |= each.skipped
        result.failed |= each.failed
    for path, reason in result.mended.items():
        click.echo(f"mended: {path}: {reason}", err=True)
    for path, reason in (*result.skipped.items(), *result.failed.items()):
        click.echo(f"{'not sent' if path in result.failed else 'skipped'}: {path}: {reason}", err=True)
    click.echo(f"{len(result.sent)} sent, {len(result.skipped)} skipped, {len(result.failed)} not sent")
    unsent_ecg = any(path in result.skipped for path in ecg_paths)
    sys.exit(EXIT_NOT_WELL if result.failed or unsent_ecg or not result.sent else 0)


@main.command("status")
@_settings_option
@_json_option
def status_command(settings_path: Path | None, *, as_json: bool) -> None:
    """Show where the studies stand: PACS, plugin, waiting, outcomes, dead letters."""
    with _explained():
        settings = _load(settings_path)
        from dataclasses import asdict

        from stream_processors.inspection import status
        from stream_processors.tables import status_table

        found = status(settings)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _print(status_table(found))
    sys.exit(0 if found.pacs.ok and found.log.ok else EXIT_NOT_WELL)


@main.command("check")
@_settings_option
@_json_option
def check_command(settings_path: Path | None, *, as_json: bool) -> None:
    """Check that PACS, log and engines answer; say what is missing and how to add it."""
    with _explained():
        settings = _load(settings_path)
        from dataclasses import asdict

        from rich.console import Console

        from stream_processors.inspection import check
        from stream_processors.tables import check_table

        with Console(stderr=True).status("checking; every engine replays its golden records"):
            findings = list(check(settings))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(check_table(findings))
    sys.exit(EXIT_NOT_WELL if any(finding.ok is False for finding in findings) else 0)


@main.command("settings")
@_settings_option
def settings_command(settings_path: Path | None) -> None:
    """Print the settings in effect as JSON, secrets masked."""
    with _explained():
        settings = _load(settings_path)
        from stream_processors.settings import masked

        click.echo(json.dumps(masked(settings), indent=2))


@main.command("replay")
@_settings_option
@click.option("--modality", type=click.Choice(["cmr", "echo", "ecg"]), help="Replay the announcements of one modality.")
@click.option("--topic", help="Replay one topic by its full name.")
@click.option("--since", help="From a time on: 2026-03-01T08:00+01:00, a date (UTC), or 90m, 24h, 7d ago.")
@click.option("--from-offset", type=click.IntRange(0), help="From an offset on, in each partition.")
@click.option("--limit", type=click.IntRange(1), help="At most so many messages for each topic.")
def replay_command(  # noqa: PLR0913, PLR0917 - one parameter per option
    settings_path: Path | None,
    modality: str | None,
    topic: str | None,
    since: str | None,
    from_offset: int | None,
    limit: int | None,
) -> None:
    """Give announcements to the engines again, beside the live traffic.

    A study whose report is there already is left as it is; a new engine writes a new report that names the old one as
    its predecessor.
    """
    from stream_processors.telemetry import configure_logging

    configure_logging()
    with _explained():
        settings = _load(settings_path)
        from datetime import UTC, datetime

        from stream_processors.replay import Selection, modalities_of, replay_all, since_ms_of

        since_ms = since_ms_of(since, datetime.now(UTC)) if since else None
        selection = Selection(since_ms=since_ms, from_offset=from_offset, limit=limit)
        counts = replay_all(settings, modalities_of(settings.modalities, modality=modality, topic=topic), selection)
    click.echo(json.dumps(counts))
    sys.exit(EXIT_NOT_WELL if counts.get("failed") else 0)


@main.group("dead-letter")
def dead_letter_group() -> None:
    """Look at the messages that were given up, and give them to the engines again."""


def _selection(command: Any) -> Any:
    for option in (
        click.option("--error", help="Only this error class, as the list shows it."),
        click.option("--topic", help="Only messages from this topic."),
        click.option("--since", help="Only those given up since a time; as for replay."),
    ):
        command = option(command)
    return command


@dead_letter_group.command("list")
@_settings_option
@_selection
@_json_option
def dead_letter_list_command(
    settings_path: Path | None, error: str | None, topic: str | None, since: str | None, *, as_json: bool
) -> None:
    """List what was given up and not redriven since."""
    with _explained():
        settings = _load(settings_path)
        from stream_processors.dead_letters import find, row
        from stream_processors.tables import letter_table

        letters = [row(letter) for letter in find(settings, error=error, topic=topic, since=since)]
    if as_json:
        click.echo(json.dumps(letters, indent=2))
    else:
        _print(letter_table(letters))


@dead_letter_group.command("redrive")
@_settings_option
@_selection
@click.option("--id", "ids", multiple=True, help="Only this one (topic/partition/offset); may be repeated.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def dead_letter_redrive_command(  # noqa: PLR0913 - one parameter per option
    settings_path: Path | None,
    error: str | None,
    topic: str | None,
    since: str | None,
    ids: tuple[str, ...],
    *,
    yes: bool,
) -> None:
    """Announce the selected messages again, after their cause was repaired."""
    with _explained():
        settings = _load(settings_path)
        from stream_processors.dead_letters import find, redrive

        letters = find(settings, error=error, topic=topic, since=since)
        letters = [letter for letter in letters if not ids or letter.letter_id in ids]
        if letters and not yes:
            click.confirm(f"Announce {len(letters)} message(s) again?", abort=True)
        redrive(settings, letters)
    click.echo(f"{len(letters)} announced again")


def _load(path: Path | None) -> Settings:
    from stream_processors.settings import load_settings

    return load_settings(path)


def _silence_libraries() -> None:
    """Parsers complain about data sets by quoting them; what matters is told by us."""
    import logging

    from stream_processors.telemetry import configure_logging

    configure_logging(level=logging.CRITICAL)


def _wide_console() -> Console:
    """The terminal as it is; wide where the output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=150)


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn our errors into one message and an exit code; a bug keeps its traceback."""
    from engines.errors import BundleError, DeviceLost
    from orthanc_plugin.wire.log import LogUnavailable
    from stream_processors.errors import ProcessorError, SettingsInvalid, Stopped

    try:
        yield
    except SettingsInvalid as error:
        click.echo(f"purkinje: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except (BundleError, DeviceLost, LogUnavailable, ProcessorError, FileNotFoundError) as error:
        click.echo(f"purkinje: {type(error).__name__}: {error}", err=True)
        sys.exit(EXIT_OPERATOR if isinstance(error, BundleError | Stopped) else EXIT_NOT_WELL)


if __name__ == "__main__":
    main()
