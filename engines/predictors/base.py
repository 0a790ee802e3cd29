"""Bundle and runner together: prepared arrays in, one prediction out.

Called by the stream processors, which load one predictor per modality at start and keep it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.calibration import CmrPostprocess, EchoPostprocess
from engines.bundle.card import NOT_FOR_CLINICAL_USE
from engines.bundle.reader import Bundle, load_bundle
from engines.predictions import ModelIdentity, Picture, Prediction
from engines.predictors.answer import Answer, unique
from engines.predictors.cmr_risk import answer_cmr
from engines.predictors.distance import EmbeddingStatistics
from engines.predictors.ecg_cmr import answer_ecg
from engines.predictors.echo_ef import answer_echo
from engines.predictors.latent_picture import latent_picture
from engines.predictors.view_check import ViewCheck
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import PreprocessSpec, spec_sha256
from engines.records import Modality
from engines.runtime.batcher import BatchingRunner, BatchLimits
from engines.runtime.runner import Arrays, Runner, RuntimeIdentity
from engines.selftest import PREFERENCE, open_verified_runner, open_view_check

BATCH_MAX = 16
"""More clips than this go through the graph in several runs, so that memory stays bounded."""


class Predictor:
    """One engine, ready to answer. Used by one thread at a time, unless ``batched``.

    Args:
        bundle: verified.
        runner: agrees with the bundle's golden vectors.
        rejected_runtimes: one sentence per runtime that was tried before and did not agree.
        view_check: where the bundle has a gate, and only there; agrees with its golden logits.

    Raises:
        ValueError: a gate without its check, or the reverse.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        rejected_runtimes: tuple[str, ...] = (),
        view_check: ViewCheck | None = None,
    ) -> None:
        manifest = bundle.manifest
        if (manifest.gate is None) != (view_check is None):
            msg = f"{manifest.name} {'has no' if manifest.gate is None else 'has a'} gate; give its view check with it"
            raise ValueError(msg)
        self._view_check = view_check
        self._manifest = manifest
        self._runner = runner
        self._rejected_runtimes = rejected_runtimes
        self._identity = model_identity(bundle, runner.identity)
        self._statistics = EmbeddingStatistics.from_bytes(
            bundle.read(manifest.out_of_distribution.file), size=_embedding_size(bundle)
        )

    @property
    def modality(self) -> Modality:
        """Which studies it answers."""
        return self._manifest.modality

    @property
    def spec(self) -> PreprocessSpec:
        """How its input is prepared."""
        return self._manifest.preprocess

    @property
    def identity(self) -> ModelIdentity:
        """Which engine speaks, and on what it last computed; a prediction carries what computed it."""
        return running_on(self._identity, self._runner.identity)

    @property
    def rejected_runtimes(self) -> tuple[str, ...]:
        """Why a faster runtime does not serve, for the log."""
        return self._rejected_runtimes

    def predict(self, prepared: Sequence[Prepared]) -> Prediction:
        """Answer for one study.

        Args:
            prepared: the candidates of an echo study, most likely first; exactly one for CMR and ECG.

        Returns:
            The numbers with their intervals, or an abstention with its reason.

        Raises:
            ValueError: the number of candidates or their arrays do not fit this engine.
            InferenceError: the runtime failed.
        """
        self._require_candidates(prepared)
        notes: tuple[str, ...] = ()
        if self._view_check is not None:
            verdict = self._view_check.choose(prepared)
            if verdict.abstention is not None:
                most_likely = prepared[int(np.argmax(verdict.probabilities))]
                refused = Answer(used=(most_likely,), score=None, abstention=verdict.abstention)
                return self._prediction(refused, self.identity)
            prepared, notes = [prepared[index] for index in verdict.chosen], verdict.notes
        outputs, runtime = self._outputs(prepared)
        scores = [self._score(output) for output in outputs]
        answer = self._answer(prepared, outputs, scores)
        answer = replace(answer, notes=(*notes, *answer.notes))
        return self._prediction(answer, running_on(self._identity, runtime))

    def batched(self, limits: BatchLimits) -> Predictor:
        """The same engine for several threads, whose studies share batches; takes the place of this one.

        Args:
            limits: when a batch goes.
        """
        shared = copy(self)
        shared._runner = BatchingRunner(self._runner, self._manifest, limits)  # noqa: SLF001 - the copy is ours
        return shared

    def close(self) -> None:
        """Give the runtime's memory back."""
        self._runner.close()
        if self._view_check is not None:
            self._view_check.close()

    def _require_candidates(self, prepared: Sequence[Prepared]) -> None:
        several = self.modality is Modality.ECHO
        expected = "one or more" if several else "exactly one"
        if not prepared or (len(prepared) > 1 and not several):
            msg = f"{len(prepared)} prepared records for {self.modality.value}; expected {expected}"
            raise ValueError(msg)
        names = {tensor.name for tensor in self._manifest.inputs}
        for candidate in prepared:
            rows = {name: len(array) for name, array in candidate.arrays.items()}
            if rows.keys() != names or not all(rows.values()) or (max(rows.values()) > 1 and not several):
                msg = f"prepared arrays and their rows are {rows}; expected {sorted(names)} with {expected}"
                raise ValueError(msg)

    def _outputs(self, prepared: Sequence[Prepared]) -> tuple[list[Arrays], RuntimeIdentity]:
        """Run all candidates as one batch and give each its rows back, and say what computed them."""
        names = [tensor.name for tensor in self._manifest.inputs]
        batch = {name: np.concatenate([candidate.arrays[name] for candidate in prepared]) for name in names}
        ends = np.cumsum([len(candidate.arrays[names[0]]) for candidate in prepared])
        rows, runtime = self._run(batch)
        parts = {name: np.split(array, ends[:-1]) for name, array in rows.items()}
        return [{name: part[index] for name, part in parts.items()} for index in range(len(prepared))], runtime

    def _run(self, batch: Arrays) -> tuple[Arrays, RuntimeIdentity]:
        runs, runtimes = [], []
        for part in _parts(batch):
            runs.append(self._runner.run(part))
            runtimes.append(self._runner.identity)  # of this very run: the next may be computed elsewhere
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}, _together(runtimes)

    def _score(self, outputs: Arrays) -> float:
        limit = self._manifest.out_of_distribution
        return self._statistics.distance(outputs[limit.output]) / limit.limit_distance

    def _answer(self, prepared: Sequence[Prepared], outputs: Sequence[Arrays], scores: Sequence[float]) -> Answer:
        calibration = self._manifest.postprocess
        if isinstance(calibration, EchoPostprocess):
            return answer_echo(prepared, outputs, scores, calibration)
        if isinstance(calibration, CmrPostprocess):
            return answer_cmr(prepared, outputs, scores, calibration)
        return answer_ecg(prepared, outputs, scores, calibration, self._manifest.wide_intervals)

    def _prediction(self, answer: Answer, model: ModelIdentity) -> Prediction:
        return Prediction(
            modality=self.modality,
            model=model,
            sources=tuple(source for candidate in answer.used for source in candidate.sources),
            estimates=answer.estimates,
            probabilities=answer.probabilities,
            abstention=answer.abstention,
            region_px=answer.used[0].region_px,
            out_of_distribution_score=answer.score,
            notes=unique((*answer.notes, *(note for candidate in answer.used for note in candidate.notes))),
            picture=self._picture(answer),
        )

    def _picture(self, answer: Answer) -> Picture | None:
        if answer.latents is None:
            return None
        warning = f"{NOT_FOR_CLINICAL_USE.capitalize()}; trained on {self._manifest.training_data.rstrip('. ')}."
        percent = answer.probabilities[0].condition.removeprefix("lvef_at_most_")
        return latent_picture(answer.latents, condition=f"LVEF of {percent} % or less", warning=warning)


