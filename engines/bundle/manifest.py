"""The manifest of a bundle: everything that gives the numbers of a compiled graph their meaning.

A bundle is one folder: ``manifest.json`` (this model), the ONNX graph, the golden vectors, the embedding
statistics and the model card. The manifest holds the digest of every other file, so the digest of the manifest
names the bundle. Written by ``bundle.writer`` (called by training), read by ``bundle.reader``; no defaults:
a missing field is an error, because a default would be a guess about how the network was trained.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from engines.preprocess.cmr_volume import CmrVolumeSpec
from engines.preprocess.spec import PreprocessSpec
from engines.records import Modality

SCHEMA_VERSION, GATED_SCHEMA_VERSION, WIDE_SCHEMA_VERSION, CROSS_SCHEMA_VERSION = 1, 2, 3, 4
_ADDED = {
    "gate": (GATED_SCHEMA_VERSION, "a gate"),
    "wide_intervals": (WIDE_SCHEMA_VERSION, "wide intervals"),
    "cross_modal": (CROSS_SCHEMA_VERSION, "a cross-modal check"),
}
"""Parts of the manifest, the schema that brought them, and their name; in an older one each is None and not written."""
MANIFEST_NAME = "manifest.json"
GRAPH_NAME = "model.onnx"
GOLDEN_NAME = "golden.npz"
EMBEDDING_NAME = "embedding.npz"
CARD_NAME = "MODEL_CARD.md"
GATE_GRAPH_NAME = "gate.onnx"
GATE_GOLDEN_NAME = "gate_golden.npz"
CROSS_MODAL_GRAPH_NAME = "cross_modal.onnx"
CROSS_MODAL_GOLDEN_NAME = "cross_modal_golden.npz"
SIMILARITY_NAME = "similarity.npz"
ECG_PROJECTION, CMR_PROJECTION = "ecg_projection", "cmr_projection"
"""Outputs of the graph of a cross-modal check."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$", max_length=64)]
BundleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]
Version = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$", max_length=16)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sentence = Annotated[str, Field(min_length=1, max_length=2000)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
CoveragePercent = Annotated[float, Field(gt=0, le=100)]
FRAMES = 2
"""Images of one cardiac MR study: end-diastole, then end-systole."""
_PSNR = "psnr_db"
ViewAttribute = Literal["ViewCodeSequence", "ViewName", "SeriesDescription", "ProtocolName"]
"""Attributes in which a source may state its view."""
DType = Literal["uint8", "int32", "int64", "float16", "float32", "float64"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(_Part):
    """Name, dtype and shape of one input or output; -1 stands for the batch axis, which comes first."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    dtype: DType
    shape: Annotated[tuple[int, ...], Field(min_length=1, max_length=8)]

    @model_validator(mode="after")
    def _batch_first(self) -> Self:
        _require(self.shape[0] == -1 and all(size > 0 for size in self.shape[1:]), "shape is -1, then fixed sizes")
        return self


class FileDigest(_Part):
    """Digest and size of one file of the bundle."""

    sha256: Sha256
    bytes: Annotated[int, Field(gt=0)]


class ConformalEstimate(_Part):
    """One number the network estimates, and its split-conformal interval: value +/- half width.

    Args:
        quantity: key of the report's code table (``lvef``).
        unit: UCUM code (``%``, ``l/min``).
        coverage_percent: what the interval was calibrated to hold.
        conformal_quantile: half width in ``unit``; where ``sd_offset`` is set, half width divided by
            (between-clip SD + ``sd_offset``).
        sd_offset: in ``unit``, or None when the interval does not depend on the spread between clips.
        minimum, maximum: what the quantity can be at all; a value outside is reported at the limit, with a note.
    """

    quantity: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    unit: Annotated[str, Field(min_length=1, max_length=16)]
    coverage_percent: CoveragePercent
    conformal_quantile: Positive
    sd_offset: Positive | None
    minimum: float
    maximum: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _require(self.minimum < self.maximum, "minimum < maximum")
        return self


class ProbabilityTable(_Part):
    """Inductive Venn-Abers calibration of one condition, tabulated over the network's logit.

    At a logit, ``low`` and ``high`` are the calibrated probabilities when the case is added to the calibration
    set as absent and as present; between the grid points they are interpolated, outside they are constant.

    Args:
        condition: key of the report's code table.
        threshold_probability: above it the condition is called present; inside the interval nothing is called.
        coverage_percent: nominal coverage of the pair (100: one of its ends is calibrated by construction).
        logits: the grid, strictly increasing.
        low, high: non-decreasing, low <= high, one value per grid point.

    Source: Vovk, Petej, "Venn-Abers predictors", UAI 2014.
    """

    condition: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    threshold_probability: Annotated[float, Field(gt=0, lt=1)]
    coverage_percent: CoveragePercent
    logits: Annotated[tuple[float, ...], Field(min_length=2, max_length=4096)]
    low: tuple[Probability, ...]
    high: tuple[Probability, ...]

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        _require(len(self.logits) == len(self.low) == len(self.high), "one low and one high per logit")
        _require(bool(np.all(np.diff(self.logits) > 0)), "logits increase strictly")
        _require(bool(np.all(np.diff(self.low) >= 0) and np.all(np.diff(self.high) >= 0)), "low and high never fall")
        _require(bool(np.all(np.asarray(self.low) <= np.asarray(self.high))), "low <= high")
        return self

    @property
    def crossing_logit(self) -> float:
        """The first logit of the grid whose merged probability lies above the threshold; infinite where none does."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        above = np.flatnonzero(high / (1.0 - low + high) > self.threshold_probability)
        return float(self.logits[above[0]]) if above.size else math.inf


class EchoPostprocess(_Part):
    """Clips to one ejection fraction; ``clip_sd_limit_percent`` is the spread above which the engine abstains."""

    modality: Literal[Modality.ECHO]
    lvef: ConformalEstimate
    clip_sd_limit_percent: Positive


class ReconstructionGate(_Part):
    """How well the network must have rebuilt both frames of a study before its logit counts.

    Args:
        output: name of the network output with the PSNR of the frames (end-diastole, end-systole), in dB.
        minimum_db: PSNR of either frame below which the engine abstains.
        percentile: share of the held-out hearts below ``minimum_db``, in percent.
    """

    output: Literal["psnr_db"]
    minimum_db: Positive
    percentile: CoveragePercent


class CmrPostprocess(_Part):
    """One logit to the probability of a low LVEF, such as at most 40 %.

    Args:
        risk: calibration of the output ``logit``.
        undecided_logits: the condition is not called within this distance of ``risk.crossing_logit``.
        reconstruction_gate: None for a network that rebuilds nothing, and only for one.
    """

    modality: Literal[Modality.CMR]
    risk: ProbabilityTable
    undecided_logits: NonNegative
    reconstruction_gate: ReconstructionGate | None

    @model_validator(mode="after")
    def _condition_names_a_threshold(self) -> CmrPostprocess:
        found = self.risk.condition
        _require(re.fullmatch(r"lvef_at_most_\d+", found) is not None, f"a condition like lvef_at_most_40, not {found}")
        return self


class WideIntervals(_Part):
    """A second interval around every estimate, calibrated on the same cases.

    Args:
        coverage_percent: above that of the first intervals.
        conformal_quantiles: half widths in the unit of each estimate, in the order of the estimates; none is narrower than
            that of the first interval.
    """

    coverage_percent: CoveragePercent
    conformal_quantiles: Annotated[tuple[Positive, ...], Field(min_length=1)]


class EcgPostprocess(_Part):
    """``estimates`` and ``conditions`` in the order of the columns of ``estimates`` and ``disease_logits``."""

    modality: Literal[Modality.ECG]
    estimates: Annotated[tuple[ConformalEstimate, ...], Field(min_length=1)]
    conditions: Annotated[tuple[ProbabilityTable, ...], Field(min_length=1)]


Postprocess = Annotated[EchoPostprocess | CmrPostprocess | EcgPostprocess, Field(discriminator="modality")]


class OutOfDistribution(_Part):
    """Distance of an embedding to the training set; the score is distance / ``limit_distance``.

    Args:
        file: ``.npz`` with ``mean`` float64 [E] and ``precision`` float64 [E, E] (inverse shrunk covariance).
        output: name of the network output that is the embedding.
        limit_distance: Mahalanobis distance at which the score is 1.
        limit_percentile: share of held-out typical cases below the limit, in percent.
    """

    file: FileName
    output: str
    limit_distance: Positive
    limit_percentile: CoveragePercent


class TrustedLabel(_Part):
    """A label of the source that is believed without looking.

    Args:
        attribute: keyword of the attribute that holds it.
        pattern: regular expression, searched in the text in upper case.
    """

    attribute: ViewAttribute
    pattern: Annotated[str, Field(min_length=1, max_length=200)]

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            msg = f"not a regular expression: {error}"
            raise ValueError(msg) from None
        return pattern


class ViewGate(_Part):
    """A second graph that looks at single frames first and lets only the accepted view through.

    Args:
        name: of the network.
        graph, golden: its files; ``golden`` holds frames and logits, replayed at every start.
        golden_tolerance: absolute, of the logits.
        input: frames, one channel, as large as those of the engine's clips.
        output: one logit per view.
        views: names of the output's columns.
        accepted_view: the one that passes.
        threshold_probability: least probability of the accepted view, the mean over the frames.
        margin_probability: least lead over every other view.
        frames: looked at in each loop, evenly spaced.
        loops_max: best loops of a study that the engine answers from.
        trusted_labels: let a loop pass whatever it looks like; empty where no label is believed.
    """

    name: BundleName
    graph: FileName
    golden: FileName
    golden_tolerance: NonNegative
    input: TensorSpec
    output: TensorSpec
    views: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...], Field(min_length=2)]
    accepted_view: str
    threshold_probability: Annotated[float, Field(gt=0, lt=1)]
    margin_probability: Annotated[float, Field(ge=0, lt=1)]
    frames: Annotated[int, Field(ge=1, le=64)]
    loops_max: Annotated[int, Field(ge=1, le=16)]
    trusted_labels: tuple[TrustedLabel, ...]

    @model_validator(mode="after")
    def _one_column_per_view(self) -> Self:
        _require(len(set(self.views)) == len(self.views), "names of views are unique")
        _require(self.accepted_view in self.views, f"an accepted view among {', '.join(self.views)}")
        _require(self.output.shape == (-1, len(self.views)), "a gate output with one column per view")
        _require(self.output.dtype == "float32", "gate logits in float32")
        return self


