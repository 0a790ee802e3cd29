"""``purkinje run`` with an engine whose GPU is lost: ``python -m tests.doubles.lost_gpu FOLDER once|always run ...``.

Command line, lane, log, predictor and replacement of the process are the real ones; PACS and child are stand-ins that
live in a folder, because nothing else outlives the process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.bundle.reader import Bundle, load_bundle
from engines.decode.study import StudyReading
from engines.errors import DeviceLost
from engines.predictors.base import Predictor
from engines.preprocess.registry import prepare
from engines.records import Modality
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.runner import Arrays
from orthanc_plugin.wire.log import open_log
from stream_processors import processors
from stream_processors.cli import main
from stream_processors.events import Stored
from stream_processors.pacs.client import EncodedReport
from stream_processors.processors import Connections
from stream_processors.routes import Route
from stream_processors.settings import Settings
from tests.doubles.bundles import ECG, ecg_record
from tests.doubles.pacs import FakePacs
from tests.doubles.predictor import FakeSandbox
from tests.doubles.reports import make_header, make_source


class LosingRunner(OnnxRunner):
    """ONNX Runtime on a GPU that falls off the bus: ``once`` in the folder's life, or ``always``."""

    def __init__(self, bundle: Bundle, folder: Path, how_often: str) -> None:
        super().__init__(bundle)
        self._losses = folder / "losses.txt"
        self._how_often = how_often

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        if self._how_often == "always" or not self._losses.exists():
            with self._losses.open("a") as file:
                file.write("lost\n")
            raise DeviceLost("cudaStreamSynchronize failed: cudaErrorECCUncorrectable")
        return super()._infer(inputs)


class FolderPacs(FakePacs):
    """Keeps the reports in a folder, and a line for each that was written."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder / "reports"
        self._folder.mkdir(exist_ok=True)
        self._stored = folder / "stored.txt"
        self.reports = {path.name: path.read_bytes() for path in self._folder.iterdir()}

    def store(self, report: EncodedReport) -> Stored:
        stored = super().store(report)
        if stored is Stored.CREATED:
            (self._folder / report.sop_instance_uid).write_bytes(report.content)
            with self._stored.open("a") as file:
                file.write(f"{report.sop_instance_uid}\n")
        return stored


class OneEcg(FakeSandbox):
    """Reads the same ECG out of every study."""

    def read_study(self, modality: Modality, spool: Any, spec: Any) -> StudyReading:
        reading = super().read_study(modality, spool, spec)
        prepared = replace(prepare(ecg_record(), ECG), sources=(make_source(make_header(modality), modality),))
        return replace(reading, prepared=(prepared,))


def serve(folder: Path, how_often: str, arguments: list[str]) -> None:
    """Run the command line with the stand-ins in place."""
    pacs = FolderPacs(folder)

    @contextmanager
    def opened(settings: Settings) -> Iterator[Connections]:
        log = open_log(settings.log.url)
        yield Connections(log=log, reader=pacs, writer=pacs)
        log.close()

    def open_route(modality: Modality, *_: Any, **__: Any) -> Route:
        bundle = load_bundle(folder / "bundles" / modality.value)
        engine = Predictor(bundle, LosingRunner(bundle, folder, how_often))
        return Route(modality=modality, sandbox=OneEcg([make_header(modality)]), engine=engine)

    processors.opened = opened  # type: ignore[assignment]
    processors.open_route = open_route  # type: ignore[assignment]
    main(arguments)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
