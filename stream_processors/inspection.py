"""What an operator asks: does everything answer, where do the studies stand. For ``purkinje check`` and ``status``."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.errors import BundleError, DeviceLost
from engines.records import Modality
from orthanc_plugin.wire.events import RESULT_TOPIC, EventError, ready_topic
from orthanc_plugin.wire.log import Log, LogUnavailable
from stream_processors.errors import PacsError, ProcessorError
from stream_processors.events import parse_outcome
from stream_processors.pacs.orthanc_rest import OrthancRest
from stream_processors.processors import open_settings_log
from stream_processors.publisher import dead_letters
from stream_processors.settings import Settings

_PIXELMED = Path("/usr/share/java/pixelmed.jar")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what.
        ok: True works, False does not, None is missing but not needed to serve.
        detail: what was found.
        remedy: what to do about it, or empty.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class _Program:
    name: str
    package: str
    purpose: str


_VALIDATORS = (
    _Program(name="dciodvfy", package="dicom3tools", purpose="checks reports against the IODs"),
    _Program(name="dsrdump", package="dcmtk", purpose="prints reports as a tree"),
    _Program(name="dsr2html", package="dcmtk", purpose="prints reports as a page"),
    _Program(name="java", package="default-jre-headless", purpose="runs PixelMed's SR validator and Kafka"),
)


def check(settings: Settings) -> Iterator[Finding]:
    """Look at everything a processor needs, one finding after the other; nothing is changed."""
    yield _log_finding(settings)
    yield from _pacs_findings(settings)
    for modality in settings.modalities:
        yield _engine_finding(modality, settings)
    if "tensorrt" in settings.engine.runtimes:
        from stream_processors.gpu_findings import gpu_findings

        yield from gpu_findings(settings.engine.gpu)
    for program in _VALIDATORS:
        yield _program_finding(program)
    yield _pixelmed_finding()


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where the studies stand now. ``None`` where the part that knows does not answer.

    ``processors`` is what their status file says, and ``running``: whether that process is there.
    """

    pacs: Finding
    plugin: dict[str, Any] | None
    log: Finding
    lag: dict[str, int] | None
    outcomes: dict[str, dict[str, int]] | None
    dead_letters: int | None
    processors: dict[str, Any] | None = None


def status(settings: Settings) -> Status:
    """Ask the PACS, the plugin and the log."""
    reader = OrthancRest(settings.pacs.rest, largest_study_bytes=settings.pacs.largest_study_bytes)
    try:
        pacs = _answers("PACS", reader.ping)
        plugin = reader.plugin_status() if pacs.ok else None
    except PacsError:
        plugin = None
    finally:
        reader.close()
    return replace(_with_log(settings, pacs, plugin), processors=read_processors(settings.status_file))


def read_processors(path: Path | None) -> dict[str, Any] | None:
    """What the processors say of themselves in their status file; None without one."""
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path else None
        return None if said is None else {**said, "running": said["state"] != "stopped" and _lives(int(said["pid"]))}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, but there
        return True
    return True


def _with_log(settings: Settings, pacs: Finding, plugin: dict[str, Any] | None) -> Status:
    try:
        log = open_settings_log(settings)
    except (LogUnavailable, ProcessorError) as error:
        found = Finding(name="log", ok=False, detail=str(error))
        return Status(pacs=pacs, plugin=plugin, log=found, lag=None, outcomes=None, dead_letters=None)
    try:
        return Status(
            pacs=pacs,
            plugin=plugin,
            log=_answers("log", log.ping),
            lag=_lag(settings, log),
            outcomes=count_outcomes(log),
            dead_letters=len(dead_letters(log)),
        )
    except LogUnavailable as error:
        found = Finding(name="log", ok=False, detail=str(error))
        return Status(pacs=pacs, plugin=plugin, log=found, lag=None, outcomes=None, dead_letters=None)
    finally:
        log.close()


def _lag(settings: Settings, log: Log) -> dict[str, int]:
    lag: dict[str, int] = {}
    for modality in settings.modalities:
        lag |= log.lag([ready_topic(modality)], group=settings.group_of(modality))
    return lag


