"""Stand-ins for what compares an ECG with cardiac MR images, and for the child that prepares both, with faults on demand."""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.decode.spool import Spool
from engines.decode.study import StudyReading
from engines.errors import Refusal
from engines.predictions import CrossModal
from engines.preprocess.registry import Prepared
from engines.records import Modality
from tests.doubles.reports import make_model

ALIKE = CrossModal(
    cosine=0.41239, own_percent=63.96, others_percent=98.5, below_limit=False, embedding=(0.6000000001, -0.8)
)
UNLIKE = CrossModal(cosine=-0.0004, own_percent=0.5, others_percent=52.1, below_limit=True, embedding=(1.0, 0.0))


class FakeComparer:
    """Says what it was made with; ``compared`` keeps the first bytes of each pair, ECG first."""

    identity = make_model(Modality.ECG)
    ecg_spec: Any = "how an ECG is prepared"
    cmr_spec: Any = "how images are prepared"

    def __init__(self, said: CrossModal = ALIKE, window_days: int = 30) -> None:
        self.said = said
        self.window_days = window_days
        self.faults: list[Exception] = []
        self.compared: list[tuple[str, str]] = []
        self.closed = False

    def compare(self, ecg: Prepared, cmr: Prepared) -> CrossModal:
        self.compared.append((_text(ecg), _text(cmr)))
        if self.faults:
            raise self.faults.pop(0)
        return self.said

    def close(self) -> None:
        self.closed = True


class PairSandbox:
    """Prepares what the comparer reads; an ``engine_sandbox`` answers for everything else.

    ``refusals`` holds, by the first instance of a study, why it cannot be prepared for the comparison.
    """

    def __init__(self, engine_sandbox: Any) -> None:
        self.engine_sandbox = engine_sandbox
        self.refusals: dict[bytes, Refusal] = {}
        self.asked: list[tuple[Modality, Any]] = []

    def read_study(self, modality: Modality, spool: Spool, spec: Any) -> StudyReading:
        if spec not in (FakeComparer.ecg_spec, FakeComparer.cmr_spec):
            reading: StudyReading = self.engine_sandbox.read_study(modality, spool, spec)
            return reading
        self.asked.append((modality, spec))
        first = spool.instances()[0].read()
        refusal = self.refusals.get(first)
        held = Prepared(arrays={"bytes": np.frombuffer(first, np.uint8)}, sources=(), region_px=None, notes=())
        return StudyReading(prepared=() if refusal else (held,), headers=(), refusal=refusal)

    def close(self) -> None:
        """Nothing to end."""


def _text(prepared: Prepared) -> str:
    return prepared.arrays["bytes"].tobytes().decode()
