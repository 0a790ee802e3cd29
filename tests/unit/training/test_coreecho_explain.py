"""Explanations: where a network looks, what is near, and the files that show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.doubles.echo_runs import FRAMES, SIDE, Encoded, TinyEncoder, discs, tiny_baseline
from training.coreecho.evaluation import Answers
from training.coreecho.explain import Attention, grad_cam, nearest, principal_axes, project
from training.coreecho.explain_pictures import overlay
from training.coreecho.explained import draw_explanation
from training.coreecho.networks import EndToEndNet
from training.models.uniformer import UniFormer, UniFormerShape


class _Sided(nn.Module):
    """The ejection fraction is what lies in the upper half less what lies in the lower half of the third stage."""

    def __init__(self, weights: tuple[float, float]) -> None:
        super().__init__()
        self.blocks3 = nn.Sequential(nn.Identity())
        self.weights = weights

    def forward(self, clip: Tensor) -> Encoded:
        grey = clip[:, :1]
        rows = torch.arange(grey.shape[3])[:, None]
        upper, lower = grey * (rows < grey.shape[3] // 2), grey * (rows >= grey.shape[3] // 2)
        features = self.blocks3(torch.cat([upper, lower], dim=1))
        embedding = features.mean(dim=(2, 3, 4))
        return Encoded(head=(embedding * torch.tensor(self.weights)).sum(dim=1, keepdim=True), embedding=embedding)


def _bright() -> np.ndarray:
    clip = np.full((1, FRAMES, SIDE, SIDE), 200, np.uint8)
    clip[:, -1] = 255
    return clip


class _Tensors(nn.Module):
    """Network of grey shares with a parameter, so that it has a device."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        encoded = self.encoder(self.scale * clip.float() / 255)
        return {"ef": encoded.head, "embedding": encoded.embedding}


def test_both_signs_lie_where_they_are() -> None:
    """What raises the answer lies above, what lowers it below; the brightest frame is the strongest; the scale is shared."""
    found = grad_cam(_Tensors(_Sided((2.0, -1.0))), _bright())
    half = SIDE // 2
    assert found.raises_TSS.shape == (FRAMES, SIDE, SIDE)
    assert found.raises_TSS.max() == pytest.approx(1.0)
    assert found.lowers_TSS.max() == pytest.approx(0.5, abs=0.01)
    assert found.raises_TSS[:, half + 1 :].max() == 0.0
    assert found.lowers_TSS[:, : half - 1].max() == 0.0
    assert found.raises_TSS[-1, 0, 0] > found.raises_TSS[0, 0, 0]
    assert found.raises_TSS[0, 0, 0] == pytest.approx(200 / 255, abs=1e-3)


def test_a_network_that_looks_at_nothing_gives_no_nan() -> None:
    """Weights of zero leave both maps black."""
    found = grad_cam(_Tensors(_Sided((0.0, 0.0))), _bright())
    assert found.raises_TSS.max() == found.lowers_TSS.max() == 0.0


