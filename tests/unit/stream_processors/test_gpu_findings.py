"""``purkinje check`` names each missing part of what a GPU needs, with the command that adds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.accelerate import Parts
from engines.build.flavour import Flavour
from engines.errors import DeviceLost, DeviceUnavailable
from engines.records import Modality
from stream_processors import routes
from stream_processors.gpu_findings import gpu_findings
from stream_processors.inspection import Finding, _engine_finding, check
from stream_processors.settings import EngineSettings, GpuSettings, Settings
from tests.doubles.bundles import write_tiny
from tests.doubles.cuda import CudaDouble, Gpu
from tests.doubles.tensorrt import TensorRtDouble

NAMES = ["GPU driver", "cuda-python", "GPU", "TensorRT", "plans folder"]


def _parts(
    cuda: CudaDouble | None = None, *, driver: bool = True, cuda_python: bool = True, installed: tuple[str, ...] = ()
) -> Parts:
    made = cuda or CudaDouble(Gpu())

    def open_cuda() -> CudaDouble:
        if not cuda_python:
            raise DeviceUnavailable("cuda-python cannot be imported (x); install it: pip install y")
        return made

    def load_flavour(name: Any, probe: Callable[[], str]) -> Flavour:
        if name not in installed:
            raise DeviceUnavailable(f"{name} cannot be imported (x); install it: pip install y")
        return Flavour(name=name, title=name, module=TensorRtDouble(made), version="10.15.1.29", probe=probe)

    return Parts(seen=lambda: driver, open_cuda=open_cuda, load_flavour=load_flavour)


def _found(folder: Path, parts: Parts, **settings: Any) -> dict[str, Finding]:
    gpu = GpuSettings(**{"plans": folder / "plans", **settings})
    return {finding.name: finding for finding in gpu_findings(gpu, parts)}


def test_a_machine_with_everything_misses_nothing(tmp_path: Path) -> None:
    """Driver, GPU with memory and driver version, TensorRT with its version, and a folder that can be made."""
    found = _found(tmp_path, _parts(installed=("tensorrt",)))
    assert {name: found[name].ok for name in NAMES} == dict.fromkeys(NAMES, True)
    assert "NVIDIA Double 9000 (sm_90)" in found["GPU"].detail
    assert "13.0" in found["GPU"].detail
    assert found["TensorRT"].detail == "tensorrt 10.15.1.29"
    assert not (tmp_path / "plans").exists(), "a check changes nothing"


def test_a_machine_without_anything_is_told_all_of_it_at_once(tmp_path: Path) -> None:
    """Each part is missing but not needed, and has the command that adds it."""
    (tmp_path / "file").write_text("")
    found = _found(tmp_path / "file", _parts(CudaDouble(), driver=False, cuda_python=False))
    assert {name: found[name].ok for name in NAMES} == dict.fromkeys(NAMES, None)
    assert "nvidia-driver" in found["GPU driver"].remedy
    assert "pip install 'purkinje[tensorrt]'" in found["cuda-python"].remedy
    assert "pip install 'purkinje[tensorrt]'" in found["TensorRT"].remedy
    assert "make tensorrt" in found["TensorRT"].remedy
    assert "nvidia-smi" in found["GPU"].remedy
    assert found["plans folder"].remedy.startswith("sudo install -d -m 700")
    assert all("the CPU serves" in found[name].detail for name in NAMES)
    assert "install it" not in found["cuda-python"].detail, "the command stands once, as the remedy"


@pytest.mark.parametrize(
    ("missing", "changes", "settings", "word"),
    [
        ("cuda-python", {"cuda_python": False}, {}, "cuda-python cannot be imported"),
        ("GPU", {"cuda": CudaDouble(driver=13000)}, {}, "no GPU answers"),
        ("GPU", {}, {"device": 2}, "there is no GPU 2, only 1"),
        ("TensorRT", {"installed": ()}, {}, "tensorrt-rtx cannot be imported"),
        ("TensorRT", {}, {"flavour": "tensorrt-rtx"}, "tensorrt-rtx cannot be imported"),
    ],
    ids=["cuda-python", "gpu", "index", "tensorrt", "flavour"],
)
def test_one_missing_part_is_the_one_that_is_named(
    tmp_path: Path, missing: str, changes: dict[str, Any], settings: dict[str, Any], word: str
) -> None:
    """The others are found all the same, but for a GPU that cannot be asked for."""
    found = _found(tmp_path, _parts(**{"installed": ("tensorrt",), **changes}), **settings)
    lacking = {name for name in NAMES if found[name].ok is not True}
    assert missing in lacking
    assert lacking <= {missing, "GPU"}
    assert word in found[missing].detail
    assert found[missing].remedy


def test_a_folder_that_everybody_may_write_to_fails(tmp_path: Path) -> None:
    """A plan is executable code: whoever can write there can run code here."""
    folder = tmp_path / "plans"
    folder.mkdir()
    folder.chmod(0o777)
    found = _found(tmp_path, _parts())["plans folder"]
    assert (found.ok, found.remedy.startswith("chmod 700")) == (False, True)
    folder.chmod(0o700)
    assert _found(tmp_path, _parts())["plans folder"].ok is True


def test_a_folder_that_may_not_be_entered_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that another user runs ends with its table, too."""

    def denied(_path: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "exists", denied)
    found = _found(tmp_path, _parts())["plans folder"]
    assert found.ok is None
    assert "cannot be written to" in found.detail


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A site with one tiny engine and a PACS that does not answer."""
    (tmp_path / "bundles").mkdir()
    write_tiny(tmp_path / "bundles" / "ecg", Modality.ECG)
    return Settings(
        site_url="https://hospital.example",
        log=f"sqlite://{tmp_path}/log.db",  # type: ignore[arg-type]
        modalities=(Modality.ECG,),
        pacs={"rest": {"url": "http://127.0.0.1:9"}},  # type: ignore[arg-type]
        engine=EngineSettings(bundles=tmp_path / "bundles", gpu=GpuSettings(plans=tmp_path / "plans")),
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_a_check_looks_for_a_gpu_where_the_site_wants_one(settings: Settings, wanted: bool) -> None:
    """A site that named the CPU's runtimes alone hears nothing of GPUs."""
    runtimes = ("tensorrt", "onnxruntime") if wanted else ("onnxruntime",)
    engine = settings.engine.model_copy(update={"runtimes": runtimes})
    names = [finding.name for finding in check(settings.model_copy(update={"engine": engine}))]
    assert [name for name in names if name in NAMES] == (NAMES if wanted else [])


