"""What all parts of a manifest are made of: names, digests, limits and tensors.

Called by ``bundle.manifest``, ``bundle.calibration`` and ``bundle.second_graphs``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$", max_length=64)]
BundleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]
Version = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$", max_length=16)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sentence = Annotated[str, Field(min_length=1, max_length=2000)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
CoveragePercent = Annotated[float, Field(gt=0, le=100)]
DType = Literal["uint8", "int32", "int64", "float16", "float32", "float64"]
FRAMES = 2
"""Images of one cardiac MR study: end-diastole, then end-systole."""


class Part(BaseModel):
    """Frozen; an unknown field or a number that is none is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Part):
    """Name, dtype and shape of one input or output; -1 stands for the batch axis, which comes first."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    dtype: DType
    shape: Annotated[tuple[int, ...], Field(min_length=1, max_length=8)]

    @model_validator(mode="after")
    def _batch_first(self) -> Self:
        require(self.shape[0] == -1 and all(size > 0 for size in self.shape[1:]), "shape is -1, then fixed sizes")
        return self


class FileDigest(Part):
    """Digest and size of one file of the bundle."""

    sha256: Sha256
    bytes: Annotated[int, Field(gt=0)]


def require(condition: bool, expectation: str) -> None:
    """Refuse a manifest that does not keep an expectation.

    Raises:
        ValueError: it does not.
    """
    if not condition:
        msg = f"not a valid manifest: expected {expectation}"
        raise ValueError(msg)