class CrossModalPart(_Part):
    """A second graph that compares the embedding of an ECG with cardiac MR of the same patient.

    It checks identity and consistency; it measures nothing and never changes what the engine says.

    Args:
        graph, golden, statistics: its files; ``golden`` holds stacks, what they were prepared to beside the embedding of an
            ECG, and both projections, replayed at every start; ``statistics`` is ``predictors.similarity``'s.
        preprocess: of the images.
        inputs: the embedding as the engine's graph gives it, by the name of that output, then arrays of ``preprocess``.
        outputs: ``ecg_projection`` and ``cmr_projection``, unit vectors whose dot product is the similarity.
        window_days: how far apart ECG and images of one patient may lie.
        prepared_tolerance: absolute, of the prepared images.
        tolerance: absolute, of the projections.
    """

    graph: FileName
    golden: FileName
    statistics: FileName
    preprocess: CmrVolumeSpec
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=2)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=2, max_length=2)]
    window_days: Annotated[int, Field(ge=0)]
    prepared_tolerance: NonNegative
    tolerance: NonNegative

    @model_validator(mode="after")
    def _inputs_as_prepared(self) -> Self:
        known = prepared_shapes(self.preprocess)
        for tensor in self.images:
            expected = ("float32", known.get(tensor.name))
            _require((tensor.dtype, tensor.shape) == expected, f"inputs of images among {known}, float32")
        names = [tensor.name for tensor in self.inputs]
        _require(len(set(names)) == len(names), "names of inputs are unique")
        return self

    @model_validator(mode="after")
    def _outputs_are_two_projections(self) -> Self:
        ecg, cmr = self.outputs
        _require(
            (ecg.name, cmr.name) == (ECG_PROJECTION, CMR_PROJECTION), f"outputs {ECG_PROJECTION}, {CMR_PROJECTION}"
        )
        _require(ecg.shape == cmr.shape and len(ecg.shape) == 2, "projections of one width")
        _require(ecg.dtype == cmr.dtype == "float32", "projections in float32")
        return self

    @property
    def images(self) -> tuple[TensorSpec, ...]:
        """Inputs that come from the images."""
        return self.inputs[1:]


