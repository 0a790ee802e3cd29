"""These tests need a CUDA device. They never skip: not asked for, they are not collected; asked for, they fail without one.

Asked for means that the command line names this folder or the marker ``gpu``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.build.flavour import Flavour, load_flavour
from engines.errors import DeviceUnavailable
from engines.runtime.cuda import Cuda, Device, open_cuda, require_device
from tests.benchmarks.on_gpu.plans import Workshop, batch_range

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take these tests away again where nobody asked for them."""
    if _asked_for(config):
        return
    ours = [item for item in items if HERE in Path(item.path).parents]
    if ours:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


def _asked_for(config: pytest.Config) -> bool:
    named = [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]
    below = any(path == HERE or HERE in path.parents for path in named)
    expression = str(config.getoption("markexpr", default=""))
    return below or ("gpu" in expression and "not gpu" not in expression)


@pytest.fixture(scope="session")
def cuda() -> Cuda:
    """CUDA of this machine; fails where there is none."""
    try:
        found = open_cuda()
        require_device(found, 0)
    except DeviceUnavailable as error:
        pytest.fail(f"these tests were asked for and need a GPU: {error}")
    return found


@pytest.fixture(scope="session")
def device(cuda: Cuda) -> Device:
    """The first GPU."""
    return require_device(cuda, 0)


@pytest.fixture(scope="session")
def flavour(device: Device) -> Flavour:
    """The TensorRT that compiles for this GPU; fails where there is none."""
    reasons = []
    for name in ("tensorrt", "tensorrt-rtx"):
        try:
            found = load_flavour(name, lambda: device.capability)
            found.require_target(device.capability)
        except (DeviceUnavailable, ValueError) as error:
            reasons.append(str(error))
        else:
            return found
    pytest.fail(f"these tests were asked for and need TensorRT: {'; '.join(reasons)}")


@pytest.fixture(scope="session")
def workshop(cuda: Cuda, device: Device, flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where the plans of one run of the tests are built and kept."""
    return Workshop(
        cuda=cuda,
        device=device,
        flavours=(flavour,),
        folder=tmp_path_factory.mktemp("plans"),
        batch=batch_range(8),
    )
