"""A network that rebuilds its images: the gate before its answer, and the picture of what carries it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.bundle import manifest as m
from engines.bundle.calibration import CmrPostprocess, ReconstructionGate
from engines.bundle.parts import TensorSpec
from engines.bundle.reader import Bundle, load_bundle
from engines.errors import RefusalCode
from engines.predictions import Abstention, Picture, Prediction
from engines.predictors.base import Predictor
from engines.predictors.latent_picture import (
    AWAY_RGB,
    TOWARDS_RGB,
    LatentPicture,
    Latents,
    latent_picture,
    markers,
    with_directions,
)
from engines.predictors.patient_directions import Directions
from engines.preprocess.registry import Prepared
from engines.records import Modality, SourceInstance
from tests.doubles import bundles
from tests.doubles.runners import ScriptedRunner

GATE = ReconstructionGate(output="psnr_db", minimum_db=27.0, percentile=1.0)
COUNT, SIZE = 4, 16
SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.1", series_instance_uid="2.25.9")
OUTPUTS = (
    TensorSpec(name="logit", dtype="float32", shape=(-1, 1)),
    TensorSpec(name="embedding", dtype="float32", shape=(-1, bundles.EMBEDDING)),
    TensorSpec(name="psnr_db", dtype="float32", shape=(-1, 2)),
    TensorSpec(name="contexts", dtype="float32", shape=(-1, 2, COUNT, 8)),
    TensorSpec(name="poses", dtype="float32", shape=(-1, COUNT, 3)),
    TensorSpec(name="relevance", dtype="float32", shape=(-1, 2, COUNT)),
)


def gated_draft(**changes: Any) -> m.ManifestDraft:
    """The manifest of a network with latents."""
    post = CmrPostprocess(modality=Modality.CMR, risk=bundles.table(), undecided_logits=0.0, reconstruction_gate=GATE)
    outputs = changes.get("outputs", OUTPUTS)
    golden = m.Golden(
        file=m.GOLDEN_NAME, prepared_tolerance={"image": 1e-4}, output_tolerance={each.name: 1e-3 for each in outputs}
    )
    return bundles.draft(Modality.CMR, **{"postprocess": post, "outputs": OUTPUTS, "golden": golden, **changes})


def latents(relevance_FN: np.ndarray | None = None) -> Latents:
    """Four latents on two images."""
    shares = np.array([[0.5, -1.0, 0.1, 0.0], [0.2, 0.2, -0.2, 2.0]]) if relevance_FN is None else relevance_FN
    poses_N3 = np.array([[-0.5, -0.5, 0.0], [0.5, -0.5, 1.0], [-0.5, 0.5, 2.0], [0.5, 0.5, 3.0]])
    return Latents(images_FSS=np.full((2, SIZE, SIZE), 0.5), poses_N3=poses_N3, relevance_FN=shares)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny bundle under the manifest of a network with latents."""
    tiny = load_bundle(bundles.write_tiny(tmp_path_factory.mktemp("bundle") / "cmr", Modality.CMR))
    changes = {name: getattr(gated_draft(), name) for name in ("postprocess", "outputs", "golden", "training_data")}
    return Bundle(path=tiny.path, manifest=tiny.manifest.model_copy(update=changes), sha256=tiny.sha256)


def predicted(bundle: Bundle, *, psnr_db: tuple[float, float], logit: float = 5.0, distance: float = 0.0) -> Prediction:
    """What the predictor makes of scripted outputs."""
    drawn = latents()
    outputs = {
        "logit": [[logit]],
        "embedding": [[distance, 0, 0, 0]],
        "psnr_db": [psnr_db],
        "contexts": np.zeros((1, 2, COUNT, 8)),
        "poses": drawn.poses_N3[None],
        "relevance": drawn.relevance_FN[None],
    }
    script = {name: np.asarray(value, dtype=np.float32) for name, value in outputs.items()}
    stack = Prepared(arrays=bundles.prepared_arrays(Modality.CMR), sources=(SOURCE,), region_px=None, notes=("a note",))
    return Predictor(bundle, ScriptedRunner(bundle.manifest, lambda _: script)).predict([stack])


def test_an_answer_states_how_well_the_images_were_rebuilt(bundle: Bundle) -> None:
    """Both values and the limit stand in the notes, before those of the preparation."""
    prediction = predicted(bundle, psnr_db=(31.24, 27.0))
    assert prediction.probabilities[0].decision is True
    assert prediction.notes == (
        "Reconstruction of the images: PSNR 31.2 dB at end-diastole, 27.0 dB at end-systole (accepted from 27.0 dB).",
        "a note",
    )


