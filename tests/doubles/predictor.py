"""Stand-ins for the child that reads a study and for the engine that answers, with faults on demand."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from engines.decode.spool import Spool
from engines.decode.study import StudyReading
from engines.errors import Refusal
from engines.predictions import ModelIdentity, Picture, Prediction
from engines.preprocess.registry import Prepared
from engines.records import Modality
from tests.doubles.reports import make_model, make_prediction


def header_bytes(header: Dataset) -> bytes:
    """A header as the child hands it over: a Part 10 file without pixel data."""
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class FakeSandbox:
    """Reads nothing: hands over the given headers, and the refusal where there is one."""

    def __init__(self, headers: Sequence[Dataset], refusal: Refusal | None = None) -> None:
        self.headers = tuple(header_bytes(header) for header in headers)
        self.refusal = refusal
        self.faults: list[Exception] = []
        self.spooled: list[list[bytes]] = []

    def read_study(self, modality: Modality, spool: Spool, spec: Any) -> StudyReading:  # noqa: ARG002
        self.spooled.append([instance.read() for instance in spool.instances()])
        if self.faults:
            raise self.faults.pop(0)
        prepared = () if self.refusal else (Prepared(arrays={}, sources=(), region_px=None, notes=()),)
        return StudyReading(prepared=prepared, headers=self.headers, refusal=self.refusal)

    def close(self) -> None:
        """Nothing to end."""


class FakeEngine:
    """Gives the answer it was made with: ``answered``, ``undecided`` or ``abstained``."""

    spec: Any = None

    def __init__(self, modality: Modality, answer: str, headers: Sequence[Dataset]) -> None:
        self.modality = modality
        self.answer = answer
        self.headers = headers
        self.faults: list[Exception] = []
        self.asked = 0
        self.model = make_model(modality)
        self.picture: Picture | None = None

    @property
    def identity(self) -> ModelIdentity:
        return self.model

    def predict(self, prepared: Sequence[Prepared]) -> Prediction:  # noqa: ARG002
        self.asked += 1
        if self.faults:
            raise self.faults.pop(0)
        prediction = make_prediction(self.modality, self.answer, self.headers)
        return Prediction(**{**vars(prediction), "model": self.model, "picture": self.picture})

    def close(self) -> None:
        """Nothing to free."""