def load_predictor(path: Path, preference: Sequence[str] = PREFERENCE) -> Predictor:
    """Verify the bundle, replay its golden records, and open the first runtime that agrees with them.

    Args:
        path: the bundle's folder.
        preference: names of runtimes, best first.

    Raises:
        BundleCorrupt: a file is missing or altered.
        SelfTestFailed: the golden records do not come out as stored.
    """
    bundle = load_bundle(path)
    runner, rejected = open_verified_runner(bundle, preference)
    return Predictor(bundle, runner, rejected, open_view_check(bundle, preference))


def model_identity(bundle: Bundle, runtime: RuntimeIdentity) -> ModelIdentity:
    """Which engine speaks, computed by a runtime."""
    manifest = bundle.manifest
    return ModelIdentity(
        name=manifest.name,
        version=manifest.version,
        method=manifest.method,
        bundle_sha256=bundle.sha256,
        weights_sha256=bundle.weights_sha256,
        preprocess_sha256=spec_sha256(manifest.preprocess),
        runtime=runtime.runtime,
        runtime_version=runtime.version,
        precision=runtime.precision,
        device=runtime.device,
        training_data=manifest.training_data,
        intended_use=manifest.intended_use,
        plan_sha256=runtime.plan_sha256,
        fallback=runtime.fallback,
    )


def running_on(identity: ModelIdentity, runtime: RuntimeIdentity) -> ModelIdentity:
    """The same engine on another runtime."""
    return replace(
        identity,
        runtime=runtime.runtime,
        runtime_version=runtime.version,
        precision=runtime.precision,
        device=runtime.device,
        plan_sha256=runtime.plan_sha256,
        fallback=runtime.fallback,
    )


def _together(runtimes: Sequence[RuntimeIdentity]) -> RuntimeIdentity:
    """What computed a study whose parts ran one after the other: the fallback, where one of them needed it.

    Its sentence then names what computed the rest.
    """
    each = tuple(dict.fromkeys(runtimes))
    if len(each) == 1:
        return each[0]
    stated = next((one for one in reversed(each) if one.fallback), each[-1])
    rest = ", ".join(_in_words(one) for one in each if one is not stated)
    reason = (stated.fallback or "The runtime changed within the study.").rstrip(". ")
    return replace(stated, fallback=f"{reason}; the other clips were computed by {rest}.")


def _in_words(runtime: RuntimeIdentity) -> str:
    plan = f", plan {runtime.plan_sha256[:16]}" if runtime.plan_sha256 else ""
    return f"{runtime.runtime} {runtime.version} {runtime.precision} on {runtime.device}{plan}"


def _embedding_size(bundle: Bundle) -> int:
    wanted = bundle.manifest.out_of_distribution.output
    return next(tensor.shape[1] for tensor in bundle.manifest.outputs if tensor.name == wanted)


def _parts(batch: Arrays) -> Iterator[dict[str, NDArray[Any]]]:
    size = len(next(iter(batch.values())))
    for start in range(0, size, BATCH_MAX):
        yield {name: array[start : start + BATCH_MAX] for name, array in batch.items()}
