"""The child process that touches bytes from outside: ``python -m engines.decode.sandbox_child FD MEMORY CPU``.

It sets its own limits before it reads anything, is silent (warnings of parsers quote values of patients), and answers
request after request until the parent closes the connection.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import warnings
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from engines.decode.exchange import reading_to_message, send
from engines.decode.headers import undecodable
from engines.decode.spool import windows
from engines.decode.study import StudyReading, read_instances
from engines.errors import InputRefused, RefusalCode
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec, PreprocessSpec
from engines.records import Modality

if TYPE_CHECKING:
    from engines.preprocess.cmr_volume import CmrVolumeSpec

_SPEC: TypeAdapter[EchoSpec | CmrSpec | EcgSpec] = TypeAdapter(PreprocessSpec)


def main() -> None:
    """Serve the parent."""
    descriptor, memory_bytes, cpu_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    # A Ctrl-C or an orderly stop goes to the whole group; the child ends when its parent hangs up, not in mid-study.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=descriptor) as connection:
        send(connection, {"ready": True})
        while request := _receive_request(connection):
            _allow_cpu(cpu_s)
            send(connection, *reading_to_message(_read(*request)))


def _receive_request(connection: socket.socket) -> tuple[int, dict[str, object]] | None:
    """The descriptor of a spool and what to do with it; None when the parent has hung up."""
    from engines.decode.exchange import receive

    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    if not descriptors:
        return None
    document, _ = receive(connection)
    return descriptors[0], document


def _read(descriptor: int, request: dict[str, object]) -> StudyReading:
    try:
        index = request["index"]
        assert isinstance(index, list)
        instances = windows(descriptor, [(offset, length) for offset, length in index])
        spec = _spec(request["spec"])
        return read_instances(Modality(str(request["modality"])), instances, spec)
    except MemoryError:
        message = "decoding needs more memory than is allowed; the images are larger than they may be, or lie about their size"
        return _refused(InputRefused(RefusalCode.LIMITS_EXCEEDED, message))
    except RecursionError:
        return _refused(undecodable("the dataset is nested deeper than any real one"))
    finally:
        os.close(descriptor)


def _spec(values: Any) -> EchoSpec | CmrSpec | EcgSpec | CmrVolumeSpec:
    if values["kind"] != "cmr_volume":
        return _SPEC.validate_python(values)
    from engines.preprocess.cmr_volume import CmrVolumeSpec

    return CmrVolumeSpec.model_validate(values)


def _refused(refusal: InputRefused) -> StudyReading:
    return StudyReading(prepared=(), headers=(), refusal=refusal)


def _allow_cpu(seconds: float) -> None:
    """A fresh allowance of processor time for this request; the kernel ends the process when it is used up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
