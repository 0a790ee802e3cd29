"""Error codes of CUDA as our exceptions, and what to do where no GPU answers.

Every code is looked at: want of memory is ``OutOfMemory``; a code after which every call of the process fails is
``DeviceLost``; any other is ``InferenceError``. Called by ``cuda``.
"""

from __future__ import annotations

from engines.errors import DeviceLost, InferenceError, OutOfMemory

NEW_PROCESS = "the GPU's context is gone and every further call in this process fails: start a new process"

LOST = frozenset(
    {
        "cudaErrorInitializationError",  # also: the process was forked after its first call
        "cudaErrorCudartUnloading",
        "cudaErrorDevicesUnavailable",
        "cudaErrorPriorLaunchFailure",
        "cudaErrorDeviceUninitialized",
        "cudaErrorECCUncorrectable",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorContained",
        "cudaErrorIllegalAddress",
        "cudaErrorLaunchTimeout",
        "cudaErrorContextIsDestroyed",
        "cudaErrorAssert",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalInstruction",
        "cudaErrorMisalignedAddress",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorTensorMemoryLeak",
        "cudaErrorMpsRpcFailure",
        "cudaErrorMpsClientTerminated",
        "cudaErrorExternalDevice",
        "cudaErrorUnknown",
    }
)
"""Codes after which the process cannot use the device again (CUDA Runtime API, ``cudaError_t``)."""

LOOK = "look at `nvidia-smi`; in a container start it with `--gpus all`"
_DRIVER = "install NVIDIA's driver for the GPU (on Ubuntu: sudo ubuntu-drivers install --gpgpu)"
ABSENCES = {
    "cudaErrorInsufficientDriver": f"no driver is installed; {_DRIVER}",
    "cudaErrorStubLibrary": f"only a stub of the driver is found; {_DRIVER}",
    "cudaErrorNoDevice": f"a driver is there and no GPU is visible; {LOOK}, and at CUDA_VISIBLE_DEVICES",
    "cudaErrorSystemDriverMismatch": "the driver's library and its kernel module differ; restart the machine",
    "cudaErrorCompatNotSupportedOnDevice": "the driver's compatibility package does not serve this GPU; update the driver",
    "cudaErrorSystemNotReady": "the GPU's fabric manager does not run; start nvidia-fabricmanager",
}


def error_from_code(name: str, text: str, call: str) -> InferenceError:
    """Return our exception for an error code of CUDA, by the code's name."""
    if name == "cudaErrorMemoryAllocation":
        return OutOfMemory(f"{call} failed: {name} ({text}); the GPU or its host has no memory left for it")
    if name in LOST:
        return DeviceLost(f"{call} failed: {name} ({text}); {NEW_PROCESS}")
    return InferenceError(f"{call} failed: {name} ({text})")
