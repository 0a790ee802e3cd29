"""The cross-modal check of an ECG bundle: what the manifest allows, what the start replays, and what a comparison says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from engines.bundle import manifest as m
from engines.bundle.card import model_card
from engines.bundle.golden import GoldenCase, golden_cases
from engines.bundle.reader import Bundle, load_bundle
from engines.bundle.second_graphs import CrossModalPart
from engines.bundle.writer import write_bundle
from engines.errors import BundleCorrupt, InferenceError, SelfTestFailed
from engines.predictions import CrossModal
from engines.predictors.cross_modal import (
    CrossModalCheck,
    check_images,
    load_cross_modal,
    open_cross_modal,
    pair_bundle,
)
from engines.predictors.distance import EmbeddingStatistics
from engines.predictors.similarity import GRID, SimilarityStatistics
from engines.preprocess.registry import Prepared, prepare
from engines.records import Modality
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.runner import Arrays
from tests.doubles import bundles, runners

ONNX = ("onnxruntime",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ECG bundle with a cross-modal check."""
    return bundles.write_tiny(
        tmp_path_factory.mktemp("cross") / "ecg", schema_version=4, cross_modal=bundles.cross_modal()
    )


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    """The same, verified."""
    return load_bundle(folder)


def ecg(seed: int = 0) -> Prepared:
    """A prepared ECG."""
    return prepare(bundles.ecg_record(seed), bundles.ECG)


def images(**changes: np.ndarray) -> Prepared:
    """Prepared images of a small stack, the cine too, some of them changed."""
    _, arrays = bundles.small_volumes(bundles.VOLUMES)
    return Prepared(arrays={**arrays, **changes}, sources=(), region_px=None, notes=())


def document(**changes: Any) -> dict[str, Any]:
    """A manifest of schema 4 whose cross-modal part may be changed."""
    draft = bundles.draft(Modality.ECG, schema_version=4, cross_modal=bundles.cross_modal())
    found: dict[str, Any] = json.loads(draft.model_dump_json())
    found["cross_modal"] |= changes
    return found


def test_the_part_survives_json() -> None:
    """A manifest of schema 4 comes back with its part, says that it has no gate, and names three more files."""
    found = m.ManifestDraft.model_validate(document())
    assert found == bundles.draft(Modality.ECG, schema_version=4, cross_modal=bundles.cross_modal())
    assert {"cross_modal.onnx", "cross_modal_golden.npz", "similarity.npz"} < set(found.named_files())
    assert document()["gate"] is None
    assert json.loads(bundles.draft(Modality.ECG, schema_version=4).model_dump_json())["cross_modal"] is None


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_older_schemas_know_no_cross_modal_check(schema: int) -> None:
    """They are written as they always were, read back without it, and may not have one."""
    older = json.loads(bundles.draft(Modality.ECG, schema_version=schema).model_dump_json())
    assert "cross_modal" not in older
    assert m.ManifestDraft.model_validate(older).cross_modal is None
    with pytest.raises(ValidationError, match="schema 4 for a bundle with a cross-modal check"):
        m.ManifestDraft.model_validate({**older, "cross_modal": document()["cross_modal"]})


@pytest.mark.parametrize("field", sorted(CrossModalPart.model_fields))
def test_no_field_of_the_part_has_a_default(field: str) -> None:
    """A part that lacks any one field is refused."""
    lacking = document()
    del lacking["cross_modal"][field]
    with pytest.raises(ValidationError, match="Field required"):
        m.ManifestDraft.model_validate(lacking)


