"""OpenVINO 2026.4 is silently wrong on a square weight that is read transposed and then as it is; it does not serve then.

A gradient written by hand reads its weights so: x W' on the way forth, g W on the way back. Where the transposition is a
node of the graph and W is square, OpenVINO takes W' for both. Two constants, W and W', are read right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from engines.bundle.golden import GoldenCase
from engines.bundle.reader import Bundle, load_bundle
from engines.bundle.writer import write_bundle
from engines.predictors.distance import EmbeddingStatistics
from engines.records import Modality
from engines.runtime.openvino_runner import OpenVinoRunner
from engines.selftest import open_verified_runner
from tests.doubles import bundles

WIDTH = bundles.EMBEDDING
WRONG = "2026.4."
"""The version of OpenVINO that was measured to be wrong."""


def _graph(*, shared: bool) -> bytes:
    """The tiny ECG graph, whose embedding e becomes e W' W, the transposition a node where W is shared."""
    weight = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    model = onnx.load_from_string(bundles.graph(*bundles.signature(Modality.ECG)))
    plain = next(node for node in model.graph.node if "embedding" in node.output)
    plain.output[0] = "plain"
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    if shared:
        model.graph.node.append(helper.make_node("Transpose", ["w"], ["wt"]))
    else:
        model.graph.initializer.append(numpy_helper.from_array(weight.T.copy(), "wt"))
    model.graph.node.append(helper.make_node("MatMul", ["plain", "wt"], ["forth"]))
    model.graph.node.append(helper.make_node("MatMul", ["forth", "w"], ["embedding"]))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _bundle(folder: Path, *, shared: bool) -> Bundle:
    graph, draft = _graph(shared=shared), bundles.draft(Modality.ECG)
    names = [output.name for output in draft.outputs]
    prepared = bundles.prepared_arrays(Modality.ECG)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    outputs = dict(zip(names, session.run(names, prepared), strict=True))
    case = GoldenCase(record=bundles.record(Modality.ECG), prepared=prepared, outputs=outputs)
    statistics = EmbeddingStatistics(mean=np.zeros(WIDTH), precision=np.eye(WIDTH))
    return load_bundle(write_bundle(folder, draft, onnx_bytes=graph, golden=[case], embedding=statistics))


def test_wrong_runtime_is_rejected_and_the_other_serves(tmp_path: Path) -> None:
    """OpenVINO 2026.4 is wrong by a lot; the self-test names the difference, and ONNX Runtime serves."""
    bundle = _bundle(tmp_path / "shared", shared=True)
    golden = bundle.golden()[0]
    openvino = OpenVinoRunner(bundle)
    if not openvino.identity.version.startswith(WRONG):
        pytest.skip(f"OpenVINO {openvino.identity.version}: measured is {WRONG}")
    difference = np.abs(openvino.run(golden.prepared)["embedding"] - golden.outputs["embedding"]).max()
    assert difference > 0.1
    runner, (reason,) = open_verified_runner(bundle, ("openvino", "onnxruntime"))
    assert runner.identity.runtime == "onnxruntime"
    assert reason.startswith("openvino: golden record 0: embedding differs by ")


def test_two_constants_are_read_right(tmp_path: Path) -> None:
    """With W and its transpose as two constants OpenVINO agrees and serves."""
    runner, rejected = open_verified_runner(_bundle(tmp_path / "two", shared=False), ("openvino", "onnxruntime"))
    assert (runner.identity.runtime, rejected) == ("openvino", ())