def count_outcomes(log: Log) -> dict[str, dict[str, int]]:
    """Announcements by modality and outcome; one that ended more than once counts with its last end."""
    last: dict[str, tuple[str, str]] = {}
    for record in log.read(RESULT_TOPIC):
        try:
            data = parse_outcome(record.headers, record.value)
        except EventError:
            continue  # a newer version's outcome is counted by the newer version
        last[data["claim_event_id"]] = (data["modality"], data["outcome"])
    counted = Counter(last.values())
    modalities = sorted({modality for modality, _ in counted})
    return {
        modality: {outcome: count for (of, outcome), count in sorted(counted.items()) if of == modality}
        for modality in modalities
    }


def _log_finding(settings: Settings) -> Finding:
    remedy = "start the log, or correct PURKINJE_LOG"
    try:
        log = open_settings_log(settings)
    except (LogUnavailable, ProcessorError) as error:
        return Finding(name="log", ok=False, detail=str(error), remedy=remedy)
    try:
        _lag(settings, log)
        return Finding(name="log", ok=True, detail=log.ping())
    except LogUnavailable as error:
        return Finding(name="log", ok=False, detail=str(error), remedy=remedy)
    finally:
        log.close()


def _pacs_findings(settings: Settings) -> Iterator[Finding]:
    reader = OrthancRest(settings.pacs.rest, largest_study_bytes=settings.pacs.largest_study_bytes)
    try:
        found = _answers(
            "PACS", reader.ping, remedy="start Orthanc, or correct PURKINJE_PACS__REST__URL and credentials"
        )
        yield found
        if found.ok:
            yield _plugin_finding(reader)
    finally:
        reader.close()
    if settings.pacs.dimse is not None:
        from stream_processors.pacs.association import echo
        from stream_processors.pacs.dimse import peer_of

        peer = peer_of(settings.pacs.dimse)
        yield _answers("archive", lambda: echo(peer), remedy="enter both AE titles in the archive, check host and port")


def _plugin_finding(reader: OrthancRest) -> Finding:
    remedy = "load deploy/orthanc's entry script in Orthanc (PythonScript) and restart it"
    try:
        said = reader.plugin_status()
    except PacsError as error:
        return Finding(name="plugin", ok=False, detail=str(error), remedy=remedy)
    if said is None:
        return Finding(name="plugin", ok=False, detail="not loaded: no study is announced", remedy=remedy)
    return Finding(name="plugin", ok=True, detail=f"loaded, {len(said)} entries at /purkinje/status")


def _engine_finding(modality: Modality, settings: Settings) -> Finding:
    from stream_processors.routes import open_engine

    name = f"engine {modality.value}"
    try:
        engine = open_engine(modality, settings.engine, build=False)
    except DeviceLost as error:
        return Finding(name=name, ok=False, detail=str(error), remedy="look at nvidia-smi and dmesg, then check again")
    except BundleError as error:
        remedy = "reinstall purkinje, or correct PURKINJE_ENGINE__BUNDLES"
        return Finding(name=name, ok=False, detail=str(error), remedy=remedy)
    identity = engine.identity
    rejected = "".join(f"; rejected {sentence}" for sentence in engine.rejected_runtimes)
    fallback = f"; a fallback: {identity.fallback}" if identity.fallback else ""
    engine.close()
    where = f"{identity.runtime}, {identity.device}, {identity.precision}"
    return Finding(name=name, ok=True, detail=f"{identity.name} {identity.version} on {where}{rejected}{fallback}")


def _program_finding(program: _Program) -> Finding:
    found = shutil.which(program.name)
    if found:
        return Finding(name=program.name, ok=True, detail=found)
    remedy = f"sudo apt-get install {program.package}"
    return Finding(name=program.name, ok=None, detail=f"missing; {program.purpose}", remedy=remedy)


def _pixelmed_finding() -> Finding:
    if _PIXELMED.exists():
        return Finding(name="PixelMed", ok=True, detail=str(_PIXELMED))
    return Finding(
        name="PixelMed", ok=None, detail="missing; checks reports", remedy="sudo apt-get install libpixelmed-java"
    )


def _answers(name: str, ask: Callable[[], str], *, remedy: str = "") -> Finding:
    try:
        return Finding(name=name, ok=True, detail=ask())
    except (ProcessorError, LogUnavailable) as error:
        return Finding(name=name, ok=False, detail=str(error), remedy=remedy)