def _tensor(name: str, *shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": [-1, *shape]}


EMBEDDING, VOLUMES = _tensor("embedding", 4), _tensor("volumes", 2, 12, 32, 32)
PROJECTIONS = [_tensor("ecg_projection", 8), _tensor("cmr_projection", 8)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_days": -1}, "greater than or equal to 0"),
        ({"tolerance": -1.0}, "greater than or equal to 0"),
        ({"graph": "model.onnx"}, "a name of its own"),
        ({"statistics": "../similarity.npz"}, "pattern"),
        ({"inputs": [EMBEDDING]}, "at least 2"),
        ({"inputs": [_tensor("embedding", 5), VOLUMES]}, "a first input like the output embedding"),
        ({"inputs": [_tensor("feature", 4), VOLUMES]}, "a first input like the output embedding"),
        ({"inputs": [EMBEDDING, _tensor("volumes", 2, 12, 32, 16)]}, "inputs of images among"),
        ({"inputs": [EMBEDDING, _tensor("volumes", 2, 12, 32, 32, dtype="float16")]}, "inputs of images among"),
        ({"inputs": [EMBEDDING, _tensor("echo", 2)]}, "inputs of images among"),
        ({"inputs": [EMBEDDING, VOLUMES, VOLUMES]}, "names of inputs are unique"),
        ({"outputs": PROJECTIONS[::-1]}, "outputs ecg_projection, cmr_projection"),
        ({"outputs": [PROJECTIONS[0], _tensor("cmr_projection", 9)]}, "projections of one width"),
        ({"outputs": [_tensor(each["name"], 8, dtype="float16") for each in PROJECTIONS]}, "projections in float32"),
    ],
)
def test_contradictory_parts_are_refused(changes: dict[str, Any], message: str) -> None:
    """A part that contradicts itself, its preparation or the engine is refused, and the reason says what was expected."""
    with pytest.raises(ValidationError, match=message):
        m.ManifestDraft.model_validate(document(**changes))


def test_the_check_is_for_ecg() -> None:
    """No engine of another modality may have one."""
    other = {**document(), **json.loads(bundles.draft(Modality.CMR, schema_version=4).model_dump_json())}
    with pytest.raises(ValidationError, match="a cross-modal check for ECG only"):
        m.ManifestDraft.model_validate({**other, "cross_modal": document()["cross_modal"]})


def test_the_card_says_what_the_check_is_for() -> None:
    """Window, width and that it measures nothing stand in the card of a bundle that has the check, and in no other."""
    with_check = model_card(bundles.draft(Modality.ECG, schema_version=4, cross_modal=bundles.cross_modal()))
    assert "at most 7 days apart, both are projected to 8 numbers" in with_check
    assert "it measures nothing" in with_check
    assert "Cross-modal" not in model_card(bundles.draft(Modality.ECG, schema_version=4))


def test_the_files_are_digested(folder: Path, tmp_path: Path) -> None:
    """An altered statistics file or graph is found before anything is read from it."""
    for name in (m.SIMILARITY_NAME, m.CROSS_MODAL_GRAPH_NAME, m.CROSS_MODAL_GOLDEN_NAME):
        copy = tmp_path / name.partition(".")[0]
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes() + (b"x" if file.name == name else b""))
        with pytest.raises(BundleCorrupt, match=name):
            load_cross_modal(copy)


def _written(target: Path, bundle: Bundle, part: CrossModalPart | None, **changes: Any) -> Path:
    """The same bundle with other files of the check."""
    files = None if part is None else replace(bundles.tiny_cross_modal(part), **changes)
    return write_bundle(
        target,
        bundles.draft(Modality.ECG, schema_version=4, cross_modal=bundles.cross_modal()),
        onnx_bytes=bundle.graph(),
        golden=bundle.golden(),
        embedding=EmbeddingStatistics(mean=np.zeros(4), precision=np.eye(4)),
        cross_modal=files,
    )


def test_a_part_comes_with_its_files(bundle: Bundle, tmp_path: Path) -> None:
    """A manifest with a check and no files, or without golden pairs, is not written."""
    with pytest.raises(ValueError, match="has a cross-modal check; give its files"):
        _written(tmp_path / "none", bundle, None)
    with pytest.raises(ValueError, match="at least one golden case"):
        _written(tmp_path / "none", bundle, bundles.cross_modal(), golden=[])
    assert not (tmp_path / "none").exists()