def test_a_check_says_on_what_each_engine_computes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtime, device and precision; where TensorRT was asked for in vain, the reason too. Nothing is built."""
    expecting = EngineSettings(**{**settings.engine.model_dump(), "runtimes": ("tensorrt", "onnxruntime")})
    monkeypatch.setattr(routes, "PARTS", Parts(seen=lambda: False))
    finding = _engine_finding(Modality.ECG, settings.model_copy(update={"engine": expecting}))
    assert finding.ok is True
    assert "onnxruntime, CPU, fp32; a fallback: no driver of an NVIDIA GPU" in finding.detail
    plain = _engine_finding(Modality.ECG, settings)
    assert "fallback" not in plain.detail


def test_a_gpu_that_is_lost_under_a_check_is_a_finding(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with its table, not with a traceback."""

    def lost(*_: Any, **__: Any) -> None:
        raise DeviceLost("the GPU is gone")

    monkeypatch.setattr(routes, "open_engine", lost)
    finding = _engine_finding(Modality.ECG, settings)
    assert finding.ok is False
    assert "nvidia-smi" in finding.remedy


def test_a_check_builds_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with everything but a plan: the check says who builds it, and leaves the folder as it is."""
    expecting = EngineSettings(**{**settings.engine.model_dump(), "runtimes": ("tensorrt", "onnxruntime")})
    monkeypatch.setattr(routes, "PARTS", _parts(installed=("tensorrt",)))
    finding = _engine_finding(Modality.ECG, settings.model_copy(update={"engine": expecting}))
    assert finding.ok is True
    assert "`purkinje run` builds it" in finding.detail
    assert not settings.engine.gpu.plans.exists()
