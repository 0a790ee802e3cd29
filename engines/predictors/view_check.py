"""Is it an apical four-chamber view? A second, small graph looks at single frames of each candidate loop and votes.

The ejection fraction of another view would be a number without a meaning, so nothing is estimated from a loop that does not
pass. A label of the source passes a loop where the bundle or the site trusts it. Called by ``predictors.base`` before the
graph of the engine; ``gate_frames`` also by training, so that both show the network the same frames.

Letters: K clip, T frame of a clip, N frames looked at, S side, V views.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.bundle.golden import npz_arrays
from engines.bundle.reader import Bundle
from engines.bundle.second_graphs import TrustedLabel, ViewGate
from engines.errors import BundleCorrupt, RefusalCode, SelfTestFailed
from engines.predictions import Abstention
from engines.preprocess.registry import Prepared
from engines.runtime.runner import Runner

_WORDS = {"apical_four_chamber": "apical four-chamber"}


@dataclass(frozen=True, kw_only=True)
class ViewVerdict:
    """What became of the candidates of one study.

    Args:
        chosen: their numbers, best first; empty with an abstention.
        probabilities: of the accepted view, one per candidate.
        notes: sentences for the reader.
        abstention: why none is used, or None.
    """

    chosen: tuple[int, ...]
    probabilities: tuple[float, ...]
    notes: tuple[str, ...] = ()
    abstention: Abstention | None = None


class ViewCheck:
    """The gate of one engine; may be used by several threads.

    Args:
        gate: from the manifest.
        runner: of the gate's graph.
        trusted: labels the site trusts besides those of the bundle.
    """

    def __init__(self, gate: ViewGate, runner: Runner, trusted: Sequence[TrustedLabel] = ()) -> None:
        self._gate = gate
        self._runner = runner
        self._trusted = [(label.attribute, re.compile(label.pattern)) for label in (*gate.trusted_labels, *trusted)]
        self._lock = threading.Lock()

    def choose(self, prepared: Sequence[Prepared]) -> ViewVerdict:
        """Choose the loops of a study that the engine may answer from, the surest first, at most ``loops_max``."""
        votes = [self.votes(candidate.arrays["clip"]) for candidate in prepared]
        accepted_column = self._gate.views.index(self._gate.accepted_view)
        probabilities = tuple(float(vote[accepted_column]) for vote in votes)
        trusted = [self._is_trusted(candidate) for candidate in prepared]
        passed = [
            index
            for index, (vote, probability) in enumerate(zip(votes, probabilities, strict=True))
            if trusted[index] or self._leads(probability, _rival(vote, accepted_column))
        ]
        if not passed:
            return ViewVerdict(chosen=(), probabilities=probabilities, abstention=self._abstention(votes))
        ranked = sorted(passed, key=lambda index: (not trusted[index], -probabilities[index]))
        chosen = tuple(ranked[: self._gate.loops_max])
        notes = self._notes(chosen, probabilities, trusted, len(prepared))
        return ViewVerdict(chosen=chosen, probabilities=probabilities, notes=notes)

    def votes(self, clip_K1TSS: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Mean probability of each view over the frames looked at, [V]."""
        frames = gate_frames(clip_K1TSS, self._gate.frames)
        with self._lock:
            logits_NV = self._runner.run({self._gate.input.name: frames})[self._gate.output.name]
        return np.asarray(_softmax(logits_NV.astype(np.float64)).mean(axis=0))

    def close(self) -> None:
        """Give the runtime's memory back."""
        self._runner.close()

    def _leads(self, probability: float, rival: float) -> bool:
        gate = self._gate
        return probability >= gate.threshold_probability and probability - rival >= gate.margin_probability

    def _is_trusted(self, candidate: Prepared) -> bool:
        labels = [label for source in candidate.sources for label in source.view_labels]
        return any(
            attribute == of and pattern.search(text) for attribute, text in labels for of, pattern in self._trusted
        )

    def _abstention(self, votes: Sequence[NDArray[np.float64]]) -> Abstention:
        """Another view where that is sure of every loop; doubt where it is not."""
        column = self._gate.views.index(self._gate.accepted_view)
        sure = all(self._leads(_rival(vote, column), float(vote[column])) for vote in votes)
        loops = "loop shows" if len(votes) == 1 else f"{len(votes)} loops show"
        best = max(float(vote[column]) for vote in votes)
        if sure:
            reason = (
                f"No apical four-chamber view was found: the {loops} another view (probability of the expected view at "
                f"most {best:.2f}). No value is given; send an apical four-chamber clip."
            )
            return Abstention(code=RefusalCode.NOT_A4C, reason=reason)
        reason = (
            f"It is not sure that the {loops} an apical four-chamber view: probability at most {best:.2f}, at least "
            f"{self._gate.threshold_probability:.2f} is expected, {self._gate.margin_probability:.2f} above any other view. "
            "No value is given; check the view, or let the site trust its labels."
        )
        return Abstention(code=RefusalCode.VIEW_UNCERTAIN, reason=reason)

    def _notes(
        self, chosen: Sequence[int], probabilities: Sequence[float], trusted: Sequence[bool], candidates: int
    ) -> tuple[str, ...]:
        view = _WORDS.get(self._gate.accepted_view, self._gate.accepted_view)
        if all(trusted[index] for index in chosen):
            first = f"View: {view}, as the label of the source says."
        else:
            surest = max(probabilities[index] for index in chosen if not trusted[index])
            first = f"View: {view}, probability {surest:.2f} over {self._gate.frames} frames."
        if len(chosen) == candidates:
            return (first,)
        return (first, f"{len(chosen)} of {candidates} loops were used, those that show the view best.")


