"""A process that serves one engine, so that it can be killed, starved and lose its GPU.

``python -m tests.benchmarks.on_gpu.worker BUNDLE cpu|cuda PLANS BATCH_MAX wait|lose|starve|rtx`` prints one JSON object a
line: ``ready`` once the golden records are answered, then what became of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED_S = time.monotonic()


def main(bundle: str, device: str, plans: str, batch_max: str, then: str) -> int:
    """Do what is asked; 75 where the GPU is lost, as a service that wants a new process."""
    from engines.bundle.reader import load_bundle

    opened = load_bundle(Path(bundle))
    return _THEN[then](opened, device, Path(plans), int(batch_max))


def _wait(bundle: Any, device: str, plans: Path, batch_max: int) -> int:
    """Answer the same study again and again until somebody ends this process."""
    runner = _ready(bundle, device, plans, batch_max)
    study = dict(bundle.golden()[0].prepared)
    while True:
        runner.run(study)


def _lose(bundle: Any, device: str, plans: Path, batch_max: int) -> int:
    """Let a kernel fail its assertion, after which every call of this process fails, and go on serving."""
    from engines.errors import DeviceLost, EngineError

    runner = _ready(bundle, device, plans, batch_max)
    _break_the_context()
    study = dict(bundle.golden()[0].prepared)
    for attempt in ("first", "second"):
        started_s = time.monotonic()
        try:
            runner.run(study)
        except EngineError as error:
            _say(lost=type(error).__name__, attempt=attempt, message=str(error), seconds=time.monotonic() - started_s)
            code = 75 if isinstance(error, DeviceLost) else 1
        else:
            _say(lost=None, attempt=attempt, message="it answered", seconds=time.monotonic() - started_s)
            return 1
    os._exit(code)  # taking the libraries down without a context may crash or hang


def _starve(bundle: Any, device: str, plans: Path, batch_max: int) -> int:
    """Take nearly all memory of the GPU, then open the engine: the CPU must serve, and say why."""
    from engines.runtime.cuda import open_cuda

    context = open_cuda().open(0)
    while (free_bytes := context.free_bytes() - _LEFT_BYTES) > _MIB:
        context.allocate(min(free_bytes, 1024 * _MIB))
    _ready(bundle, device, plans, batch_max).close()
    context.close()
    return 0


_MIB = 1 << 20
_LEFT_BYTES = 64 * _MIB
"""Enough to live, less than the reserve that an engine must leave."""


def _rtx(bundle: Any, device: str, plans: Path, batch_max: int) -> int:
    """Read a plan of TensorRT-RTX that was compiled for another GPU, and say what the library says."""
    from engines.build.cache import PlanCache
    from engines.build.compile import build_plan, plan_recipe
    from engines.build.flavour import load_flavour
    from engines.runtime.cuda import open_cuda, require_device
    from tests.benchmarks.on_gpu.plans import batch_range

    gpu = require_device(open_cuda(), 0)
    flavour = load_flavour("tensorrt-rtx")
    batch = batch_range(batch_max)
    own = gpu.capability in flavour.targets()
    for target in (gpu.capability,) if own else ("sm_80", "sm_89", "sm_120"):
        recipe = plan_recipe(flavour, bundle, target, "fp32", batch)
        plan = build_plan(PlanCache(plans), plans, flavour, bundle, recipe).plan
        listener = flavour.listener()
        listener.attend(None)
        engine = flavour.module.Runtime(listener).deserialize_cuda_engine(plan.content)
        _say(target=target, gpu=gpu.capability, loads=engine is not None, message="; ".join(listener.errors))
        del engine
    return 0


def _ready(bundle: Any, device: str, plans: Path, batch_max: int) -> Any:
    """Open the engine as the service does, answer all golden records, and say so."""
    from engines.selftest import check_preprocessing, check_runner, open_verified_runner

    prepared = check_preprocessing(bundle)
    runner, _rejected = open_verified_runner(bundle)
    runner = runner if device == "cpu" else _accelerated(bundle, runner, plans, batch_max)
    check_runner(bundle, runner, prepared)
    identity = runner.identity
    _say(
        ready=time.monotonic() - STARTED_S,
        runtime=identity.runtime,
        precision=identity.precision,
        fallback=identity.fallback,
        process=os.getpid(),
    )
    return runner


def _accelerated(bundle: Any, cpu: Any, plans: Path, batch_max: int) -> Any:
    from engines.accelerate import GpuOptions, open_accelerated
    from tests.benchmarks.on_gpu.plans import batch_range

    options = GpuOptions(
        device=0,
        flavour="auto",
        precisions=("fp32",),
        batch=batch_range(batch_max),
        plans=plans,
        cache_bytes=4 << 30,
        memory_bytes=None,
        expected=True,
    )
    return open_accelerated(bundle, options, cpu=cpu, log=lambda line: _say(log=line))


def _break_the_context() -> None:
    import torch

    try:
        torch.zeros(1, device="cuda")[torch.tensor([9], device="cuda")].cpu()
    except RuntimeError as error:
        _say(log=f"provoked: {str(error).splitlines()[0]}")


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


_THEN: dict[str, Callable[[Any, str, Path, int], int]] = {"wait": _wait, "lose": _lose, "starve": _starve, "rtx": _rtx}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
