"""The ECG's Vision Transformer: its sizes, its patches, its masked autoencoder, its graph in 32, 16 and 8 bits."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch import Tensor, nn

from engines.build.compile import BatchRange
from engines.build.precision import mixed_precision
from engines.bundle.parts import TensorSpec
from engines.runtime import openvino_runner
from tests.doubles.plans import compiled, needs_rtx
from training.models.ecg_vit import EcgMae, EcgVit, EcgVitNet, EcgVitShape, Rebuilt, mae_loss, patches, record
from training.onnx_graph import OPSET, export_graph, run_graph
from training.weight_storage import UnroundedWeightsError, round_to_int8, with_int8_weights

TINY = EcgVitShape(
    width=16,
    depth=2,
    heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
    patch_leads=3,
    patch_samples=10,
    samples=60,
)
SPEC = TensorSpec(name="ecg", dtype="float32", shape=(-1, 12, 5000))
OUTPUTS = ["estimates", "disease_logits", "embedding"]
BATCH = BatchRange(minimum=1, optimum=1, maximum=4)
BUNDLE_BESIDE_GRAPH_BYTES = 2_300_000
"""Embedding statistics of 384 values, three golden records and the manifest, as the first release has them, rounded up."""


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "tokens", "parameters"),
    [("medium", 600, 47_931_840), ("tiny", 600, 5_367_552), ("small", 100, 672_128)],
)
def test_the_sizes_are_those_of_the_method(name: str, tokens: int, parameters: int) -> None:
    """M is 576 x 12 and T 384 x 3 on patches of one lead and 0.2 s; the small one has a hundred tokens of all leads."""
    shape = getattr(EcgVitShape, name)()
    with torch.device("meta"):
        encoder = EcgVit(shape)
        embedding = encoder(torch.empty(2, 12, 5000))
    assert (shape.tokens, _count(encoder)) == (tokens, parameters)
    assert tuple(embedding.shape) == (2, encoder.width)
    assert (shape.width, shape.depth) == {"medium": (576, 12), "tiny": (384, 3), "small": (128, 3)}[name]


def test_a_patch_is_a_time_of_its_leads() -> None:
    """Token r * Q + q holds leads 3r to 3r + 2 of its ten samples; the record comes back whole."""
    ecg = torch.arange(2 * 12 * 60, dtype=torch.float32).reshape(2, 12, 60)
    tokens = patches(ecg, TINY)
    assert tokens.shape == (2, 24, 30)
    assert torch.equal(tokens[1, 2 * 6 + 4], ecg[1, 6:9, 40:50].flatten())
    assert torch.equal(record(tokens, TINY), ecg)


def test_another_record_is_refused() -> None:
    """Fewer leads or samples are said with what was expected."""
    with pytest.raises(ValueError, match=r"\[2, 12, 50\]; expected \[B, 12, 60\]"):
        EcgVit(TINY)(torch.zeros(2, 12, 50))


@pytest.mark.parametrize("change", [{"heads": 3}, {"patch_samples": 7}, {"patch_leads": 5}, {"decoder_heads": 3}])
def test_a_shape_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    """Heads divide widths, patches tile the record."""
    with pytest.raises(ValueError, match=r"expected heads|do not tile"):
        replace(TINY, **change)


def test_the_embedding_is_normalised_and_knows_lead_and_time() -> None:
    """It has mean 0 and deviation 1 untrained; the same waves in another lead, or later, are another embedding."""
    torch.manual_seed(0)
    encoder = EcgVit(TINY).eval()
    ecg = torch.zeros(3, 12, 60)
    ecg[0, 0, 0:10] = ecg[1, 3, 0:10] = ecg[2, 0, 10:20] = torch.randn(10)
    with torch.no_grad():
        rows = encoder(ecg)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.std(dim=1, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert min(float((rows[0] - rows[other]).abs().max()) for other in (1, 2)) > 1e-3


def _mae() -> EcgMae:
    torch.manual_seed(1)
    return EcgMae(EcgVit(TINY), mask_share=0.7).eval()


@torch.no_grad()
def test_the_encoder_sees_only_the_visible_patches() -> None:
    """70 % are hidden, those of the largest numbers; what stands in them changes nothing that is rebuilt."""
    mae = _mae()
    ecg, noise = torch.randn(2, 12, 60), torch.rand(2, TINY.tokens)
    rebuilt = mae(ecg, noise)
    hidden = patches(rebuilt.hidden, TINY)[..., 0]
    assert hidden.sum(dim=1).tolist() == [17, 17]
    for row in range(2):
        assert noise[row][hidden[row]].min() > noise[row][~hidden[row]].max()
    other = torch.where(rebuilt.hidden, torch.randn(ecg.shape), ecg)
    torch.testing.assert_close(mae(other, noise).ecg, rebuilt.ecg)
    seen = torch.where(rebuilt.hidden, ecg, ecg + 1)
    assert (mae(seen, noise).ecg - rebuilt.ecg).abs().max() > 1e-4


def test_the_loss_of_the_autoencoder_by_hand() -> None:
    """Two leads, one off: 0.9 * MSE of all + 0.1 * (1 - r of the lead that varies)."""
    truth = torch.tensor([[[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    found = torch.tensor([[[0.0, 2.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.0]]])
    hidden = torch.tensor([[[True, True, False, False]] * 2])
    terms = mae_loss(Rebuilt(found, hidden), truth, correlation_weight=0.1)
    correlation = float(np.corrcoef(truth[0, 0].numpy(), found[0, 0].numpy())[0, 1])
    assert float(terms.squared) == pytest.approx(1.25 / 8)
    assert float(terms.squared_hidden) == pytest.approx(1.25 / 4)
    assert float(terms.correlation) == pytest.approx(correlation)
    assert float(terms.total) == pytest.approx(0.9 * 1.25 / 8 + 0.1 * (1 - correlation))


def test_defect_06_the_loss_is_a_mean_that_batches_of_any_size_share() -> None:
    """The loss of two copies of a batch is that of one."""
    mae, ecg, noise = _mae(), torch.randn(3, 12, 60), torch.rand(3, TINY.tokens)
    once = mae_loss(mae(ecg, noise), ecg, correlation_weight=0.1)
    twice = mae_loss(mae(ecg.repeat(2, 1, 1), noise.repeat(2, 1)), ecg.repeat(2, 1, 1), correlation_weight=0.1)
    torch.testing.assert_close(once, twice)


def test_every_weight_of_the_autoencoder_learns() -> None:
    """Encoder, decoder and hidden token all get a gradient."""
    mae, ecg = _mae().train(), torch.randn(2, 12, 60)
    mae_loss(mae(ecg, torch.rand(2, TINY.tokens)), ecg, correlation_weight=0.1).total.backward()
    assert [name for name, value in mae.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("share", [0.0, 1.0, 0.999])
def test_a_mask_that_hides_all_or_nothing_is_refused(share: float) -> None:
    """Some patches are visible and some are not."""
    with pytest.raises(ValueError, match="expected some and not all"):
        EcgMae(EcgVit(TINY), mask_share=share)


def test_a_probe_may_not_take_the_name_of_the_embedding() -> None:
    """The embedding is the encoder's."""
    with pytest.raises(ValueError, match="named 'embedding'"):
        EcgVitNet(EcgVit(TINY), {"embedding": nn.Identity()})


