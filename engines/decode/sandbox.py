"""Decoding in a child process with limits, so that no file can stop, fill or slow down the processor (ADR 3).

One child serves study after study. It gets the descriptor of a spool and answers with arrays and header extracts; where
it dies or exceeds its time, the study is refused and the next one gets a new child. Used by ``stream_processors``.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.decode.exchange import reading_from_message, receive, send
from engines.decode.spool import Spool
from engines.decode.study import StudyReading
from engines.errors import InferenceError, InputRefused, RefusalCode
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec
from engines.records import Modality

if TYPE_CHECKING:
    from engines.preprocess.cmr_volume import CmrVolumeSpec

START_TIMEOUT_S = 60.0
_NO_ANSWER = (EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)
"""The child is gone, or what it said is no answer: a file may have made it say anything."""


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What one study may cost.

    Args:
        memory_bytes: address space of the child (RLIMIT_AS), libraries included.
        cpu_s: processor time of one study.
        wall_s: time until the parent gives up.
    """

    memory_bytes: int = 4 * 1024**3
    cpu_s: float = 60.0
    wall_s: float = 120.0


class ChildFailed(InferenceError):
    """The decoding process does not start on this machine."""


class DecodeSandbox:
    """A child process that decodes and prepares. Used by one thread at a time.

    Args:
        limits: what one study may cost.
    """

    def __init__(self, limits: DecodeLimits | None = None) -> None:
        self._limits = limits or DecodeLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def read_study(
        self, modality: Modality, spool: Spool, spec: EchoSpec | CmrSpec | EcgSpec | CmrVolumeSpec
    ) -> StudyReading:
        """Decode and prepare the instances of a spool.

        Returns:
            Prepared arrays with header extracts, or a refusal; a child that dies over a file is a refusal too.

        Raises:
            ChildFailed: no child can be started.
        """
        connection = self._connected()
        connection.settimeout(self._limits.wall_s)
        request = {"modality": modality.value, "index": spool.index, "spec": spec.model_dump(mode="json")}
        try:
            socket.send_fds(connection, [b"\0"], [spool.fileno()])
            send(connection, request)
            return reading_from_message(*receive(connection))
        except TimeoutError:
            self.close()
            return _over(f"decoding took longer than {self._limits.wall_s:.0f} s")
        except _NO_ANSWER:
            self.close()
            return _over("the decoding process was ended by its limits or crashed on the file")

    def close(self) -> None:
        """End the child."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _connected(self) -> socket.socket:
        if self._connection is not None and self._process is not None and self._process.poll() is None:
            return self._connection
        self.close()
        ours, theirs = socket.socketpair()
        limits = (str(self._limits.memory_bytes), str(self._limits.cpu_s))
        command = [sys.executable, "-m", "engines.decode.sandbox_child", str(theirs.fileno()), *limits]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # parsers quote values of patients
            )
        ours.settimeout(START_TIMEOUT_S)
        try:
            receive(ours)
        except (EOFError, TimeoutError, ValueError) as error:
            ours.close()
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            raise ChildFailed(f"the decoding process does not start: {type(error).__name__}") from None
        self._connection = ours
        return ours


def _over(found: str) -> StudyReading:
    message = f"{found}; the file is damaged or larger than any real study: look at its source"
    return StudyReading(prepared=(), headers=(), refusal=InputRefused(RefusalCode.LIMITS_EXCEEDED, message))
