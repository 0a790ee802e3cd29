"""The torch sides of the GPU benchmark are the released networks, and the work of a graph is counted as torch counts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engines.bundle.reader import Bundle, load_bundle, released_bundles
from engines.errors import SelfTestFailed
from engines.records import Modality
from engines.selftest import check_preprocessing, check_runner
from tests.benchmarks.on_gpu.peaks import macs_of
from tests.benchmarks.on_gpu.torch_networks import NoTorchForm, torch_network
from tests.benchmarks.on_gpu.torch_runner import TorchRunner
from tests.doubles.bundles import write_tiny

pytestmark = pytest.mark.slow
BUNDLES = [load_bundle(path) for path in released_bundles()]
by_name = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.manifest.name)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])


@by_name
def test_the_torch_side_is_the_released_network(bundle: Bundle) -> None:
    """With the weights read back from the graph it answers the golden records within a fifth of what is allowed."""
    runner = TorchRunner(bundle, device="cpu", precision="fp32", compiled=False, graph=False)
    agreement = check_runner(bundle, runner, check_preprocessing(bundle))
    allowed = bundle.manifest.golden.output_tolerance
    assert all(value <= allowed[name] / 5 for name, value in agreement.differences.items())
    runner.close()


def test_another_weight_is_found_by_the_golden_vectors() -> None:
    """Whether the weights were read back right is for the golden vectors to say: one that is off is rejected."""
    bundle = next(one for one in BUNDLES if one.manifest.modality is Modality.ECG)
    runner = TorchRunner(bundle, device="cpu", precision="fp32", compiled=False, graph=False)
    with torch.no_grad():
        runner._network.probes["estimates"].bias += 0.1
    with pytest.raises(SelfTestFailed, match="estimates"):
        check_runner(bundle, runner, check_preprocessing(bundle))
    runner.close()


@by_name
def test_macs_are_those_that_torch_counts(bundle: Bundle) -> None:
    """Products and convolutions of the ONNX graph, against torch's counter, within a thousandth."""
    network = torch_network(bundle)
    tensor = bundle.manifest.inputs[0]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros((1, *tensor.shape[1:]), dtype=getattr(torch, tensor.dtype)))
    assert macs_of(bundle.graph()) == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)


def test_a_graph_of_no_known_network_has_no_torch_side(tmp_path: Path) -> None:
    """It is left out with a reason, and not guessed."""
    with pytest.raises(NoTorchForm, match="does not fit the network"):
        torch_network(load_bundle(write_tiny(tmp_path / "tiny", Modality.ECG)))