def gate_frames(clip_K1TSS: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Evenly spaced frames over all clips of a loop, [N, 1, S, S]; black frames, with which short loops are filled, are left out.

    Args:
        clip_K1TSS: prepared clips.
        count: N; fewer where there are fewer frames.
    """
    frames = clip_K1TSS[:, 0].reshape(-1, *clip_K1TSS.shape[3:])
    shown = np.flatnonzero(frames.any(axis=(1, 2)))
    if not len(shown):
        shown = np.zeros(1, np.int64)
    chosen = np.unique(np.linspace(0, len(shown) - 1, count).round().astype(np.int64))
    return np.ascontiguousarray(frames[shown[chosen]][:, None])


def gate_bundle(bundle: Bundle, gate: ViewGate) -> Bundle:
    """The same bundle seen as an engine whose graph is the gate, for the runners."""
    view = {"graph": gate.graph, "inputs": (gate.input,), "outputs": (gate.output,)}
    return Bundle(path=bundle.path, manifest=bundle.manifest.model_copy(update=view), sha256=bundle.sha256)


def check_gate(bundle: Bundle, gate: ViewGate, runner: Runner) -> None:
    """Replay the golden frames of the gate.

    Raises:
        BundleCorrupt: its golden file does not hold frames and logits.
        SelfTestFailed: the logits differ by more than the manifest allows.
    """
    arrays = npz_arrays(bundle.read(gate.golden))
    if arrays.keys() != {gate.input.name, gate.output.name}:
        msg = f"{gate.golden} holds {sorted(arrays)}; expected {gate.input.name} and {gate.output.name}"
        raise BundleCorrupt(msg)
    found, stored = runner.run({gate.input.name: arrays[gate.input.name]})[gate.output.name], arrays[gate.output.name]
    largest = float(np.abs(found - stored).max()) if found.shape == stored.shape else np.inf
    if not largest <= gate.golden_tolerance:
        msg = f"the view check differs by {largest:.3g} from its golden logits; tolerance {gate.golden_tolerance:g}"
        raise SelfTestFailed(msg)


def _rival(vote_V: NDArray[np.float64], column: int) -> float:
    """Probability of the likeliest other view."""
    return float(np.delete(vote_V, column).max())


def _softmax(logits_NV: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(logits_NV - logits_NV.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