def test_the_real_encoder_is_explained_even_when_frozen() -> None:
    """Through the third stage of a UniFormer without trained weights: finite, as large as the clip, its answer unchanged."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = UniFormerShape(frames=4, size_px=32, widths=(4, 4, 8, 8), depths=(1, 1, 1, 1), head_width=4, dropout=0.1)
    network = EndToEndNet(UniFormer(shape)).eval()
    network.requires_grad_(requires_grad=False)
    clip = np.random.default_rng(0).integers(0, 255, (1, 4, 32, 32)).astype(np.uint8)
    found = grad_cam(network, clip)
    assert found.raises_TSS.shape == (4, 32, 32)
    assert max(found.raises_TSS.max(), found.lowers_TSS.max()) == pytest.approx(1.0)
    assert found.ef_percent == pytest.approx(float(network(torch.from_numpy(clip)[None])["ef"]), abs=1e-4)
    assert not network.encoder.blocks3._forward_hooks


def test_a_network_without_a_third_stage_is_refused() -> None:
    """The message names what was looked for."""
    network: Any = _Tensors(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="blocks3"):
        grad_cam(network, _bright())


def _answers(embeddings: np.ndarray) -> Answers:
    count = len(embeddings)
    keys = tuple(f"video-{index}" for index in range(count))
    return Answers(
        keys=keys,
        patients=keys,
        truth_percent=np.linspace(20, 70, count),
        ef_percent=np.linspace(21, 69, count),
        clip_sd_percent=np.zeros(count),
        embeddings_NE=embeddings,
    )


def test_the_nearest_are_the_nearest() -> None:
    """On a line, the neighbours of 2.1 are 2, 3 and 1, with their distances and true values."""
    known = _answers(np.arange(6.0)[:, None])
    asked = _answers(np.array([[2.1], [5.0]]))
    (first, second) = nearest(known, asked, count=3)
    assert [each.row for each in first] == [2, 3, 1]
    assert first[0].distance == pytest.approx(0.1)
    assert first[0].ef_percent == pytest.approx(known.truth_percent[2])
    assert second[0].key == "video-5"


def test_a_map_has_a_place_for_every_video() -> None:
    """PCA for a few videos, along the line that they lie on; too few and NaN are refused."""
    line = np.outer(np.arange(8.0), np.array([3.0, 4.0, 0.0]))
    places, name = project(line, seed=0)
    assert name.startswith("PCA")
    assert np.abs(np.diff(places[:, 0])) == pytest.approx(np.full(7, 5.0))
    assert principal_axes(line)[:, 1] == pytest.approx(np.zeros(8), abs=1e-9)
    with pytest.raises(ValueError, match="N >= 3"):
        project(line[:2], seed=0)


@pytest.mark.slow
def test_many_videos_are_projected_by_umap() -> None:
    """Two groups that lie apart stay apart, and the same seed gives the same map."""
    rng = np.random.default_rng(0)
    groups = np.concatenate([rng.normal(0, 1, (15, 4)), rng.normal(30, 1, (15, 4))])
    places, name = project(groups, seed=3)
    assert name == "UMAP"
    centres = places[:15].mean(axis=0), places[15:].mean(axis=0)
    assert np.linalg.norm(centres[0] - centres[1]) > places[:15].std()
    assert np.array_equal(places, project(groups, seed=3)[0])


def test_the_overlay_is_grey_where_nothing_is_and_coloured_where_something_is() -> None:
    """What raises is red, what lowers is blue."""
    clip = np.full((1, 2, 2), 100, np.uint8)
    raises, lowers = np.zeros((2, 1, 2, 2), np.float32)
    raises[0, 0, 0] = 1.0
    lowers[0, 1, 1] = 1.0
    coloured = overlay(clip, Attention(raises_TSS=raises, lowers_TSS=lowers, ef_percent=50.0))[0]
    assert coloured[0, 1].tolist() == [100, 100, 100]
    assert coloured[0, 0, 0] > coloured[0, 0, 2] + 50
    assert coloured[1, 1, 2] > coloured[1, 1, 0] + 50


def test_an_explanation_is_a_folder_of_pictures(tmp_path: Path) -> None:
    """A map, and for each shown video attention as PNG and moving GIF and its nearest cases."""
    torch.manual_seed(0)
    run, network = tiny_baseline(), EndToEndNet(TinyEncoder())
    written = draw_explanation(run, network, (discs(8, seed=1), discs(6, seed=2)), tmp_path, shown=2)
    assert len(written) == 7
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    gif = next(path for path in written if path.suffix == ".gif")
    with Image.open(gif) as opened:
        assert opened.n_frames == FRAMES
        assert opened.info["duration"] == round(run.preprocess.frame_step_ms)
    for path in written:
        assert path.stat().st_size > 500


def test_the_shown_videos_span_the_ejection_fractions(tmp_path: Path) -> None:
    """Two shown of six: the lowest and the highest true value."""
    videos = discs(6, seed=2)
    written = draw_explanation(
        tiny_baseline(), EndToEndNet(TinyEncoder()), (discs(8, seed=1), videos), tmp_path, shown=2
    )
    shown = {path.name.removesuffix("-nearest.png") for path in written if path.name.endswith("nearest.png")}
    extremes = {videos.keys[int(pick(videos.ef_percent))] for pick in (np.argmin, np.argmax)}
    assert shown == extremes
