"""The model card: fixed headings, every number generated from the manifest, nothing typed by hand.

Called by ``bundle.writer``; a contract test renders the released cards again and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from engines.bundle.calibration import ConformalEstimate, ProbabilityTable, WideIntervals
from engines.bundle.manifest import ManifestDraft
from engines.bundle.parts import TensorSpec
from engines.bundle.second_graphs import CrossModalPart, ViewGate
from engines.records import Modality

NOT_FOR_CLINICAL_USE = "not for clinical use"


def model_card(manifest: ManifestDraft) -> str:
    """Render the card as Markdown.

    Args:
        manifest: draft or complete; the card depends on the draft's fields only.

    Returns:
        The text of ``MODEL_CARD.md``, ending in a newline.
    """
    sections = (
        ("Intended use", [manifest.intended_use]),
        ("Method", [manifest.method, *_cross_modal(manifest.cross_modal)]),
        ("Training data", [f"Trained on {manifest.training_data}."]),
        ("Inputs and outputs", _tensor_table(manifest)),
        ("Preprocessing", _preprocess_table(manifest)),
        ("Performance", _metric_table(manifest)),
        ("Uncertainty", _uncertainty(manifest)),
        ("When it abstains", _abstention(manifest)),
        ("Limits", [f"This model was trained on {manifest.training_data} and is {NOT_FOR_CLINICAL_USE}."]),
    )
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        f"**Trained on {manifest.training_data}; {NOT_FOR_CLINICAL_USE}.**",
        "",
        f"Modality: {manifest.modality.value}. Made: {manifest.created_utc:%Y-%m-%d}.",
    ]
    for heading, body in sections:
        lines += ["", f"## {heading}", "", *body]
    return "\n".join(lines) + "\n"


def metric_rows(metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each metric; ``<name>_low`` and ``<name>_high`` become the interval of ``<name>``."""
    for name, value in metrics.items():
        owner = name.removesuffix("_low").removesuffix("_high")
        if owner != name and owner in metrics:
            continue
        ends = [metrics[end] for end in (f"{name}_low", f"{name}_high") if end in metrics]
        interval = f" ({ends[0]:.4g} to {ends[1]:.4g})" if len(ends) == 2 else ""
        yield name, f"{value:.4g}{interval}"


def _cross_modal(part: CrossModalPart | None) -> list[str]:
    if part is None:
        return []
    days = "on the same day" if part.window_days == 0 else f"at most {part.window_days} days apart"
    width = part.outputs[0].shape[1]
    sentence = (
        f"Cross-modal check: where cardiac MR of the same patient is there, {days}, both are projected to {width} numbers and "
        "their cosine is read against known pairs. It checks that both belong to one patient; it measures nothing and never "
        "changes the answer."
    )
    return ["", sentence]


def _tensor_table(manifest: ManifestDraft) -> list[str]:
    rows = [_tensor_row("input", tensor) for tensor in manifest.inputs]
    rows += [_tensor_row("output", tensor) for tensor in manifest.outputs]
    return _table(("", "name", "type", "shape"), rows)


def _tensor_row(role: str, tensor: TensorSpec) -> tuple[str, ...]:
    sizes = " x ".join("batch" if size == -1 else str(size) for size in tensor.shape)
    return role, tensor.name, tensor.dtype, sizes


def _preprocess_table(manifest: ManifestDraft) -> list[str]:
    fields = manifest.preprocess.model_dump(mode="json")
    return _table(("parameter", "value"), [(name, str(value)) for name, value in fields.items()])


def _metric_table(manifest: ManifestDraft) -> list[str]:
    if not manifest.metrics:
        return ["Nothing was measured."]
    rows = list(metric_rows(manifest.metrics))
    return ["Measured on held-out cases; in brackets the confidence interval.", "", *_table(("metric", "value"), rows)]


def _uncertainty(manifest: ManifestDraft) -> list[str]:
    post = manifest.postprocess
    if post.modality is Modality.ECHO:
        return [_conformal_sentence(post.lvef)]
    if post.modality is Modality.CMR:
        return [_table_sentence(post.risk, post.undecided_logits)]
    wide = [] if manifest.wide_intervals is None else _wide_sentences(post.estimates, manifest.wide_intervals)
    return _bullets([*map(_conformal_sentence, post.estimates), *wide, *map(_table_sentence, post.conditions)])


def _conformal_sentence(estimate: ConformalEstimate) -> str:
    width = f"{estimate.conformal_quantile:.3g}"
    if estimate.sd_offset is None:
        half_width = f"{width} {estimate.unit}"
    else:
        half_width = f"{width} x (spread between clips + {estimate.sd_offset:.3g} {estimate.unit})"
    return f"{estimate.quantity}: {estimate.coverage_percent:g} % conformal interval, half width {half_width}."


def _wide_sentences(estimates: Sequence[ConformalEstimate], wide: WideIntervals) -> list[str]:
    return [
        f"{each.quantity}: {wide.coverage_percent:g} % conformal interval besides, half width {half_width:.3g} {each.unit}."
        for each, half_width in zip(estimates, wide.conformal_quantiles, strict=True)
    ]


def _table_sentence(table: ProbabilityTable, undecided_logits: float = 0.0) -> str:
    farther = f" and the logit farther than {undecided_logits:g} from where it crosses" if undecided_logits else ""
    return (
        f"{table.condition}: calibrated probability with its Venn-Abers interval; called only when the interval "
        f"lies on one side of {table.threshold_probability:g}{farther}."
    )


def _abstention(manifest: ManifestDraft) -> list[str]:
    limit = manifest.out_of_distribution
    nearer = f"{limit.limit_percentile:g} % of held-out cases lie nearer"
    sentences = [f"The embedding lies farther from the training set than {limit.limit_distance:.4g} ({nearer})."]
    if manifest.gate is not None:
        sentences.insert(0, _gate_sentence(manifest.gate))
    if manifest.postprocess.modality is Modality.ECHO:
        spread = manifest.postprocess.clip_sd_limit_percent
        sentences.append(f"The clips of one study differ by more than {spread:g} EF points (standard deviation).")
    if manifest.postprocess.modality is Modality.CMR and manifest.postprocess.reconstruction_gate is not None:
        gate = manifest.postprocess.reconstruction_gate
        share = f"{gate.percentile:g} % of held-out hearts lie below"
        sentences.append(f"The reconstruction of either frame has a PSNR below {gate.minimum_db:.4g} dB ({share}).")
    return _bullets(sentences)


def _gate_sentence(gate: ViewGate) -> str:
    believed = f" Labels believed without looking: {len(gate.trusted_labels)}." if gate.trusted_labels else ""
    return (
        f"The view check ({gate.name}) sees the {gate.accepted_view.replace('_', ' ')} view in no loop with a probability "
        f"of at least {gate.threshold_probability:g} over {gate.frames} frames, {gate.margin_probability:g} above any "
        f"other view.{believed}"
    )


def _bullets(sentences: Iterable[str]) -> list[str]:
    return [f"- {sentence}" for sentence in sentences]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
