"""The manifest of a bundle: everything that gives the numbers of a compiled graph their meaning.

A bundle is one folder: ``manifest.json`` (this model), the ONNX graph, the golden vectors, the embedding
statistics and the model card. The manifest holds the digest of every other file, so the digest of the manifest
names the bundle. Written by ``bundle.writer`` (called by training), read by ``bundle.reader``; no defaults:
a missing field is an error, because a default would be a guess about how the network was trained.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from engines.bundle.calibration import CmrPostprocess, EcgPostprocess, EchoPostprocess, Postprocess, WideIntervals
from engines.bundle.parts import (
    FRAMES,
    BundleName,
    CoveragePercent,
    FileDigest,
    FileName,
    NonNegative,
    Part,
    Positive,
    Sentence,
    TensorSpec,
    Version,
    require,
)
from engines.bundle.second_graphs import CrossModalPart, ViewGate
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
_PSNR = "psnr_db"


class OutOfDistribution(Part):
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


class Golden(Part):
    """Records with known results, replayed at every start.

    Args:
        file: ``.npz`` as ``bundle.golden`` writes it.
        prepared_tolerance: absolute, per input name: how far the prepared array may lie from the stored one.
        output_tolerance: absolute, per output name: how far the runtime's answer may lie from the stored one.
    """

    file: FileName
    prepared_tolerance: dict[str, NonNegative]
    output_tolerance: dict[str, NonNegative]


class ManifestDraft(Part):
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
            require(document.get(part) is None, f"schema {since} for a bundle with {words}")
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
        require(len(kinds) == 1, f"one modality in modality, preprocess and postprocess; found {sorted(kinds)}")
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        require(len(set(names)) == len(names), "tensor names are unique")
        require(self.golden.prepared_tolerance.keys() == {t.name for t in self.inputs}, "a tolerance per input")
        require(self.golden.output_tolerance.keys() == {t.name for t in self.outputs}, "a tolerance per output")
        files = [*self.named_files(), MANIFEST_NAME]
        require(len(set(files)) == len(files), f"a name of its own for each file; found {sorted(files)}")
        widths = {tensor.name: tensor.shape[1:] for tensor in self.outputs}
        require(len(widths.get(self.out_of_distribution.output, ())) == 1, "an output that is the embedding")
        for name, width in _answer_widths(self.postprocess).items():
            require(widths.get(name) == (width,), f"output {name} with {width} columns, as postprocess calibrates")
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
        require(named <= self.files.keys(), f"digests of {sorted(named)}; found {sorted(self.files)}")
        require(MANIFEST_NAME not in self.files, "the manifest does not hold its own digest")
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
    require(gate is not None or _PSNR not in widths, f"a reconstruction gate for the output {_PSNR}")
    relevance = widths.get("relevance")
    if relevance is not None:
        require(len(relevance) == 2 and relevance[0] == FRAMES, "output relevance with one row per frame")
        require(widths.get("poses") == (relevance[1], 3), "output poses with three columns for each latent")


def _check_gate(draft: ManifestDraft) -> None:
    """A gate reads single frames of the clips that the engine reads."""
    if draft.gate is None:
        return
    require(draft.modality is Modality.ECHO, "a gate for echo only")
    clip = draft.inputs[0]
    expected = (-1, clip.shape[1], *clip.shape[3:])
    frame = draft.gate.input
    require((frame.dtype, frame.shape) == (clip.dtype, expected), f"a gate that reads {clip.dtype} frames {expected}")


def _check_wide_intervals(draft: ManifestDraft) -> None:
    """A second interval holds the first one of the same estimate."""
    wide, post = draft.wide_intervals, draft.postprocess
    if wide is None:
        return
    if not isinstance(post, EcgPostprocess):
        require(False, "wide intervals for ECG only")  # noqa: FBT003 - the check that failed
        return
    first, second = [each.conformal_quantile for each in post.estimates], wide.conformal_quantiles
    require(len(first) == len(second), f"a wide interval for each of {len(first)} estimates; found {len(second)}")
    require(all(a <= b for a, b in zip(first, second, strict=True)), "wide intervals that hold the first ones")
    covered = max(each.coverage_percent for each in post.estimates)
    require(covered < wide.coverage_percent, f"wide intervals that cover more than {covered:g} percent")


def _check_cross_modal(draft: ManifestDraft) -> None:
    """The comparison starts from the embedding that the engine's graph gives."""
    if draft.cross_modal is None:
        return
    require(draft.modality is Modality.ECG, "a cross-modal check for ECG only")
    wanted = next(tensor for tensor in draft.outputs if tensor.name == draft.out_of_distribution.output)
    found = draft.cross_modal.inputs[0]
    require(
        found == wanted, f"a first input like the output {wanted.name} {wanted.shape}; found {found.name} {found.shape}"
    )