@pytest.mark.parametrize("psnr_db", [(26.9, 40.0), (40.0, 26.9), (-3.0, 1.0)])
@pytest.mark.parametrize("distance", [0.0, 99.0])
def test_a_poor_reconstruction_of_either_frame_gives_no_answer(
    bundle: Bundle, psnr_db: tuple[float, float], distance: float
) -> None:
    """Below the gate the engine abstains and says what it found and expected, near the training data or far from it."""
    prediction = predicted(bundle, psnr_db=psnr_db, distance=distance)
    assert prediction.probabilities == ()
    assert prediction.abstention is not None
    assert prediction.abstention.code is RefusalCode.RECONSTRUCTION_POOR
    found = f"PSNR {psnr_db[0]:.1f} dB at end-diastole, {psnr_db[1]:.1f} dB at end-systole"
    assert f"{found}, expected at least 27.0 dB for both" in prediction.abstention.reason
    assert "check the cine" in prediction.abstention.reason
    assert prediction.sources == (SOURCE,)


def test_only_an_answer_has_a_picture(bundle: Bundle) -> None:
    """Called or undecided, the answer shows what carries it; an abstention would give away what it declines to say."""
    for logit in (5.0, 0.0):
        picture = predicted(bundle, psnr_db=(40.0, 40.0), logit=logit).picture
        assert picture is not None
        assert "Not for clinical use; trained on nothing at all." in picture.caption
    assert predicted(bundle, psnr_db=(40.0, 40.0), distance=99.0).picture is None
    assert predicted(bundle, psnr_db=(1.0, 40.0)).picture is None


def test_an_abstention_with_a_picture_cannot_be_made(bundle: Bundle) -> None:
    """The rule holds for every prediction."""
    answered = predicted(bundle, psnr_db=(40.0, 40.0))
    refusal = Abstention(code=RefusalCode.RECONSTRUCTION_POOR, reason="x")
    with pytest.raises(ValueError, match="carries no picture"):
        Prediction(**{**vars(answered), "probabilities": (), "abstention": refusal})


def test_a_network_without_latents_has_no_gate_and_no_picture(tmp_path: Path) -> None:
    """The gate may be absent only together with what it looks at."""
    tiny = load_bundle(bundles.write_tiny(tmp_path / "cmr", Modality.CMR))
    answers = {"logit": np.float32([[5.0]]), "embedding": np.zeros((1, 4), np.float32)}
    stack = Prepared(arrays=bundles.prepared_arrays(Modality.CMR), sources=(SOURCE,), region_px=None, notes=())
    prediction = Predictor(tiny, ScriptedRunner(tiny.manifest, lambda _: answers)).predict([stack])
    assert (prediction.notes, prediction.picture) == ((), None)


@settings(deadline=None)
@given(shares=st.lists(st.floats(-10, 10), min_size=2 * COUNT, max_size=2 * COUNT))
def test_markers_follow_the_shares(shares: list[float]) -> None:
    """A larger share is a larger, more opaque mark drawn later; the sign decides the form; both frames share one scale."""
    drawn = latents(np.array(shares).reshape(2, COUNT))
    largest = max(map(abs, shares)) or 1.0
    for frame in (0, 1):
        made = list(markers(drawn, frame, 8))
        order = np.argsort(np.abs(drawn.relevance_FN[frame]), kind="stable")
        assert [mark.towards for mark in made] == [bool(drawn.relevance_FN[frame, i] > 0) for i in order]
        assert sorted(mark.radius_px for mark in made) == [mark.radius_px for mark in made]
        expected = [70 + 185 * abs(drawn.relevance_FN[frame, i]) / largest for i in order]
        assert [mark.opacity for mark in made] == pytest.approx(expected, abs=0.51)


def test_markers_lie_where_the_poses_say() -> None:
    """Minus one and one are the centres of the first and last pixel, x runs along columns."""
    corners = np.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    drawn = Latents(images_FSS=np.zeros((2, SIZE, SIZE)), poses_N3=corners, relevance_FN=np.ones((2, COUNT)))
    places = [(mark.x_px, mark.y_px) for mark in markers(drawn, 0, 8)]
    assert places == [(3.5, 3.5), (123.5, 3.5), (63.5, 63.5), (63.5, 123.5)]


def test_the_picture_shows_colours_and_repeats() -> None:
    """Both colours lie in it at their latents, each frame keeps its own shares, and the same input gives the same pixels."""
    one, two = (latent_picture(latents(), condition="c", warning="w").rgb_HW3 for _ in range(2))
    assert np.array_equal(one, two)
    assert one.shape == (30 + 384 + 92, 2 * 384 + 8, 3)
    towards_es = one[30 + 287, 392 + 287].astype(int)
    away_ed = one[30 + 96, 287].astype(int)
    assert np.abs(towards_es - TOWARDS_RGB).max() < 8
    assert np.argmax(away_ed) == np.argmax(AWAY_RGB)
    assert np.ptp(one[30 + 200, 200].astype(int)) == 0