def prepared_shapes(spec: CmrVolumeSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of what cardiac MR is prepared to for the cross-modal check, by name; -1 is the batch."""
    side = spec.heart.size_px
    return {
        "volumes": (-1, FRAMES, spec.slices, side, side),
        "slice_mask": (-1, spec.slices),
        "cine": (-1, 1, spec.phases, side, side),
    }


class Golden(_Part):
    """Records with known results, replayed at every start.

    Args:
        file: ``.npz`` as ``bundle.golden`` writes it.
        prepared_tolerance: absolute, per input name: how far the prepared array may lie from the stored one.
        output_tolerance: absolute, per output name: how far the runtime's answer may lie from the stored one.
    """

    file: FileName
    prepared_tolerance: dict[str, NonNegative]
    output_tolerance: dict[str, NonNegative]


class ManifestDraft(_Part):
    """A manifest before the files are written; ``writer.write_bundle`` adds their digests.

    Args:
        method: how the numbers come about, in words a cardiologist understands.
        training_data: what the network has seen ("digital phantoms only").
        metrics: name -> measured value on held-out data; the model card's table is generated from it. Units in names.
        gate: looks at the input before the graph does, or None. Schema 1 does not know it: there it is None and not written.
        wide_intervals: of the estimates of an ECG engine, or None. Schemas 1 and 2 do not know it, likewise.
        cross_modal: compares an ECG with cardiac MR of its patient, or None. Schemas 1 to 3 do not know it, likewise.
    """

    schema_version: Literal[1, 2, 3, 4]
    name: BundleName
    version: Version
    modality: Modality
    method: Sentence
    intended_use: Sentence
    training_data: Sentence
    created_utc: AwareDatetime
    graph: FileName
    preprocess: PreprocessSpec
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    postprocess: Postprocess
    out_of_distribution: OutOfDistribution
    golden: Golden
    metrics: dict[str, float]
    gate: ViewGate | None
    wide_intervals: WideIntervals | None
    cross_modal: CrossModalPart | None

    @model_validator(mode="before")
    @classmethod
    def _parts_by_schema(cls, document: Any) -> Any:
        lacking = _lacking(document.get("schema_version")) if isinstance(document, dict) else ()
        for part in lacking:
            since, words = _ADDED[part]
            _require(document.get(part) is None, f"schema {since} for a bundle with {words}")
        return {**document, **dict.fromkeys(lacking)} if lacking else document

    @model_serializer(mode="wrap")
    def _without_what_its_schema_lacks(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        for part in _lacking(self.schema_version):
            del written[part]
        return written

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = {self.modality.value, self.preprocess.kind, self.postprocess.modality.value}
        _require(len(kinds) == 1, f"one modality in modality, preprocess and postprocess; found {sorted(kinds)}")
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        _require(len(set(names)) == len(names), "tensor names are unique")
        _require(self.golden.prepared_tolerance.keys() == {t.name for t in self.inputs}, "a tolerance per input")
        _require(self.golden.output_tolerance.keys() == {t.name for t in self.outputs}, "a tolerance per output")
        files = [*self.named_files(), MANIFEST_NAME]
        _require(len(set(files)) == len(files), f"a name of its own for each file; found {sorted(files)}")
        widths = {tensor.name: tensor.shape[1:] for tensor in self.outputs}
        _require(len(widths.get(self.out_of_distribution.output, ())) == 1, "an output that is the embedding")
        for name, width in _answer_widths(self.postprocess).items():
            _require(widths.get(name) == (width,), f"output {name} with {width} columns, as postprocess calibrates")
        _check_latents(self.postprocess, widths)
        _check_gate(self)
        _check_wide_intervals(self)
        _check_cross_modal(self)
        return self

    def named_files(self) -> tuple[str, ...]:
        """Every file but the manifest itself."""
        gate = () if self.gate is None else (self.gate.graph, self.gate.golden)
        cross = self.cross_modal
        checks = () if cross is None else (cross.graph, cross.golden, cross.statistics)
        return (self.graph, self.golden.file, self.out_of_distribution.file, CARD_NAME, *gate, *checks)


class Manifest(ManifestDraft):
    """The manifest as it lies in the bundle: the draft and the digest of every other file."""

    files: dict[FileName, FileDigest]

    @model_validator(mode="after")
    def _files_present(self) -> Self:
        named = set(self.named_files())
        _require(named <= self.files.keys(), f"digests of {sorted(named)}; found {sorted(self.files)}")
        _require(MANIFEST_NAME not in self.files, "the manifest does not hold its own digest")
        return self


def _lacking(schema_version: Any) -> tuple[str, ...]:
    """Parts that a schema does not know; of something that is no schema none, since it is refused for that."""
    return tuple(part for part, (since, _) in _ADDED.items() if schema_version in range(1, since))


def _answer_widths(post: EchoPostprocess | CmrPostprocess | EcgPostprocess) -> dict[str, int]:
    if isinstance(post, EchoPostprocess):
        return {"ef": 1}
    if isinstance(post, CmrPostprocess):
        return {"logit": 1} if post.reconstruction_gate is None else {"logit": 1, _PSNR: FRAMES}
    return {"estimates": len(post.estimates), "disease_logits": len(post.conditions)}


def _check_latents(post: EchoPostprocess | CmrPostprocess | EcgPostprocess, widths: dict[str, tuple[int, ...]]) -> None:
    """What a network that rebuilds its images states of its latents; N of them for each of two frames."""
    gate = post.reconstruction_gate if isinstance(post, CmrPostprocess) else None
    _require(gate is not None or _PSNR not in widths, f"a reconstruction gate for the output {_PSNR}")
    relevance = widths.get("relevance")
    if relevance is not None:
        _require(len(relevance) == 2 and relevance[0] == FRAMES, "output relevance with one row per frame")
        _require(widths.get("poses") == (relevance[1], 3), "output poses with three columns for each latent")


def _check_gate(draft: ManifestDraft) -> None:
    """A gate reads single frames of the clips that the engine reads."""
    if draft.gate is None:
        return
    _require(draft.modality is Modality.ECHO, "a gate for echo only")
    clip = draft.inputs[0]
    expected = (-1, clip.shape[1], *clip.shape[3:])
    frame = draft.gate.input
    _require((frame.dtype, frame.shape) == (clip.dtype, expected), f"a gate that reads {clip.dtype} frames {expected}")


def _check_wide_intervals(draft: ManifestDraft) -> None:
    """A second interval holds the first one of the same estimate."""
    wide, post = draft.wide_intervals, draft.postprocess
    if wide is None:
        return
    if not isinstance(post, EcgPostprocess):
        _require(False, "wide intervals for ECG only")  # noqa: FBT003 - the check that failed
        return
    first, second = [each.conformal_quantile for each in post.estimates], wide.conformal_quantiles
    _require(len(first) == len(second), f"a wide interval for each of {len(first)} estimates; found {len(second)}")
    _require(all(a <= b for a, b in zip(first, second, strict=True)), "wide intervals that hold the first ones")
    covered = max(each.coverage_percent for each in post.estimates)
    _require(covered < wide.coverage_percent, f"wide intervals that cover more than {covered:g} percent")


def _check_cross_modal(draft: ManifestDraft) -> None:
    """The comparison starts from the embedding that the engine's graph gives."""
    if draft.cross_modal is None:
        return
    _require(draft.modality is Modality.ECG, "a cross-modal check for ECG only")
    wanted = next(tensor for tensor in draft.outputs if tensor.name == draft.out_of_distribution.output)
    found = draft.cross_modal.inputs[0]
    _require(
        found == wanted, f"a first input like the output {wanted.name} {wanted.shape}; found {found.name} {found.shape}"
    )


def _require(condition: bool, expectation: str) -> None:
    if not condition:
        msg = f"not a valid manifest: expected {expectation}"
        raise ValueError(msg)
