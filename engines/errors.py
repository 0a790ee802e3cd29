"""Every error the engines raise, and what the caller may do about it.

The tree (``*`` = worth trying again later)::

    EngineError
    ├── Refusal                 the input is at fault; carries a RefusalCode and a sentence for the reader
    │   ├── NotApplicable       nothing in the study is meant for this engine: no report, one outcome event
    │   └── InputRefused        meant for this engine, but unusable: the report says why
    ├── BundleError             the engine is at fault; nothing is served from it
    │   ├── BundleCorrupt       a digest, a file or a field of the manifest is wrong
    │   ├── SelfTestFailed      the golden vectors do not come out as stored
    │   ├── PlanBuildFailed     no plan was compiled from it, or none written
    │   ├── PlanRefused         a plan is there and must not serve: altered, foreign, or not in parity
    │   └── DeviceUnavailable   no GPU, no driver, no library, or not enough memory for it
    └── InferenceError *        the runtime failed on a valid input
        ├── OutOfMemory *       it failed for want of memory
        └── DeviceLost *        the GPU's context is gone; only a new process helps

Called by everything in ``engines``; read by ``stream_processors.disposition``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class RefusalCode(StrEnum):
    """Machine-readable reason of a refusal or an abstention; the message is for people."""

    # any modality
    NOT_CARDIAC = "not_cardiac"
    UNDECODABLE = "undecodable"
    LIMITS_EXCEEDED = "limits_exceeded"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    PIXEL_DATA_INCONSISTENT = "pixel_data_inconsistent"
    OUT_OF_DISTRIBUTION = "out_of_distribution"
    # cardiac MR
    NO_SHORT_AXIS_CINE = "no_short_axis_cine"
    GEOMETRY_MISSING = "geometry_missing"
    TOO_FEW_SLICES = "too_few_slices"
    TOO_FEW_PHASES = "too_few_phases"
    PHASES_INCONSISTENT = "phases_inconsistent"
    HEART_NOT_FOUND = "heart_not_found"
    RECONSTRUCTION_POOR = "reconstruction_poor"
    # echo
    NO_B_MODE_CINE = "no_b_mode_cine"
    COLOUR_DOPPLER = "colour_doppler"
    SECTOR_NOT_FOUND = "sector_not_found"
    SECTOR_IMPLAUSIBLE = "sector_implausible"
    VIEW_NOT_APICAL_FOUR_CHAMBER = "view_not_apical_four_chamber"
    NOT_A4C = "not_a4c"
    VIEW_UNCERTAIN = "view_uncertain"
    FRAME_RATE_UNKNOWN = "frame_rate_unknown"
    TOO_FEW_FRAMES = "too_few_frames"
    CLIPS_DISAGREE = "clips_disagree"
    # ECG
    NO_TWELVE_LEAD_GROUP = "no_twelve_lead_group"
    LEADS_MISSING = "leads_missing"
    LEADS_NOT_SIMULTANEOUS = "leads_not_simultaneous"
    LEAD_OFF = "lead_off"
    SATURATED = "saturated"
    LEADS_INCONSISTENT = "leads_inconsistent"
    UNIT_UNKNOWN = "unit_unknown"
    SAMPLING_RATE_UNSUPPORTED = "sampling_rate_unsupported"
    RECORD_TOO_SHORT = "record_too_short"
    AMBULATORY_RECORD = "ambulatory_record"


class EngineError(Exception):
    """Root of the tree; ``retriable`` says whether the same call may succeed later."""

    retriable: ClassVar[bool] = False


class Refusal(EngineError):
    """The input cannot be analysed.

    Args:
        code: machine-readable reason.
        reason: one sentence: what was found, what was expected, what to do. No patient data.
    """

    def __init__(self, code: RefusalCode, reason: str) -> None:
        super().__init__(f"{code.value}: {reason}")
        self.code = code
        self.reason = reason


class NotApplicable(Refusal):
    """Nothing in the study is meant for this engine (a CT, a brain MR, a report)."""


class InputRefused(Refusal):
    """The study is meant for this engine but cannot be analysed."""


class BundleError(EngineError):
    """The bundle cannot be served; an operator has to act."""


class BundleCorrupt(BundleError):
    """A file of the bundle is missing, altered or contradicts the manifest."""


class SelfTestFailed(BundleError):
    """The golden vectors do not come out as stored on this machine and runtime."""


@dataclass(frozen=True, kw_only=True)
class RefusedNode:
    """What a compiler does not take: the ``node`` of the ONNX graph, its ``operator`` and the compiler's ``reason``.

    ``node`` and ``operator`` are empty where the compiler refuses the graph as a whole.
    """

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        place = f"node {self.node or 'without a name'} [{self.operator}]: " if self.operator else ""
        return f"{place}{self.reason}"


class PlanBuildFailed(BundleError):
    """No plan was compiled or written: the compiler is missing, it refuses the graph, or another plan is in the way.

    Args:
        message: what was found, what was expected, what to do.
        refused: the nodes that the compiler does not take.
    """

    def __init__(self, message: str, refused: Sequence[RefusedNode] = ()) -> None:
        super().__init__(message)
        self.refused = tuple(refused)


class PlanRefused(BundleError):
    """A plan is there and must not serve: altered, made for another device or version, or not in parity with the graph."""


class DeviceUnavailable(BundleError):
    """No GPU can compute: the message says what is missing on this machine and the command that adds it."""


class InferenceError(EngineError):
    """The runtime failed although the input was valid."""

    retriable = True


class OutOfMemory(InferenceError):
    """The runtime ran out of memory."""


class DeviceLost(InferenceError):
    """The GPU's context is gone: every further call fails, and only a new process gets a new one."""
