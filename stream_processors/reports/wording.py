"""The sentences of the readable companion and of the terminal: one wording for everybody who reads.

Plain English, no patient data. Called by ``companion``.
"""

from __future__ import annotations

from engines.predictions import ClassProbability, Estimate, Interval, ModelIdentity, Prediction
from engines.records import Modality
from stream_processors.cross_modal import NAMES, CrossModalFinding, cosine_text, percent_text
from stream_processors.reports import codes
from stream_processors.reports.content import reported
from stream_processors.reports.evidence import Evidence

STATUS = "AI output, not reviewed."
EF_CLASSES = {(0.0, 40.0): "40 % or less", (40.1, 49.9): "41 to 49 %", (50.0, 100.0): "50 % or more"}
"""Of the left ventricular ejection fraction: reduced, mildly reduced, preserved (2021 universal definition of heart failure)."""
ALIKE = "That is usual for one patient, and no proof of it."
UNLIKE = "That is unusually little for one patient: make sure that both studies are of this patient."
PHANTOMS = "Trained on phantoms, not for clinical use."


def result_sentences(prediction: Prediction) -> list[str]:
    """The answer: one sentence for each number, or why there is none."""
    if prediction.abstention is not None:
        return [f"No result: {prediction.abstention.reason}", f"Reason code: {prediction.abstention.code.value}"]
    sentences = [_estimate(prediction.modality, estimate) for estimate in prediction.estimates]
    if prediction.modality is Modality.ECHO:
        sentences += [_class(estimate) for estimate in prediction.estimates]
    sentences += [_probability(probability) for probability in prediction.probabilities]
    if prediction.modality is Modality.CMR:
        sentences += [_meaning(probability) for probability in prediction.probabilities]
    return sentences


def status_sentences(model: ModelIdentity) -> list[str]:
    """What the reader must know before the number."""
    return [STATUS, *([PHANTOMS] if "phantom" in model.training_data.lower() else [])]


def model_sentences(prediction: Prediction) -> list[str]:
    """Who says so."""
    model = prediction.model
    sentences = [
        f"Model: {model.name}, version {model.version}, method {model.method}.",
        f"Training data: {_clause(model.training_data)}. Intended use: {_clause(model.intended_use)}.",
        f"Bundle SHA-256 {model.bundle_sha256}, run by {model.runtime} {model.runtime_version} ({model.precision}).",
        *_plan_sentences(model),
    ]
    if prediction.out_of_distribution_score is not None:
        score = prediction.out_of_distribution_score
        sentences.append(f"Distance to the training data: {score:.2f} (limit 1.00, above it no result is given).")
    return sentences


def evidence_sentences(evidence: Evidence) -> list[str]:
    """What the report could not refer to."""
    if not evidence.unreferenced:
        return []
    total = evidence.unreferenced + len(evidence.instances)
    return [
        f"{evidence.unreferenced} of {total} source instances have malformed UIDs; the report does not refer to them."
    ]


def picture_sentences(prediction: Prediction) -> list[str]:
    """Where the picture lies and how it is read."""
    if prediction.picture is None:
        return []
    return [f"The series AI picture of this study shows what carries the result. {prediction.picture.caption}"]


def cross_modal_sentences(finding: CrossModalFinding | None) -> list[str]:
    """What the check against the patient's other study found, or why it was not made."""
    if finding is None:
        return []
    days = "on the same day" if finding.days_apart == 0 else f"{finding.days_apart} days apart"
    days = "1 day apart" if finding.days_apart == 1 else days
    partner = f"the {NAMES[finding.partner_modality]} of the same patient, {days}"
    study = f"study {finding.partner_study_instance_uid}"
    if finding.similarity is None:
        return [f"Cross-modal check with {partner} ({study}): not compared, {_clause(str(finding.not_compared))}."]
    said = finding.similarity
    shares = (
        f"{percent_text(said.own_percent)} % of known pairs of one patient and of "
        f"{percent_text(said.others_percent)} % of pairs of two patients"
    )
    found = f"Cross-modal check with {partner} ({study}): similarity {cosine_text(said)}, above that of {shares}."
    return [f"{found} {UNLIKE if said.below_limit else ALIKE} It checks identity and measures nothing of the heart."]


def _plan_sentences(model: ModelIdentity) -> list[str]:
    """Which plan ran where, and why a fallback computed instead; nothing where a graph ran as it is."""
    sentences = []
    if model.plan_sha256 is not None:
        sentences.append(f"Plan SHA-256 {model.plan_sha256}, on {model.device}.")
    if model.fallback is not None:
        sentences.append(f"A fallback computed this answer: {_clause(model.fallback)}.")
    return sentences


def _clause(sentence: str) -> str:
    return sentence.strip().rstrip(".")


def _estimate(modality: Modality, estimate: Estimate) -> str:
    label = codes.QUANTITIES[modality, estimate.quantity].label
    both = [each for each in (estimate.interval, estimate.wide_interval) if each is not None]
    intervals = ", ".join(f"{_interval(each)} {estimate.unit}" for each in both)
    sentence = f"{label}: {reported(estimate.value)} {estimate.unit} ({intervals})."
    if estimate.between_clip_sd is None:
        return sentence
    return f"{sentence} Mean of several clips, standard deviation {reported(estimate.between_clip_sd)} {estimate.unit}."


def _interval(interval: Interval) -> str:
    return f"{interval.coverage_percent:g} % interval {reported(interval.low)} to {reported(interval.high)}"


def _class(estimate: Estimate) -> str:
    """The class that the whole interval lies in, or that it lies in none; of the numbers as they are printed."""
    low, high = reported(estimate.interval.low), reported(estimate.interval.high)
    for (floor, ceiling), words in EF_CLASSES.items():
        if floor <= low and high <= ceiling:
            return f"The whole interval lies in the class {words}."
    return "The interval reaches over more than one class (40 % or less, 41 to 49 %, 50 % or more): none is called."


def _meaning(probability: ClassProbability) -> str:
    share = f"{100 * probability.probability:.0f} of 100"
    return (
        f"How to read it: among cases like those the model was calibrated on, about {share} with this probability have "
        f"the finding ({codes.CONDITIONS[probability.condition].label.lower()}). It is called present or absent only "
        "where the result lies clearly on one side of the threshold. No volume and no ejection fraction was measured."
    )


def _probability(probability: ClassProbability) -> str:
    label = codes.CONDITIONS[probability.condition].label
    low, high = reported(100 * probability.interval.low), reported(100 * probability.interval.high)
    decision = codes.presence_of(probability.decision).meaning.lower()
    return (
        f"{label}: probability {reported(100 * probability.probability)} % "
        f"(Venn-Abers interval {low} to {high} %), {decision} "
        f"(threshold {reported(100 * probability.threshold_probability)} %)."
    )
