"""Names, types and shapes of what goes into a network and what comes out, by modality: the bundle's tensors."""

from __future__ import annotations

from collections.abc import Mapping

from engines.bundle.parts import TensorSpec
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec
from engines.records import LEAD_NAMES, Modality
from training.config import DataConfig, ViewDataConfig
from training.data.targets import DISEASES, ESTIMATES

_VALUES = {
    Modality.ECHO: (("ef", 1),),
    Modality.CMR: (("logit", 1),),
    Modality.ECG: (("estimates", len(ESTIMATES)), ("disease_logits", len(DISEASES))),
}

_LATENT_OUTPUTS = ("psnr_db", "contexts", "poses", "relevance")
"""What a network that rebuilds its images from latents shows besides."""


def input_spec(spec: EchoSpec | CmrSpec | EcgSpec) -> TensorSpec:
    """Return the one input of a network that eats what ``spec`` prepares."""
    match spec:
        case EchoSpec():
            shape: tuple[int, ...] = (-1, 1, spec.clip_frames, spec.size_px, spec.size_px)
            return TensorSpec(name="clip", dtype="uint8", shape=shape)
        case CmrSpec():
            return TensorSpec(name="image", dtype="float32", shape=(-1, 2, spec.size_px, spec.size_px))
        case EcgSpec():
            return TensorSpec(name="ecg", dtype="float32", shape=(-1, len(LEAD_NAMES), spec.window_samples))


def frame_spec(spec: EchoSpec) -> TensorSpec:
    """Return the one input of a view network: single frames of what ``spec`` prepares."""
    return TensorSpec(name="frames", dtype="uint8", shape=(-1, 1, spec.size_px, spec.size_px))


def input_of(data: DataConfig) -> TensorSpec:
    """Return the one input of a network that is trained on these data."""
    if isinstance(data, ViewDataConfig):
        assert isinstance(data.preprocess, EchoSpec)
        return frame_spec(data.preprocess)
    return input_spec(data.preprocess)


def output_specs(
    modality: Modality, shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, int] | None = None
) -> tuple[TensorSpec, ...]:
    """Return the released outputs of a network in the order of the manifest; what only training needs is left out.

    Args:
        modality: decides what the network must answer.
        shapes: of its outputs without the batch axis.
        widths: columns of answers that differ from the usual ones; names of other modalities are passed over.
    """
    usual = dict(_VALUES[modality])
    answers = {name: (widths or {}).get(name, width) for name, width in usual.items()}
    names = [*answers, "embedding", *(name for name in _LATENT_OUTPUTS if name in shapes)]
    sizes = {**shapes, **{name: (width,) for name, width in answers.items()}}
    return tuple(TensorSpec(name=name, dtype="float32", shape=(-1, *sizes[name])) for name in names)