@functools.cache
def _network(size: str) -> EcgVitNet:
    """With probes, and weights as uneven as training leaves them."""
    torch.manual_seed(2)
    shape = getattr(EcgVitShape, size)()
    net = EcgVitNet(
        EcgVit(shape), {"estimates": nn.Linear(shape.width, 3), "disease_logits": nn.Linear(shape.width, 6)}
    ).eval()
    for name, value in net.named_parameters():
        if value.ndim == 1 and name.endswith("bias"):
            nn.init.normal_(value, std=0.1)
    return net


@functools.cache
def _graph(size: str) -> bytes:
    return export_graph(_network(size), SPEC, OUTPUTS)


@functools.cache
def _stored() -> tuple[EcgVitNet, bytes]:
    net = copy.deepcopy(_network("tiny"))
    round_to_int8(net)
    return net, with_int8_weights(export_graph(net, SPEC, OUTPUTS))


def _ecg(records: int = 3) -> Tensor:
    """Beats of other rates over noise."""
    time = np.arange(5000) / 500
    rng = np.random.default_rng(0)
    beats = [np.exp(-(((time * rate) % 1.0 - 0.5) ** 2) / 4e-4) for rate in rng.uniform(0.8, 2.0, records)]
    leads = np.stack([np.outer(rng.normal(size=12), beat) for beat in beats])
    return torch.from_numpy((leads + 0.05 * rng.normal(size=leads.shape)).astype(np.float32))


