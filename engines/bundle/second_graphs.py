"""Graphs of a bundle beside that of the engine: a view gate in front of it, a cross-modal check behind it.

Called by ``bundle.manifest``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from engines.bundle.parts import FRAMES, BundleName, FileName, NonNegative, Part, TensorSpec, require
from engines.preprocess.cmr_volume import CmrVolumeSpec

ECG_PROJECTION, CMR_PROJECTION = "ecg_projection", "cmr_projection"
"""Outputs of the graph of a cross-modal check."""
ViewAttribute = Literal["ViewCodeSequence", "ViewName", "SeriesDescription", "ProtocolName"]
"""Attributes in which a source may state its view."""


class TrustedLabel(Part):
    """A label of the source that is believed without looking.

    Args:
        attribute: keyword of the attribute that holds it.
        pattern: regular expression, searched in the text in upper case.
    """

    attribute: ViewAttribute
    pattern: Annotated[str, Field(min_length=1, max_length=200)]

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            msg = f"not a regular expression: {error}"
            raise ValueError(msg) from None
        return pattern


class ViewGate(Part):
    """A second graph that looks at single frames first and lets only the accepted view through.

    Args:
        name: of the network.
        graph, golden: its files; ``golden`` holds frames and logits, replayed at every start.
        golden_tolerance: absolute, of the logits.
        input: frames, one channel, as large as those of the engine's clips.
        output: one logit per view.
        views: names of the output's columns.
        accepted_view: the one that passes.
        threshold_probability: least probability of the accepted view, the mean over the frames.
        margin_probability: least lead over every other view.
        frames: looked at in each loop, evenly spaced.
        loops_max: best loops of a study that the engine answers from.
        trusted_labels: let a loop pass whatever it looks like; empty where no label is believed.
    """

    name: BundleName
    graph: FileName
    golden: FileName
    golden_tolerance: NonNegative
    input: TensorSpec
    output: TensorSpec
    views: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...], Field(min_length=2)]
    accepted_view: str
    threshold_probability: Annotated[float, Field(gt=0, lt=1)]
    margin_probability: Annotated[float, Field(ge=0, lt=1)]
    frames: Annotated[int, Field(ge=1, le=64)]
    loops_max: Annotated[int, Field(ge=1, le=16)]
    trusted_labels: tuple[TrustedLabel, ...]

    @model_validator(mode="after")
    def _one_column_per_view(self) -> Self:
        require(len(set(self.views)) == len(self.views), "names of views are unique")
        require(self.accepted_view in self.views, f"an accepted view among {', '.join(self.views)}")
        require(self.output.shape == (-1, len(self.views)), "a gate output with one column per view")
        require(self.output.dtype == "float32", "gate logits in float32")
        return self


class CrossModalPart(Part):
    """A second graph that compares the embedding of an ECG with cardiac MR of the same patient.

    It checks identity and consistency; it measures nothing and never changes what the engine says.

    Args:
        graph, golden, statistics: its files; ``golden`` holds stacks, what they were prepared to beside the embedding of an
            ECG, and both projections, replayed at every start; ``statistics`` is ``predictors.similarity``'s.
        preprocess: of the images.
        inputs: the embedding as the engine's graph gives it, by the name of that output, then arrays of ``preprocess``.
        outputs: ``ecg_projection`` and ``cmr_projection``, unit vectors whose dot product is the similarity.
        window_days: how far apart ECG and images of one patient may lie.
        prepared_tolerance: absolute, of the prepared images.
        tolerance: absolute, of the projections.
    """

    graph: FileName
    golden: FileName
    statistics: FileName
    preprocess: CmrVolumeSpec
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=2)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=2, max_length=2)]
    window_days: Annotated[int, Field(ge=0)]
    prepared_tolerance: NonNegative
    tolerance: NonNegative

    @model_validator(mode="after")
    def _inputs_as_prepared(self) -> Self:
        known = prepared_shapes(self.preprocess)
        for tensor in self.images:
            expected = ("float32", known.get(tensor.name))
            require((tensor.dtype, tensor.shape) == expected, f"inputs of images among {known}, float32")
        names = [tensor.name for tensor in self.inputs]
        require(len(set(names)) == len(names), "names of inputs are unique")
        return self

    @model_validator(mode="after")
    def _outputs_are_two_projections(self) -> Self:
        ecg, cmr = self.outputs
        require((ecg.name, cmr.name) == (ECG_PROJECTION, CMR_PROJECTION), f"outputs {ECG_PROJECTION}, {CMR_PROJECTION}")
        require(ecg.shape == cmr.shape and len(ecg.shape) == 2, "projections of one width")
        require(ecg.dtype == cmr.dtype == "float32", "projections in float32")
        return self

    @property
    def images(self) -> tuple[TensorSpec, ...]:
        """Inputs that come from the images."""
        return self.inputs[1:]


def prepared_shapes(spec: CmrVolumeSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of what cardiac MR is prepared to for the cross-modal check, by name; -1 is the batch."""
    side = spec.heart.size_px
    return {
        "volumes": (-1, FRAMES, spec.slices, side, side),
        "slice_mask": (-1, spec.slices),
        "cine": (-1, 1, spec.phases, side, side),
    }
