"""Do an ECG and cardiac MR images look like one heart? The cross-modal check of an ECG bundle.

A second, small graph of the bundle projects the embedding of the ECG and the prepared images into one space; their cosine is
read against known pairs (``predictors.similarity``). It checks identity and consistency; it measures nothing, and the answer
of the engine does not depend on it. Called by the stream processors, which find the partner of a study.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.bundle.golden import GoldenCase, golden_cases
from engines.bundle.manifest import Golden
from engines.bundle.reader import Bundle, load_bundle
from engines.bundle.second_graphs import CMR_PROJECTION, ECG_PROJECTION, CrossModalPart
from engines.errors import BundleCorrupt, InferenceError, Refusal, SelfTestFailed
from engines.predictions import CrossModal, ModelIdentity
from engines.predictors.base import model_identity, running_on
from engines.predictors.similarity import SimilarityStatistics
from engines.preprocess.cmr_volume import CmrVolumeSpec, prepare_volumes
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import PreprocessSpec
from engines.records import CineStack
from engines.runtime.open import RUNTIMES, Opener
from engines.runtime.runner import Arrays, Runner
from engines.selftest import PREFERENCE, compare, open_verified_runner


class CrossModalCheck:
    """The cross-modal check of one ECG engine; may be used by several threads, one at a time inside.

    Args:
        bundle: verified, with a cross-modal part.
        ecg: runs the engine's graph; agrees with its golden vectors.
        pair: runs the graph of the part; agrees with its golden vectors.

    Raises:
        ValueError: the bundle has no such part.
        BundleCorrupt: its statistics cannot be read.
    """

    def __init__(self, bundle: Bundle, ecg: Runner, pair: Runner) -> None:
        self._part = _part_of(bundle)
        self._manifest = bundle.manifest
        self._ecg, self._pair = ecg, pair
        self._identity = model_identity(bundle, ecg.identity)
        self._statistics = SimilarityStatistics.from_bytes(bundle.read(self._part.statistics))
        self._lock = threading.Lock()

    @property
    def window_days(self) -> int:
        """How far apart ECG and images may lie."""
        return self._part.window_days

    @property
    def ecg_spec(self) -> PreprocessSpec:
        """How the ECG is prepared."""
        return self._manifest.preprocess

    @property
    def cmr_spec(self) -> CmrVolumeSpec:
        """How the images are prepared, by ``preprocess.cmr_volume.prepare_volumes``."""
        return self._part.preprocess

    @property
    def identity(self) -> ModelIdentity:
        """Which ECG engine compares."""
        return running_on(self._identity, self._ecg.identity)

    def compare(self, ecg: Prepared, cmr: Prepared) -> CrossModal:
        """Compare one ECG with the images of one study.

        Args:
            ecg: prepared by ``ecg_spec``, one row.
            cmr: prepared by ``cmr_spec``, one row.

        Raises:
            ValueError: the arrays do not fit the graphs.
            InferenceError: the runtime failed.
        """
        images = _images(cmr, self._part)
        rows = {len(array) for array in (*ecg.arrays.values(), *images.values())}
        if rows != {1}:
            msg = f"prepared arrays have {sorted(rows)} rows; expected one ECG and the images of one study"
            raise ValueError(msg)
        with self._lock:
            projected = self._projected(ecg, images)
        return self._read(projected)

    def close(self) -> None:
        """Give the runtime's memory back."""
        self._ecg.close()
        self._pair.close()

    def _projected(self, ecg: Prepared, images: Arrays) -> Arrays:
        name = self._part.inputs[0].name
        return self._pair.run({name: self._ecg.run(ecg.arrays)[name], **images})

    def _read(self, projected: Arrays) -> CrossModal:
        cmr_E = projected[CMR_PROJECTION][0]
        try:
            found = self._statistics.read(projected[ECG_PROJECTION][0], cmr_E)
        except ValueError as error:
            msg = f"the projections cannot be compared: {error}"
            raise InferenceError(msg) from error
        return CrossModal(
            cosine=found.cosine,
            own_percent=found.own_percent,
            others_percent=found.others_percent,
            below_limit=found.below_limit,
            embedding=tuple(float(value) for value in cmr_E),
        )


