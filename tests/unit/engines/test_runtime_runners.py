"""All runtimes take and give exactly what the manifest says, and raise only our errors; TensorRT on doubles."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import numpy_helper

from engines.bundle.parts import TensorSpec
from engines.bundle.reader import Bundle, load_bundle
from engines.bundle.writer import write_bundle
from engines.errors import BundleCorrupt, BundleError, EngineError, InferenceError, OutOfMemory
from engines.predictors.distance import EmbeddingStatistics
from engines.records import Modality
from engines.runtime.checks import check_declared
from engines.runtime.onnx_runner import OnnxRunner, onnxruntime_errors
from engines.runtime.open import RUNTIMES
from engines.runtime.openvino_runner import OpenVinoRunner, compiled, openvino_errors
from engines.runtime.runner import FP32, FP32_INT8, CheckedRunner, mapped
from engines.runtime.tensorrt_engine import FOREIGN
from tests.doubles import bundles, runners
from tests.doubles.tensorrt import open_double

MODALITIES = list(Modality)
Opener = Callable[[Bundle], CheckedRunner]
OPENERS: list[Opener] = [OnnxRunner, OpenVinoRunner, open_double]
ALL = pytest.mark.parametrize("opener", OPENERS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[Modality, Bundle]:
    """A tiny bundle of each modality."""
    folder = tmp_path_factory.mktemp("bundles")
    return {modality: load_bundle(bundles.write_tiny(folder / modality.value, modality)) for modality in Modality}


@pytest.fixture
def ecg(loaded: dict[Modality, Bundle]) -> Bundle:
    """The ECG bundle: one float input, three outputs."""
    return loaded[Modality.ECG]


@pytest.fixture(params=OPENERS)
def runner(request: pytest.FixtureRequest, ecg: Bundle) -> Iterator[CheckedRunner]:
    """The ECG bundle, opened by each runtime."""
    opened = request.param(ecg)
    yield opened
    opened.close()


def _ecg_input(batch: int = 1) -> dict[str, np.ndarray]:
    return {"ecg": np.random.default_rng(3).normal(size=(batch, 12, 200)).astype(np.float32)}


def _rewritten(folder: Path, graph: bytes, **changes: Any) -> Bundle:
    draft = bundles.draft(Modality.ECG, **changes)
    case = bundles.GoldenCase(record=bundles.ecg_record(), prepared={}, outputs={})
    statistics = EmbeddingStatistics(mean=np.zeros(4), precision=np.eye(4))
    path = write_bundle(folder / "rewritten", draft, onnx_bytes=graph, golden=[case], embedding=statistics)
    return load_bundle(path)


@ALL
@pytest.mark.parametrize("modality", MODALITIES)
def test_golden_outputs_come_out(opener: Opener, modality: Modality, loaded: dict[Modality, Bundle]) -> None:
    """Each runtime gives the stored outputs of every modality, names, dtypes and shapes as in the manifest."""
    bundle = loaded[modality]
    opened = opener(bundle)
    for case in bundle.golden():
        outputs = opened.run(case.prepared)
        assert list(outputs) == [tensor.name for tensor in bundle.manifest.outputs]
        for name, expected in case.outputs.items():
            np.testing.assert_allclose(outputs[name], expected, atol=1e-4)


@pytest.mark.parametrize(("name", "version"), [("onnxruntime", onnxruntime.__version__), ("openvino", None)])
def test_identity_names_the_runtime(name: str, version: str | None, ecg: Bundle) -> None:
    """A runner says which software computes, in which version, precision and where."""
    identity = RUNTIMES[name](ecg).identity
    assert (identity.runtime, identity.precision, identity.device) == (name, "fp32", "CPU")
    assert identity.version == (version or openvino.get_version())


def _with_weights_of_8_bits(graph: bytes) -> bytes:
    """The graph with every matrix as int8 and a scale for each column."""
    model = onnx.load_from_string(graph)
    for tensor in [each for each in model.graph.initializer if len(each.dims) == 2]:
        values = numpy_helper.to_array(tensor)
        scales = (np.abs(values).max(axis=0) / 127).astype(np.float32)
        model.graph.initializer.remove(tensor)
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.rint(values / scales).astype(np.int8), f"{tensor.name}_int8"),
                numpy_helper.from_array(scales, f"{tensor.name}_scale"),
            ]
        )
        stored = [f"{tensor.name}_int8", f"{tensor.name}_scale"]
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", stored, [tensor.name], axis=1))
    return model.SerializeToString()


def test_weights_of_8_bits_are_told_and_multiplied_in_8_bits(tmp_path: Path) -> None:
    """OpenVINO says so in its precision, and its numbers are those of ONNX Runtime, which computes in FP32, to 1 %."""
    graph = _with_weights_of_8_bits(bundles.graph(*bundles.signature(Modality.ECG)))
    bundle = _rewritten(tmp_path, graph)
    openvino_runner, onnx_runner = OpenVinoRunner(bundle), OnnxRunner(bundle)
    assert openvino_runner.identity.precision == FP32_INT8
    assert onnx_runner.identity.precision == FP32
    found, expected = openvino_runner.run(_ecg_input(3)), onnx_runner.run(_ecg_input(3))
    for name, values in expected.items():
        assert np.linalg.norm(found[name] - values) < 0.01 * np.linalg.norm(values), name
    request = compiled(openvino, graph, 1)
    assert int(request.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) > 0


def test_batches_are_independent(runner: CheckedRunner) -> None:
    """A batch of five gives the five answers that five single runs give."""
    inputs = _ecg_input(5)
    together = runner.run(inputs)
    for row in range(5):
        alone = runner.run({"ecg": inputs["ecg"][row : row + 1]})
        for name, array in alone.items():
            np.testing.assert_allclose(together[name][row], array[0], atol=1e-5)


def test_outputs_are_fresh_arrays(runner: CheckedRunner) -> None:
    """The answer of the first run does not change when the runner runs again."""
    first = runner.run(_ecg_input())
    kept = {name: array.copy() for name, array in first.items()}
    runner.run({"ecg": np.zeros((1, 12, 200), dtype=np.float32)})
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def test_non_contiguous_input_gives_the_same_answer(runner: CheckedRunner) -> None:
    """An array with strides is read by value, not by its memory."""
    straight = _ecg_input(2)["ecg"]
    strided = np.asfortranarray(straight)
    assert not strided.flags.c_contiguous
    expected, found = runner.run({"ecg": straight}), runner.run({"ecg": strided})
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "empty"),
        ({"ecg": np.zeros((0, 12, 200), np.float32)}, "empty"),
        ({"ecg": np.float32(1.0).reshape(())}, "empty"),
        ({"clip": np.zeros((1, 12, 200), np.float32)}, r"found \['clip'\], expected \['ecg'\]"),
        ({**_ecg_input(), "more": np.zeros(1, np.float32)}, "expected"),
        ({"ecg": np.zeros((1, 12, 200))}, "ecg is float64, expected float32"),
        ({"ecg": np.zeros((1, 11, 200), np.float32)}, r"shape \(1, 11, 200\), expected \(1, 12, 200\)"),
        ({"ecg": np.zeros((1, 1, 200), np.float32)}, "shape"),
        ({"ecg": np.zeros((12, 200), np.float32)}, "shape"),
        ({"ecg": np.full((1, 12, 200), np.nan, np.float32)}, "2400 values that are not finite"),
        ({"ecg": np.full((1, 12, 200), np.inf, np.float32)}, "not finite"),
    ],
)
def test_wrong_inputs_are_refused(runner: CheckedRunner, inputs: dict[str, np.ndarray], message: str) -> None:
    """Inputs with another name, dtype or shape, or with a value that is not finite, never reach the runtime."""
    with pytest.raises(ValueError, match=message):
        runner.run(inputs)


@pytest.mark.parametrize("distortion", runners.DISTORTIONS[1:2] + runners.DISTORTIONS[3:])
def test_wrong_outputs_are_refused(distortion: runners.Distortion, ecg: Bundle) -> None:
    """A NaN, swapped names, a lost axis, another dtype or a missing output never leaves a runner."""
    with pytest.raises(InferenceError, match="outputs do not fit the manifest"):
        runners.DistortedRunner(ecg, distortion).run(_ecg_input())


def test_closed_runner_refuses(runner: CheckedRunner) -> None:
    """A closed runner says that it is closed."""
    runner.close()
    with pytest.raises(ValueError, match="is closed"):
        runner.run(_ecg_input())


def test_one_thread_unless_asked(ecg: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both runtimes compute in one thread unless more are asked for, and in fp32."""
    sessions, settings = [], []
    make, compile_model = onnxruntime.InferenceSession, openvino.Core.compile_model

    def session(graph: bytes, options: Any, **rest: Any) -> Any:
        sessions.append((options.intra_op_num_threads, options.inter_op_num_threads))
        return make(graph, options, **rest)

    def compiled(self: Any, model: Any, device: str, config: dict[str, Any]) -> Any:
        settings.append(config)
        return compile_model(self, model, device, config)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    for threads in ({}, {"threads": 2}):
        OnnxRunner(ecg, **threads)
        OpenVinoRunner(ecg, **threads)
    assert sessions == [(1, 1), (2, 1)]
    assert [config["INFERENCE_NUM_THREADS"] for config in settings] == [1, 2]
    assert {config["INFERENCE_PRECISION_HINT"] for config in settings} == {"f32"}


