"""The manifest refuses everything that would leave a number without its meaning."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from engines.bundle import manifest as m
from engines.bundle.calibration import EchoPostprocess, ProbabilityTable
from engines.bundle.card import model_card
from engines.bundle.second_graphs import TrustedLabel
from engines.records import Modality
from tests.doubles.bundles import conformal, draft, gate, table, wide_intervals

MODALITIES = list(Modality)


def _json(modality: Modality = Modality.ECG) -> dict[str, Any]:
    return json.loads(draft(modality).model_dump_json())


def _gated(**changes: Any) -> dict[str, Any]:
    """An echo manifest of schema 2 with a gate, whose fields may be changed."""
    document = json.loads(draft(Modality.ECHO, schema_version=2, gate=gate()).model_dump_json())
    document["gate"] |= changes
    return document


@pytest.mark.parametrize("modality", MODALITIES)
def test_draft_survives_json(modality: Modality) -> None:
    """A draft written as JSON and read back is the same draft."""
    original = draft(modality)
    assert m.ManifestDraft.model_validate_json(original.model_dump_json()) == original


@pytest.mark.parametrize("field", sorted(m.ManifestDraft.model_fields))
def test_no_field_has_a_default(field: str) -> None:
    """A manifest of the newest schema that lacks any one field is refused."""
    document = {**_gated(), "schema_version": 4, "wide_intervals": None, "cross_modal": None}
    assert m.ManifestDraft.model_validate(document)
    del document[field]
    with pytest.raises(ValidationError):
        m.ManifestDraft.model_validate(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), 5, "Input should be 1, 2, 3 or 4"),
        (("modality",), "cmr", "one modality"),
        (("unheard_of",), 1, "Extra inputs"),
        (("graph",), "../model.onnx", "pattern"),
        (("graph",), "/model.onnx", "pattern"),
        (("graph",), "a\\b.onnx", "pattern"),
        (("graph",), ".hidden", "pattern"),
        (("graph",), "golden.npz", "a name of its own"),
        (("golden", "file"), "MODEL_CARD.md", "a name of its own"),
        (("created_utc",), "2025-01-01T00:00:00", "timezone"),
        (("outputs", 0, "shape"), [-1, 4], "estimates with 3 columns"),
        (("outputs", 0, "name"), "embedding", "unique"),
        (("inputs", 0, "shape"), [1, 12, 200], "-1, then fixed"),
        (("golden", "output_tolerance"), {"ef": 0.1}, "a tolerance per output"),
        (("golden", "prepared_tolerance"), {}, "a tolerance per input"),
        (("out_of_distribution", "output"), "nowhere", "an output that is the embedding"),
        (("out_of_distribution", "limit_distance"), 0.0, "greater than 0"),
        (("metrics", "mae"), float("nan"), "finite"),
        (("postprocess", "estimates", 0, "minimum"), 100.0, "minimum < maximum"),
        (("postprocess", "conditions", 0, "low"), [0.0, 0.3, 0.2, 0.9], "never fall"),
        (("postprocess", "conditions", 0, "low"), [0.0, 0.3, 0.8, 0.9], "low <= high"),
        (("postprocess", "conditions", 0, "high"), [0.1, 0.6, 0.7], "one low and one high"),
        (("postprocess", "conditions", 0, "logits"), [-4.0, 1.0, 1.0, 4.0], "increase strictly"),
    ],
)
def test_contradictions_are_refused(path: tuple[str | int, ...], value: object, message: str) -> None:
    """A manifest with one field that is out of range or contradicts another is refused, and the reason names it."""
    document = _json()
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError, match=message):
        m.ManifestDraft.model_validate(document)


def test_manifest_names_digests_of_its_files() -> None:
    """A complete manifest holds a digest for the graph, the golden vectors, the statistics and the card."""
    digest = {"sha256": "0" * 64, "bytes": 1}
    files = dict.fromkeys((m.GRAPH_NAME, m.GOLDEN_NAME, m.EMBEDDING_NAME, m.CARD_NAME), digest)
    assert m.Manifest.model_validate({**_json(), "files": files}).files[m.GRAPH_NAME].bytes == 1
    del files[m.GOLDEN_NAME]
    with pytest.raises(ValidationError, match="expected digests of"):
        m.Manifest.model_validate({**_json(), "files": files})


def test_manifest_does_not_hold_its_own_digest() -> None:
    """The manifest cannot name itself among its files."""
    digest = {"sha256": "0" * 64, "bytes": 1}
    names = (m.GRAPH_NAME, m.GOLDEN_NAME, m.EMBEDDING_NAME, m.CARD_NAME, m.MANIFEST_NAME)
    with pytest.raises(ValidationError, match="its own digest"):
        m.Manifest.model_validate({**_json(), "files": dict.fromkeys(names, digest)})


@pytest.mark.parametrize("modality", MODALITIES)
def test_card_has_its_headings_and_says_what_it_is_not_for(modality: Modality) -> None:
    """Every card has the same headings, what it was trained on, and that it is not for clinical use."""
    text = model_card(draft(modality))
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Intended use",
        "Method",
        "Training data",
        "Inputs and outputs",
        "Preprocessing",
        "Performance",
        "Uncertainty",
        "When it abstains",
        "Limits",
    ]
    assert "**Trained on nothing at all; not for clinical use.**" in text


def test_card_numbers_come_from_the_manifest() -> None:
    """A metric, an interval and a limit of the manifest stand in the card as they are."""
    text = model_card(draft(Modality.ECHO, metrics={"bias_percent": -1.125}))
    assert "| bias_percent | -1.125 |" in text
    assert "half width 5 %" in text
    assert "more than 8 EF points" in text


def test_card_shows_a_metric_with_its_interval() -> None:
    """The ends of an interval stand behind their metric, not as metrics of their own."""
    metrics = {"auroc": 0.9, "auroc_low": 0.85, "auroc_high": 0.95, "share_low": 0.1}
    text = model_card(draft(Modality.CMR, metrics=metrics))
    assert "| auroc | 0.9 (0.85 to 0.95) |" in text
    assert "auroc_low" not in text
    assert "| share_low | 0.1 |" in text


def test_card_without_metrics_says_so() -> None:
    """A model that was never measured does not show an empty table."""
    assert "Nothing was measured." in model_card(draft(Modality.CMR, metrics={}))


def test_card_states_an_interval_that_grows_with_the_spread() -> None:
    """A normalised interval is described with its offset."""
    post = EchoPostprocess(modality=Modality.ECHO, lvef=conformal(sd_offset=2.0), clip_sd_limit_percent=9.0)
    assert "half width 5 x (spread between clips + 2 %)" in model_card(draft(Modality.ECHO, postprocess=post))


def test_table_needs_two_points() -> None:
    """A probability cannot be interpolated on one point."""
    with pytest.raises(ValidationError):
        ProbabilityTable.model_validate({**table().model_dump(), "logits": [0.0], "low": [0.1], "high": [0.2]})


def _latent_json() -> dict[str, Any]:
    """The document of a cardiac MR network that rebuilds its images: 64 latents on two frames, and the gate."""
    document = _json(Modality.CMR)
    shapes = {"psnr_db": [-1, 2], "contexts": [-1, 2, 64, 16], "poses": [-1, 64, 3], "relevance": [-1, 2, 64]}
    document["outputs"] += [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]
    document["golden"]["output_tolerance"] |= dict.fromkeys(shapes, 0.001)
    gate = {"output": "psnr_db", "minimum_db": 27.5, "percentile": 1.0}
    document["postprocess"]["reconstruction_gate"] = gate
    return document


def test_a_network_with_latents_has_a_manifest_and_a_card() -> None:
    """Outputs with more axes than columns are described, and the card says when the gate abstains."""
    found = m.ManifestDraft.model_validate(_latent_json())
    assert m.ManifestDraft.model_validate_json(found.model_dump_json()) == found
    text = model_card(found)
    assert "| output | contexts | float32 | batch x 2 x 64 x 16 |" in text
    assert "a PSNR below 27.5 dB (1 % of held-out hearts lie below)" in text
    assert "PSNR" not in model_card(draft(Modality.CMR))


@pytest.mark.parametrize("field", ["output", "minimum_db", "percentile"])
def test_no_field_of_the_gate_has_a_default(field: str) -> None:
    """The gate is stated whole, and a network without one says so itself."""
    document = _latent_json()
    del document["postprocess"]["reconstruction_gate"][field]
    with pytest.raises(ValidationError, match=field):
        m.ManifestDraft.model_validate(document)
    silent = _json(Modality.CMR)
    del silent["postprocess"]["reconstruction_gate"]
    with pytest.raises(ValidationError, match="reconstruction_gate"):
        m.ManifestDraft.model_validate(silent)


def test_the_gate_and_its_output_come_together() -> None:
    """A PSNR nobody looks at and a gate without its output are both refused."""
    ungated, blind = _latent_json(), _latent_json()
    ungated["postprocess"]["reconstruction_gate"] = None
    with pytest.raises(ValidationError, match="a reconstruction gate for the output psnr_db"):
        m.ManifestDraft.model_validate(ungated)
    blind["outputs"] = [output for output in blind["outputs"] if output["name"] != "psnr_db"]
    del blind["golden"]["output_tolerance"]["psnr_db"]
    with pytest.raises(ValidationError, match="output psnr_db with 2 columns"):
        m.ManifestDraft.model_validate(blind)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("psnr_db", [-1, 3], "output psnr_db with 2 columns"),
        ("relevance", [-1, 64, 2], "one row per frame"),
        ("relevance", [-1, 2, 63], "three columns for each latent"),
        ("poses", [-1, 64, 2], "three columns for each latent"),
    ],
)
def test_outputs_of_the_latents_fit_each_other(name: str, shape: list[int], message: str) -> None:
    """Frames and latents are the same in every output that is about them."""
    document = _latent_json()
    next(output for output in document["outputs"] if output["name"] == name)["shape"] = shape
    with pytest.raises(ValidationError, match=message):
        m.ManifestDraft.model_validate(document)


def test_schema_1_knows_no_gate() -> None:
    """A manifest of schema 1 is written as it always was, reads back without a gate, and may not have one."""
    document = _json(Modality.ECHO)
    assert "gate" not in document
    assert m.ManifestDraft.model_validate(document).gate is None
    with pytest.raises(ValidationError, match="schema 2 for a bundle with a gate"):
        m.ManifestDraft.model_validate({**document, "gate": _gated()["gate"]})


def test_a_gate_survives_json() -> None:
    """A manifest of schema 2 comes back with its gate; without one it says null."""
    original = draft(Modality.ECHO, schema_version=2, gate=gate())
    assert m.ManifestDraft.model_validate_json(original.model_dump_json()) == original
    without = json.loads(draft(Modality.ECHO, schema_version=2).model_dump_json())
    assert without["gate"] is None
    assert m.ManifestDraft.model_validate(without).gate is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accepted_view": "subcostal"}, "an accepted view among"),
        ({"views": ["apical_four_chamber", "no_heart"]}, "one column per view"),
        ({"views": ["apical_four_chamber", "apical_four_chamber"]}, "unique"),
        ({"graph": "golden.npz"}, "a name of its own"),
        ({"input": {"name": "frames", "dtype": "uint8", "shape": [-1, 1, 8, 8]}}, "a gate that reads uint8 frames"),
        ({"threshold_probability": 1.0}, "less than 1"),
        ({"trusted_labels": [{"attribute": "ViewName", "pattern": "("}]}, "not a regular expression"),
        ({"trusted_labels": [{"attribute": "PatientName", "pattern": "A4C"}]}, "ViewName"),
    ],
)
def test_contradictory_gates_are_refused(changes: dict[str, Any], message: str) -> None:
    """A gate that does not fit the engine, or names what it cannot know, is refused."""
    with pytest.raises(ValidationError, match=message):
        m.ManifestDraft.model_validate(_gated(**changes))


def test_a_gate_is_for_echo() -> None:
    """No other modality has views to check."""
    document = {**_json(), "schema_version": 2, "gate": _gated()["gate"]}
    with pytest.raises(ValidationError, match="a gate for echo only"):
        m.ManifestDraft.model_validate(document)


def test_files_of_a_gate_need_digests() -> None:
    """Graph and golden logits of the gate are files of the bundle like any other."""
    digest = {"sha256": "0" * 64, "bytes": 1}
    names = (m.GRAPH_NAME, m.GOLDEN_NAME, m.EMBEDDING_NAME, m.CARD_NAME)
    with pytest.raises(ValidationError, match="expected digests of"):
        m.Manifest.model_validate({**_gated(), "files": dict.fromkeys(names, digest)})
    complete = dict.fromkeys((*names, m.GATE_GRAPH_NAME, m.GATE_GOLDEN_NAME), digest)
    assert m.Manifest.model_validate({**_gated(), "files": complete}).gate is not None


def test_the_card_tells_of_the_gate() -> None:
    """Whoever reads the card learns what the view check demands, and how many labels are believed."""
    trusted = (TrustedLabel(attribute="ViewName", pattern="A4C"),)
    text = model_card(draft(Modality.ECHO, schema_version=2, gate=gate(trusted_labels=trusted)))
    assert "apical four chamber view in no loop with a probability of at least 0.7 over 4 frames" in text
    assert "Labels believed without looking: 1." in text
    assert "view check" not in model_card(draft(Modality.ECHO))


def _wide(**changes: Any) -> dict[str, Any]:
    """An ECG manifest of schema 3 with two intervals, the second of which may be changed."""
    document = json.loads(draft(Modality.ECG, schema_version=3, wide_intervals=wide_intervals()).model_dump_json())
    document["wide_intervals"] |= changes
    return document


def test_older_schemas_know_no_wide_intervals() -> None:
    """Manifests of schemas 1 and 2 are written as they always were, read back, and may not have a second interval."""
    for document in (_json(), _gated()):
        assert "wide_intervals" not in document
        assert m.ManifestDraft.model_validate(document).wide_intervals is None
        with pytest.raises(ValidationError, match="schema 3 for a bundle with wide intervals"):
            m.ManifestDraft.model_validate({**document, "wide_intervals": _wide()["wide_intervals"]})


def test_wide_intervals_survive_json() -> None:
    """A manifest of schema 3 comes back with both intervals and says that it has no gate."""
    document = _wide()
    found = m.ManifestDraft.model_validate(document)
    assert found == draft(Modality.ECG, schema_version=3, wide_intervals=wide_intervals())
    assert (document["gate"], document["wide_intervals"]["coverage_percent"]) == (None, 95.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conformal_quantiles": [10.0, 10.0]}, "a wide interval for each of 3 estimates; found 2"),
        ({"conformal_quantiles": [10.0, 4.9, 10.0]}, "wide intervals that hold the first ones"),
        ({"coverage_percent": 90.0}, "wide intervals that cover more than 90 percent"),
        ({"conformal_quantiles": []}, "at least 1 item"),
        ({"half_widths": [1.0]}, "Extra inputs"),
    ],
)
def test_contradictory_wide_intervals_are_refused(changes: dict[str, Any], message: str) -> None:
    """A second interval is there for every estimate, holds the first, and covers more."""
    with pytest.raises(ValidationError, match=message):
        m.ManifestDraft.model_validate(_wide(**changes))


def test_wide_intervals_are_for_ecg() -> None:
    """The other engines state one interval."""
    document = {**_gated(), "schema_version": 3, "wide_intervals": _wide()["wide_intervals"]}
    with pytest.raises(ValidationError, match="wide intervals for ECG only"):
        m.ManifestDraft.model_validate(document)


def test_the_card_tells_of_both_intervals() -> None:
    """Whoever reads the card finds both half widths of each estimate with their coverage and unit."""
    text = model_card(draft(Modality.ECG, schema_version=3, wide_intervals=wide_intervals()))
    assert "- rvef: 90 % conformal interval, half width 5 %." in text
    assert "- rvef: 95 % conformal interval besides, half width 15 %." in text
    assert "- cardiac_output: 95 % conformal interval besides, half width 10 l/min." in text
    assert "besides" not in model_card(draft(Modality.ECG))
