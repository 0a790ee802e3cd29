"""Which TensorRT this machine has: TensorRT itself or TensorRT-RTX. Both have one API; their modules are chosen here.

TensorRT compiles for the GPU it runs on, and its builder or runtime made on a machine without one is half-made and can
end the process: the GPU is looked for first. TensorRT-RTX compiles for GPUs that need not be there. Nothing is imported
before ``load_flavour``. Called by ``engines.build.compile`` and by whoever runs plans.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TextIO

from engines.build.plan import RuntimeName
from engines.errors import DeviceUnavailable
from engines.runtime.cuda import open_cuda, require_device

Probe = Callable[[], str]
"""Returns the compute capability of the GPU that the calling thread computes on, or raises ``DeviceUnavailable``."""

_MAJOR_MIN = {"tensorrt": 10, "tensorrt-rtx": 1}


@dataclass(frozen=True, kw_only=True)
class _Product:
    title: str
    modules: tuple[str, ...]
    command: str


_PRODUCTS: dict[RuntimeName, _Product] = {
    "tensorrt": _Product(
        title="TensorRT",
        modules=("tensorrt", "tensorrt_bindings"),
        command="pip install 'purkinje[tensorrt]' (or `make tensorrt`, where NVIDIA's package index cannot be reached)",
    ),
    "tensorrt-rtx": _Product(
        title="TensorRT-RTX",
        modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        command="pip install 'purkinje[rtx]'",
    ),
}


def first_gpu() -> str:
    """Return the compute capability of the first GPU, such as ``sm_90``.

    Raises:
        DeviceUnavailable: there is none, or no driver, or cuda-python is not installed.
    """
    return require_device(open_cuda(), 0).capability


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """An installed TensorRT.

    Args:
        name: of the runtime, as in a plan's recipe.
        title: its name in sentences.
        module: with the classes of its API.
        version: of the module.
        probe: looks for the GPU; TensorRT-RTX needs none to compile.
    """

    name: RuntimeName
    title: str
    module: Any
    version: str
    probe: Probe = first_gpu

    @property
    def ahead_of_time(self) -> bool:
        """Whether it compiles for GPUs that are not there."""
        return self.name == "tensorrt-rtx"

    def targets(self) -> tuple[str, ...]:
        """Return the compute capabilities it can compile for here and now.

        Raises:
            DeviceUnavailable: it compiles for the GPU that is there, and there is none.
        """
        return tuple(capabilities(self.module)) if self.ahead_of_time else (self.probe(),)

    def require_target(self, target: str) -> None:
        """Check, before any object of the library is made, that it can compile for a target.

        Raises:
            DeviceUnavailable: it compiles for the GPU that is there, and there is none.
            ValueError: it cannot.
        """
        known = self.targets()
        if target not in known:
            others = "has no others" if self.ahead_of_time else "compiles for the GPU it runs on"
            msg = f"target {target!r}; expected one of {', '.join(known)}: this {self.title} {others}"
            raise ValueError(msg)

    def listener(self) -> Listener:
        """Return the logger that every builder, parser and runtime of the process is given."""
        return listener(self.module)


def load_flavour(name: RuntimeName, probe: Probe = first_gpu) -> Flavour:
    """Import a TensorRT; no builder, no runtime and no device is touched.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        probe: looks for the GPU when one is needed.

    Raises:
        DeviceUnavailable: it is not installed, cannot be loaded, or is too old; the message names the command.
    """
    product = _PRODUCTS[name]
    module = _imported(product)
    version = str(module.__version__)
    if int(version.split(".", maxsplit=1)[0]) < _MAJOR_MIN[name]:
        msg = f"{product.title} {version} is too old; {_MAJOR_MIN[name]} or newer is needed: {product.command}"
        raise DeviceUnavailable(msg)
    return Flavour(name=name, title=product.title, module=module, version=version, probe=probe)


def capabilities(module: Any) -> dict[str, Any]:
    """Return what TensorRT-RTX compiles for, ``sm_89`` -> the library's own value."""
    members = module.ComputeCapability.__members__.items()
    return {f"sm_{name.removeprefix('SM')}": value for name, value in members if name.startswith("SM")}


def _imported(product: _Product) -> Any:
    reasons = []
    for name in product.modules:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: the bindings are there, the library beside them is not
            reasons.append(" ".join(str(error).split()))
            continue
        if hasattr(module, "Builder"):  # a folder of this name on the path is a module, too
            return module
        reasons.append(f"{name} is there without a builder")
    msg = f"{product.title} cannot be imported ({'; '.join(reasons)}); install it: {product.command}"
    raise DeviceUnavailable(msg)


class Listener(Protocol):
    """What a library's logger keeps.

    ``errors`` of the current build, and ``parsing``: name and operator of the node whose parsing was announced last.
    """

    errors: list[str]
    parsing: tuple[str, str]

    def attend(self, log: TextIO | None) -> None:
        """Forget what was said, and write what is said from now on to ``log``."""


@cache
def listener(module: Any) -> Listener:
    """Return the one logger of the process for a library: it keeps the first it is given and ignores every other."""

    class _Listener(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.attend(None)

        def attend(self, log: TextIO | None) -> None:
            self.errors: list[str] = []
            self.parsing = ("", "")
            self._log = log

        def log(self, severity: Any, message: str) -> None:
            if message.startswith("Parsing node: "):
                name, _, operator = message.removeprefix("Parsing node: ").rpartition(" ")
                self.parsing = (name, operator.strip("[]"))
            elif severity <= module.ILogger.Severity.ERROR:
                self.errors.append(" ".join(message.split()))
            self._write(f"{severity.name} {message}\n")

        def _write(self, line: str) -> None:
            try:
                if self._log is not None:
                    self._log.write(line)
            except (OSError, ValueError):  # an exception here would pass through the library and end the process
                self._log = None

    return _Listener()