@ALL
@pytest.mark.parametrize("graph", [b"not a graph", b"", b"\x08\x0a"])
def test_unreadable_graph_is_a_bundle_error(opener: Opener, graph: bytes, tmp_path: Path) -> None:
    """A graph whose digest is right but which no runtime can parse is the bundle's fault."""
    bundle = _rewritten(tmp_path, graph or b"\x00")
    with pytest.raises(BundleError, match="failed"):
        opener(bundle)


@ALL
@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([("ecg", "float32", (-1, 12, 100))], None, r"ecg is float32 \(-1, 12, 100\)"),
        ([("ecg", "float64", (-1, 12, 200))], None, "ecg is float64"),
        ([("signal", "float32", (-1, 12, 200))], None, r"tensors \['signal'\]"),
        (None, [("estimates", "float32", (-1, 2))], r"tensors \['estimates'\]"),
    ],
)
def test_graph_that_contradicts_the_manifest_is_corrupt(
    opener: Opener, inputs: Any, outputs: Any, message: str, tmp_path: Path
) -> None:
    """A graph with other names, dtypes or shapes than the manifest is refused when it is loaded."""
    own_inputs, own_outputs = bundles.signature(Modality.ECG)
    graph = bundles.graph(_tensors(inputs) or own_inputs, _tensors(outputs) or own_outputs)
    with pytest.raises(BundleCorrupt, match=message):
        opener(_rewritten(tmp_path, graph))


