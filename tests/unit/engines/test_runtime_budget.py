"""Whether an engine fits is said before it is loaded, in numbers."""

from __future__ import annotations

import pytest

from engines.errors import DeviceUnavailable
from engines.records import Modality
from engines.runtime.budget import RESERVE_BYTES, MemoryNeed, buffer_bytes, require_memory
from tests.doubles import bundles

MIB = 1 << 20
NEED = MemoryNeed(engine="echo-ef", batch=8, plan=40 * MIB, buffers=10 * MIB, activations=50 * MIB)


def test_buffers_are_counted_by_shape_and_type() -> None:
    """Inputs and outputs count with their element size, once per row."""
    echo = bundles.draft(Modality.ECHO)
    assert buffer_bytes(echo, 1) == 2 * 16 * 16 + 4 * (1 + bundles.EMBEDDING)
    assert buffer_bytes(echo, 8) == 8 * buffer_bytes(echo, 1)


def test_need_names_its_parts() -> None:
    """The sentence holds engine, batch, sum and parts; what is not known yet is left out."""
    assert str(NEED) == (
        "echo-ef needs 100.0 MiB of GPU memory at batch 8 (plan 40.0 MiB + activations 50.0 MiB + buffers 10.0 MiB)"
    )
    assert "activations" not in str(MemoryNeed(engine="echo-ef", batch=8, plan=40 * MIB, buffers=10 * MIB))


@pytest.mark.parametrize(
    ("free", "limit", "held"),
    [
        (100 * MIB + RESERVE_BYTES, None, 0),
        (60 * MIB + RESERVE_BYTES, None, 40 * MIB),
        (100 * MIB + RESERVE_BYTES, 100 * MIB, 0),
    ],
)
def test_what_fits_to_the_byte_passes(free: int, limit: int | None, held: int) -> None:
    """An engine that needs exactly what is free, or exactly its limit, is loaded."""
    require_memory(NEED, free_bytes=free, limit_bytes=limit, held_bytes=held)


@pytest.mark.parametrize(
    ("free", "limit", "held", "message"),
    [
        (100 * MIB + RESERVE_BYTES - 1, None, 0, "228.0 MiB are free"),
        (
            90 * MIB,
            None,
            0,
            "90.0 MiB are free, 138.0 MiB too few: free memory on the GPU, build the plan with a smaller",
        ),
        (60 * MIB + RESERVE_BYTES - 1, None, 40 * MIB, "40.0 MiB of it held"),
        (10**12, 100 * MIB - 1, 0, "the limit for it is 100.0 MiB: raise the limit, build the plan with a smaller"),
        (10**12, 100 * MIB - 1, 40 * MIB, "or serve this engine on the CPU"),
    ],
)
def test_one_byte_over_is_refused(free: int, limit: int | None, held: int, message: str) -> None:
    """One byte too many is refused, with the numbers and what to do."""
    with pytest.raises(DeviceUnavailable, match=r"echo-ef needs 100\.0 MiB") as caught:
        require_memory(NEED, free_bytes=free, limit_bytes=limit, held_bytes=held)
    assert message in str(caught.value)
