"""What this machine has of what a GPU needs: driver, GPU, cuda-python, TensorRT, a folder for plans.

Nothing here is needed to serve: where something is missing, the CPU serves. Called by ``inspection``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from engines.accelerate import PARTS, Parts
from engines.build.plan import RuntimeName
from engines.errors import DeviceUnavailable
from engines.runtime.cuda import Cuda, Device
from stream_processors.inspection import Finding
from stream_processors.settings import GpuSettings

_DRIVER = "sudo apt-get install nvidia-driver (Ubuntu: sudo ubuntu-drivers install --gpgpu), then restart the machine"
_TENSORRT = "pip install 'purkinje[tensorrt]', or make tensorrt where NVIDIA's package index cannot be reached"
_RTX = "pip install 'purkinje[rtx]'"
_FLAVOURS: dict[str, tuple[RuntimeName, ...]] = {
    "auto": ("tensorrt", "tensorrt-rtx"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


def gpu_findings(settings: GpuSettings, parts: Parts = PARTS) -> Iterator[Finding]:
    """Look for each part on its own, so that all that is missing is told at once.

    Args:
        settings: of the GPU.
        parts: doubles in tests.
    """
    driver = parts.seen()
    yield _found("GPU driver", "NVIDIA's is installed" if driver else None, "no NVIDIA driver", _DRIVER)
    cuda, fault = _cuda(parts)
    yield _found("cuda-python", None if cuda is None else "installed", fault, _TENSORRT)
    device = _device(cuda, settings.device) if driver else None
    yield _gpu_finding(cuda, device, settings.device)
    yield _tensorrt_finding(settings, device, parts)
    yield _folder_finding(settings.plans)


def _found(name: str, detail: str | None, missing: str, remedy: str) -> Finding:
    if detail is not None:
        return Finding(name=name, ok=True, detail=detail)
    return Finding(name=name, ok=None, detail=f"missing: {missing}; the CPU serves", remedy=remedy)


def _cuda(parts: Parts) -> tuple[Cuda | None, str]:
    try:
        return parts.open_cuda(), ""
    except DeviceUnavailable as error:
        return None, _without_command(error)


def _device(cuda: Cuda | None, index: int) -> Device | None:
    devices = () if cuda is None else cuda.devices()
    return devices[index] if index < len(devices) else None


def _gpu_finding(cuda: Cuda | None, device: Device | None, index: int) -> Finding:
    if device is not None:
        size, driver = f"{device.total_bytes / 1e9:.0f} GB", f"driver for CUDA {device.driver_version}"
        return Finding(name="GPU", ok=True, detail=f"{index}: {device.name} ({device.capability}), {size}, {driver}")
    count = 0 if cuda is None else len(cuda.devices())
    if count:
        remedy = f"PURKINJE_ENGINE__GPU__DEVICE=0{f' to {count - 1}' if count > 1 else ''}"
        return _found("GPU", None, f"there is no GPU {index}, only {count}", remedy)
    reason = cuda.absence() if cuda is not None else "it cannot be asked for without driver and cuda-python"
    return _found("GPU", None, f"no GPU answers ({reason})", "nvidia-smi says what the driver sees")


def _tensorrt_finding(settings: GpuSettings, device: Device | None, parts: Parts) -> Finding:
    faults = []
    for name in _FLAVOURS[settings.flavour]:
        try:
            flavour = parts.load_flavour(name, lambda: device.capability if device else "")
            if device is not None:
                flavour.require_target(device.capability)
        except (DeviceUnavailable, ValueError) as error:
            faults.append(_without_command(error))
        else:
            return Finding(name="TensorRT", ok=True, detail=f"{flavour.title} {flavour.version}")
    remedy = _RTX if settings.flavour == "tensorrt-rtx" else _TENSORRT
    return _found("TensorRT", None, "; ".join(faults), remedy)


def _folder_finding(folder: Path) -> Finding:
    name = "plans folder"
    try:
        standing = next(path for path in (folder, *folder.parents) if path.exists())
        writable = standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)
    except PermissionError:  # a folder on the way may not be entered
        writable = False
    if not writable:
        remedy = f'sudo install -d -m 700 -o "$USER" {folder}, or set engine.gpu.plans'
        return _found(name, None, f"{folder} cannot be written to", remedy)
    if folder.exists() and folder.stat().st_mode & stat.S_IWOTH:
        detail = f"{folder} may be written to by everybody, and a plan is executable code"
        return Finding(name=name, ok=False, detail=detail, remedy=f"chmod 700 {folder}, then remove what lies in it")
    return Finding(name=name, ok=True, detail=str(folder) if folder.exists() else f"{folder}, made when needed")


def _without_command(error: Exception) -> str:
    """The command stands beside it, as the remedy."""
    return str(error).partition("; install it")[0]