def test_graph_with_fixed_batch_contradicts() -> None:
    """A graph that fixes the batch to one does not fit a manifest that leaves it open."""
    manifest = bundles.draft(Modality.ECG)
    outputs = [(tensor.name, tensor.dtype, tensor.shape) for tensor in manifest.outputs]
    check_declared(manifest, [("ecg", "float32", (-1, 12, 200))], outputs)
    with pytest.raises(BundleCorrupt, match=r"ecg is float32 \(1, 12, 200\)"):
        check_declared(manifest, [("ecg", "float32", (1, 12, 200))], outputs)


def test_every_onnxruntime_exception_is_mapped() -> None:
    """Every exception class ONNX Runtime defines becomes an InferenceError, with its cause kept."""
    kinds = onnxruntime_errors()
    assert {"Fail", "InvalidArgument", "RuntimeException", "EPFail"} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        with pytest.raises(InferenceError, match="ONNX Runtime failed: broken") as caught:
            _raise_mapped(kind("broken"), kinds)
        assert type(caught.value.__cause__) is kind


def test_every_openvino_exception_is_mapped() -> None:
    """Every exception OpenVINO defines, and every built-in one pybind11 translates to, becomes an InferenceError."""
    own = {kind for kind in vars(openvino._pyopenvino).values() if isinstance(kind, type)}
    own = {kind for kind in own if issubclass(kind, BaseException)}
    assert {"GeneralFailure", "OpConversionFailure"} <= {kind.__name__ for kind in own}
    translated = {RuntimeError, ValueError, TypeError, KeyError, IndexError, OverflowError, OSError, MemoryError}
    for kind in own | translated:
        with pytest.raises(InferenceError) as caught:
            _raise_mapped(kind("broken"), openvino_errors())
        assert type(caught.value.__cause__) is kind


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate"),
        RuntimeError("Failed to allocate memory for requested buffer of size 9"),
    ],
)
def test_want_of_memory_is_told_apart(error: Exception) -> None:
    """Whatever a runtime says when memory runs out becomes OutOfMemory, which may be tried again."""
    with pytest.raises(OutOfMemory) as caught:
        _raise_mapped(error, openvino_errors())
    assert caught.value.retriable