def _least_cosine(graph: bytes, net: nn.Module, records: int = 3) -> float:
    ecg = _ecg(records)
    with torch.inference_mode():
        expected = net(ecg)
    found = run_graph(graph, "ecg", ecg.numpy())
    assert list(found) == OUTPUTS
    cosines = [
        nn.functional.cosine_similarity(torch.from_numpy(found[name]), expected[name], dim=1).min() for name in OUTPUTS
    ]
    return float(min(cosines))


def test_the_graph_answers_as_torch_for_any_batch() -> None:
    """Embedding and probes have a cosine above 0.9999 to torch, for one record and for three; opset 18."""
    assert min(_least_cosine(_graph("small"), _network("small"), records) for records in (1, 3)) > 0.9999
    opsets = [opset.version for opset in onnx.load_from_string(_graph("small")).opset_import if opset.domain == ""]
    assert opsets == [OPSET]


def test_the_graph_in_half_precision_answers_as_torch() -> None:
    """With products in 16 bits the cosines stay above 0.999."""
    assert _least_cosine(mixed_precision(_graph("small"), "fp16"), _network("small")) > 0.999


@pytest.mark.slow
def test_size_t_in_8_bits_fits_and_answers_as_its_network() -> None:
    """Stored in 8 bits, T stays below 8 MB with all else of its bundle, and the graph is the rounded network to 0.9999."""
    net, graph = _stored()
    assert len(graph) + BUNDLE_BESIDE_GRAPH_BYTES < 8_000_000
    assert len(_graph("tiny")) / 2 > 8_000_000  # half precision would not do
    assert _least_cosine(graph, net) > 0.9999
    assert _least_cosine(_graph("tiny"), _network("tiny")) > 0.9999
    assert _least_cosine(graph, _network("tiny")) > 0.999  # what the rounding itself costs
    assert _least_cosine(mixed_precision(_graph("tiny"), "fp16"), _network("tiny")) > 0.999


@pytest.mark.slow
def test_size_t_in_8_bits_is_multiplied_in_8_bits_by_the_engine() -> None:
    """The engine's runtime keeps the cosine above 0.9999; a graph in single precision is computed in single precision."""
    net, graph = _stored()
    engine = openvino_runner.compiled(openvino, graph, 1)
    assert int(engine.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) > 0
    assert not int(
        openvino_runner.compiled(openvino, _graph("small"), 1).get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
    )
    ecg = _ecg()
    found = engine({"ecg": ecg.numpy()})
    with torch.inference_mode():
        expected = net(ecg)
    for name in OUTPUTS:
        cosine = nn.functional.cosine_similarity(torch.from_numpy(found[name]), expected[name], dim=1)
        assert cosine.min() > 0.9999, name


def test_weights_that_were_not_rounded_are_refused() -> None:
    """Storing them in 8 bits would make another network than the one that was measured."""
    with pytest.raises(UnroundedWeightsError, match="255 levels"):
        with_int8_weights(_graph("small"))


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_small_graph_compiles(precision: str) -> None:
    """TensorRT-RTX compiles it ahead of time on a CPU."""
    assert len(compiled(_graph("small"), "sm_89", BATCH, precision)) > len(_graph("small")) // 3


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_120"])
def test_size_t_in_8_bits_compiles(target: str) -> None:
    """TensorRT-RTX takes the stored form as it is."""
    assert compiled(_stored()[1], target, BATCH)