def test_a_picture_of_no_shares_has_the_faintest_marks() -> None:
    """Where nothing carries the result nothing stands out, and nothing is divided by zero."""
    assert {mark.opacity for mark in markers(latents(np.zeros((2, COUNT))), 0, 8)} == {70}


def test_a_long_warning_is_cut_and_the_caption_keeps_it() -> None:
    """The drawn line ends inside the picture; the whole sentence stands in the caption."""
    warning = "Not for clinical use; trained on " + "many things and " * 40
    picture = latent_picture(latents(), condition="c", warning=warning)
    assert warning in picture.caption
    assert (picture.rgb_HW3[-24:, -4:] == picture.rgb_HW3[-1, -1]).all()


def test_the_caption_names_slice_and_phases(bundle: Bundle) -> None:
    """What the preparation says of the images stands in the caption, and that the view is not the stored one."""
    picture = predicted(bundle, psnr_db=(40.0, 40.0)).picture
    assert picture is not None
    assert " a note " in picture.caption
    assert "may be mirrored or turned against the stored images" in picture.caption
    assert picture.caption.count("End-diastole (ED)") == 1


def changed_boxes(picture: LatentPicture, directions: Directions) -> dict[tuple[int, str], np.ndarray]:
    """Which pixels the letters change, per panel and edge: a box of 60 x 30 pixels at the middle of the edge."""
    changed = (with_directions(picture, directions).rgb_HW3 != picture.rgb_HW3).any(axis=2)
    boxes = {}
    for panel, (x0, y0, x1, y1) in enumerate(picture.panels_px):
        x, y = (x0 + x1) // 2, (y0 + y1) // 2
        across, down = slice(x - 30, x + 30), slice(y - 15, y + 15)
        boxes[panel, "left"] = changed[down, x0 : x0 + 60]
        boxes[panel, "right"] = changed[down, x1 - 60 : x1]
        boxes[panel, "top"] = changed[y0 : y0 + 30, across]
        boxes[panel, "bottom"] = changed[y1 - 30 : y1, across]
    assert changed.sum() == sum(box.sum() for box in boxes.values()), "something else was drawn"
    return boxes


def test_both_panels_are_marked_at_every_edge() -> None:
    """Each edge of each panel has its own letters, nothing else changes, and the caption explains them."""
    picture = latent_picture(latents(), condition="c", warning="w")
    one = changed_boxes(picture, Directions(row="L", column="F"))
    other = changed_boxes(picture, Directions(row="LPH", column="F"))
    assert all(20 < box.sum() < 1800 for box in one.values())
    for panel in (0, 1):
        same = {edge for edge in ("left", "right", "top", "bottom") if (one[panel, edge] == other[panel, edge]).all()}
        assert same == {"top", "bottom"}
    marked = with_directions(picture, Directions(row="L", column="F"))
    assert marked.caption.startswith(picture.caption)
    assert "R right, L left, A anterior, P posterior, H head, F foot" in marked.caption
    assert marked.panels_px == picture.panels_px


def test_panels_lie_where_the_images_are() -> None:
    """Each panel holds its own image and nothing of the frame around it."""
    drawn = Latents(
        images_FSS=np.stack([np.full((SIZE, SIZE), 0.2), np.full((SIZE, SIZE), 0.8)]),
        poses_N3=latents().poses_N3,
        relevance_FN=np.zeros((2, COUNT)),
    )
    picture = latent_picture(drawn, condition="c", warning="w")
    x_end = picture.rgb_HW3.shape[1]
    for (x0, y0, x1, y1), grey in zip(picture.panels_px, (51, 204), strict=True):
        for row, column in ((y0, x0), (y0, x1 - 1), (y1 - 1, x0), (y1 - 1, x1 - 1)):
            assert (picture.rgb_HW3[row, column] == grey).all()
        outside = [(y0 - 1, x0), (y1, x0), *([(y0, x0 - 1)] if x0 else []), *([(y0, x1)] if x1 < x_end else [])]
        assert not any((picture.rgb_HW3[place] == grey).any() for place in outside)


@pytest.mark.parametrize(
    ("images", "poses", "relevance"),
    [
        ((2, 8, 9), (4, 3), (2, 4)),
        ((1, 8, 8), (4, 3), (2, 4)),
        ((2, 8, 8), (4, 2), (2, 4)),
        ((2, 8, 8), (4, 3), (2, 5)),
    ],
)
def test_latents_that_do_not_belong_together_are_refused(images: Any, poses: Any, relevance: Any) -> None:
    """Shapes that disagree are the caller's mistake."""
    with pytest.raises(ValueError, match=r"expected \[2, S, S\]"):
        Latents(images_FSS=np.zeros(images), poses_N3=np.zeros(poses), relevance_FN=np.zeros(relevance))


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_rgb_image_is_no_picture(pixels: np.ndarray) -> None:
    """A picture is uint8 with three channels."""
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        Picture(rgb_HW3=pixels, caption="x")