def test_long_messages_are_cut() -> None:
    """A runtime's novel becomes one line of bounded length."""
    with pytest.raises(InferenceError) as caught:
        _raise_mapped(RuntimeError("line\n" * 500), openvino_errors())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize(
    ("opener", "error"),
    [
        *((OnnxRunner, kind) for kind in onnxruntime_errors()),
        *((OpenVinoRunner, kind) for kind in openvino_errors()),
        *((open_double, kind) for kind in FOREIGN),
    ],
)
def test_failure_inside_a_runner_is_ours(
    opener: Opener, error: type[Exception], ecg: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever exception the runtime raises in the middle of a run, the caller sees an EngineError."""
    opened = opener(ecg)

    class Failing:
        def run(self, *_arguments: object, **_options: object) -> None:
            raise error("broken")

        infer = enqueue = run

    held = {OnnxRunner: "_session", OpenVinoRunner: "_request", open_double: "_engine"}
    monkeypatch.setattr(opened, held[opener], Failing())
    with pytest.raises(EngineError, match="broken"):
        opened.run(_ecg_input())


@pytest.mark.parametrize(("opener", "module"), [(OnnxRunner, "onnxruntime"), (OpenVinoRunner, "openvino")])
def test_missing_runtime_is_named(
    opener: type[CheckedRunner], module: str, ecg: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the runtime installed, opening says which one is missing and how to get it."""
    original = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == module:
            raise ImportError(f"No module named {name!r}")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BundleError, match=r"cannot be imported.*install the extra `serve`"):
        opener(ecg)


def test_cpu_provider_is_the_only_one(ecg: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ended up on another provider than asked for is refused."""
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _self: ["Other", "CPUExecutionProvider"])
    with pytest.raises(BundleError, match="expected CPUExecutionProvider alone"):
        OnnxRunner(ecg)


def _raise_mapped(error: Exception, kinds: tuple[type[Exception], ...]) -> None:
    with mapped("ONNX Runtime", kinds, InferenceError):
        raise error


def _tensors(stated: list[tuple[str, Any, tuple[int, ...]]] | None) -> tuple[TensorSpec, ...]:
    make: Callable[..., TensorSpec] = TensorSpec
    return tuple(make(name=name, dtype=dtype, shape=shape) for name, dtype, shape in stated or ())