def load_cross_modal(
    path: Path, preference: Sequence[str] = PREFERENCE, runtimes: Mapping[str, Opener] = RUNTIMES
) -> CrossModalCheck | None:
    """Verify a bundle and open its cross-modal check in the first runtime that agrees; None where it has none.

    Args:
        path: the bundle's folder.
        preference: names of runtimes, best first.
        runtimes: name -> how to open one.

    Raises:
        BundleCorrupt: a file is missing or altered.
        SelfTestFailed: golden stacks or projections do not come out as stored.
    """
    bundle = load_bundle(path)
    return None if bundle.manifest.cross_modal is None else open_cross_modal(bundle, preference, runtimes)


def open_cross_modal(
    bundle: Bundle, preference: Sequence[str] = PREFERENCE, runtimes: Mapping[str, Opener] = RUNTIMES
) -> CrossModalCheck:
    """As ``load_cross_modal``, of a verified bundle that has the part.

    Raises:
        ValueError: it has not.
        BundleCorrupt, SelfTestFailed: as said there.
    """
    part = _part_of(bundle)
    prepared = check_images(bundle, part)
    pair, _ = open_verified_runner(pair_bundle(bundle, part), preference, runtimes, prepared=prepared)
    try:
        ecg, _ = open_verified_runner(bundle, preference, runtimes)
    except BaseException:
        pair.close()
        raise
    return CrossModalCheck(bundle, ecg, pair)


def pair_bundle(bundle: Bundle, part: CrossModalPart) -> Bundle:
    """The same bundle seen as an engine whose graph and golden vectors are those of the check, for the runners."""
    golden = Golden(
        file=part.golden,
        prepared_tolerance=_tolerances(part),
        output_tolerance={tensor.name: part.tolerance for tensor in part.outputs},
    )
    view = {
        "name": f"the cross-modal check of {bundle.manifest.name}",
        "graph": part.graph,
        "inputs": part.inputs,
        "outputs": part.outputs,
        "golden": golden,
    }
    return Bundle(path=bundle.path, manifest=bundle.manifest.model_copy(update=view), sha256=bundle.sha256)


def check_images(bundle: Bundle, part: CrossModalPart) -> tuple[Prepared, ...]:
    """Prepare every golden stack with the code of this installation; the embedding beside it is taken as stored.

    Returns:
        Inputs of the check's graph, in the order of the golden vectors.

    Raises:
        BundleCorrupt: a golden record is no stack.
        SelfTestFailed: an array differs from the stored one by more than the manifest's tolerance.
    """
    cases = golden_cases(bundle.read(part.golden))
    return tuple(_checked_images(part, case, f"golden pair {index}") for index, case in enumerate(cases))


def _checked_images(part: CrossModalPart, case: GoldenCase, where: str) -> Prepared:
    first = part.inputs[0].name
    if not isinstance(case.record, CineStack) or first not in case.prepared:
        msg = (
            f"{where} of {part.golden} is a {type(case.record).__name__} with {sorted(case.prepared)}; expected a stack"
        )
        raise BundleCorrupt(msg)
    try:
        prepared = prepare_volumes(case.record, part.preprocess)
    except (Refusal, ValueError) as error:
        msg = f"{where} is refused by preprocessing: {error}"
        raise SelfTestFailed(msg) from error
    arrays = {first: case.prepared[first], **_images(prepared, part)}
    compare(arrays, case.prepared, _tolerances(part), where)
    return Prepared(arrays=arrays, sources=prepared.sources, region_px=prepared.region_px, notes=prepared.notes)


def _images(cmr: Prepared, part: CrossModalPart) -> Arrays:
    wanted = [tensor.name for tensor in part.images]
    if lacking := [name for name in wanted if name not in cmr.arrays]:
        msg = f"the images were prepared to {sorted(cmr.arrays)}; expected {', '.join(lacking)} too: use `cmr_spec`"
        raise ValueError(msg)
    return {name: cmr.arrays[name] for name in wanted}


def _tolerances(part: CrossModalPart) -> dict[str, float]:
    return {tensor.name: part.prepared_tolerance for tensor in part.inputs}


def _part_of(bundle: Bundle) -> CrossModalPart:
    part = bundle.manifest.cross_modal
    if part is None:
        msg = f"{bundle.manifest.name} has no cross-modal check; use a bundle of schema 4 that has one"
        raise ValueError(msg)
    return part