def test_a_bundle_without_the_part_has_no_check(tmp_path: Path) -> None:
    """Nothing is opened for it, and asking for the check of it is an error."""
    plain = bundles.write_tiny(tmp_path / "ecg")
    assert load_cross_modal(plain) is None
    with pytest.raises(ValueError, match="tiny-ecg has no cross-modal check"):
        open_cross_modal(load_bundle(plain))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_it_says_what_the_graphs_say(folder: Path, bundle: Bundle, runtime: str) -> None:
    """Cosine and embedding are those of the graphs, and the shares those of the statistics."""
    part = bundle.manifest.cross_modal
    assert part is not None
    check = load_cross_modal(folder, (runtime,))
    assert check is not None
    assert (check.window_days, check.cmr_spec, check.ecg_spec) == (7, bundles.VOLUMES, bundles.ECG)
    assert (check.identity.name, check.identity.bundle_sha256) == ("tiny-ecg", bundle.sha256)
    assert check.identity.runtime == runtime
    for seed in range(3):
        found = check.compare(ecg(seed), images())
        embedding = OnnxRunner(bundle).run(ecg(seed).arrays)["embedding"]
        given = {tensor.name: images().arrays[tensor.name] for tensor in part.images}
        projected = OnnxRunner(pair_bundle(bundle, part)).run({"embedding": embedding, **given})
        cosine = float((projected["ecg_projection"] * projected["cmr_projection"]).sum())
        assert found.cosine == pytest.approx(cosine, abs=1e-4)
        np.testing.assert_allclose(found.embedding, projected["cmr_projection"][0], atol=1e-4)
        statistics = SimilarityStatistics.from_bytes(bundle.read(part.statistics))
        assert found.below_limit == (cosine < statistics.limit)
        assert found.own_percent == pytest.approx((cosine + 0.5) / 1.5 * 100 if cosine > -0.5 else 0.0, abs=0.1)
    check.close()


def _scripted(bundle: Bundle, direction: np.ndarray, other: np.ndarray) -> CrossModalCheck:
    """Both projections as given, whatever comes in."""
    part = bundle.manifest.cross_modal
    assert part is not None

    def script(_: Mapping[str, np.ndarray]) -> Arrays:
        return {"ecg_projection": direction[None], "cmr_projection": other[None]}

    return CrossModalCheck(
        bundle, OnnxRunner(bundle), runners.ScriptedRunner(pair_bundle(bundle, part).manifest, script)
    )


def test_identical_directions_are_as_alike_as_can_be(bundle: Bundle) -> None:
    """The cosine of one direction with itself is 1 and lies above every known pair; with its opposite -1, below the limit."""
    direction = np.full(8, 1 / math.sqrt(8), np.float32)
    same = _scripted(bundle, direction, direction).compare(ecg(), images())
    assert same.cosine == pytest.approx(1.0, abs=1e-6)
    assert (same.own_percent, same.others_percent, same.below_limit) == (pytest.approx(100, abs=0.1), 100.0, False)
    opposite = _scripted(bundle, direction, -direction).compare(ecg(), images())
    assert opposite.cosine == pytest.approx(-1.0, abs=1e-6)
    assert opposite.below_limit
    assert opposite.embedding == tuple(float(value) for value in -direction)


def test_a_projection_without_direction_is_a_failure(bundle: Bundle) -> None:
    """Zeros of the network are no similarity of 0."""
    with pytest.raises(InferenceError, match="cannot be compared"):
        _scripted(bundle, np.zeros(8, np.float32), np.ones(8, np.float32)).compare(ecg(), images())


def test_another_preparation_raises(bundle: Bundle) -> None:
    """Arrays that are missing, of another shape or of several studies are an error, never a number."""
    check = open_cross_modal(bundle, ONNX)
    volumes = np.asarray(images().arrays["volumes"])
    with pytest.raises(ValueError, match="volumes has shape"):
        check.compare(ecg(), images(volumes=volumes[..., :16]))
    with pytest.raises(ValueError, match="expected slice_mask too"):
        check.compare(ecg(), replace(images(), arrays={"volumes": volumes}))
    with pytest.raises(ValueError, match="expected one ECG and the images of one study"):
        check.compare(ecg(), images(volumes=np.concatenate([volumes, volumes])))
    with pytest.raises(ValueError, match="inputs do not fit the graph"):
        check.compare(replace(ecg(), arrays={"clip": np.zeros((1, 2), np.float32)}), images())
    check.close()
    with pytest.raises(ValueError, match="is closed"):
        check.compare(ecg(), images())


def test_a_runtime_that_disagrees_is_passed_over(bundle: Bundle) -> None:
    """Where projections come out otherwise the next runtime serves; where none agrees nothing does."""
    part = bundle.manifest.cross_modal
    assert part is not None

    def wrong_pair(opened: Bundle) -> runners.DistortedRunner:
        changed = runners.wrong_numbers if opened.manifest.graph == part.graph else runners.unaltered
        return runners.DistortedRunner(opened, changed)

    check = open_cross_modal(bundle, ("bad", "good"), {"bad": wrong_pair, "good": OnnxRunner})
    assert check.identity.runtime == "double"  # of the ECG, which came out right
    with pytest.raises(
        SelfTestFailed, match="no runtime serves the cross-modal check of tiny-ecg: bad: golden record 0"
    ):
        open_cross_modal(bundle, ("bad",), {"bad": wrong_pair})


def test_altered_golden_pairs_are_not_served(bundle: Bundle, tmp_path: Path) -> None:
    """Stacks that are prepared to something else, or are refused, end the start, as do other projections."""
    part = bundle.manifest.cross_modal
    assert part is not None
    (case,) = golden_cases(bundle.read(part.golden))
    stack = case.record
    assert check_images(bundle, part)[0].arrays.keys() == {"embedding", "volumes", "slice_mask"}
    darker = {**case.prepared, "volumes": case.prepared["volumes"] + np.float32(0.01)}
    other = {**case.outputs, "cmr_projection": case.outputs["ecg_projection"]}
    blank = replace(stack, images_SPHW=np.zeros_like(stack.images_SPHW))  # type: ignore[union-attr]
    changed: list[tuple[GoldenCase, type[Exception], str]] = [
        (replace(case, prepared=darker), SelfTestFailed, "golden pair 0: volumes differs by 0.01"),
        (replace(case, outputs=other), SelfTestFailed, "cmr_projection differs"),
        (replace(case, record=blank), SelfTestFailed, "golden pair 0 is refused by preprocessing"),
        (replace(case, record=bundles.ecg_record()), BundleCorrupt, "is a EcgRecord"),
    ]
    for number, (altered, kind, message) in enumerate(changed):
        path = _written(tmp_path / str(number), bundle, part, golden=[altered])
        with pytest.raises(kind, match=message):
            load_cross_modal(path, ONNX)


def test_broken_statistics_are_corrupt(bundle: Bundle, tmp_path: Path) -> None:
    """Statistics that are none end the start."""

    class Broken(SimilarityStatistics):
        def to_bytes(self) -> bytes:
            return b"nothing"

    broken = Broken(own=np.linspace(0, 1, GRID), others=np.linspace(-1, 0, GRID))
    path = _written(tmp_path / "broken", bundle, bundles.cross_modal(), statistics=broken)
    with pytest.raises(BundleCorrupt, match="not a readable"):
        load_cross_modal(path, ONNX)


@pytest.mark.parametrize(
    "changes",
    [{"cosine": 1.1}, {"cosine": math.nan}, {"own_percent": -1.0}, {"others_percent": 101.0}, {"embedding": ()}],
)
def test_a_finding_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    """A cosine beyond 1, shares beyond 0 to 100, and an embedding without numbers are no finding."""
    values = {"cosine": 0.5, "own_percent": 50.0, "others_percent": 99.0, "below_limit": False, "embedding": (1.0,)}
    assert CrossModal(**values).cosine == 0.5  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected -1 to 1"):
        CrossModal(**{**values, **changes})
