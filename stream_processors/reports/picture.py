"""The picture of a report: which parts of the images carry the answer, as a Secondary Capture Image (PS3.3 A.8.1).

A series of its own with Modality OT, so that nobody takes it for an acquired image. The measurement report refers to it
as Visual explanation (TID 1410). Where the headers say how the images lay, the picture says which way the patient lies in
it. Called by ``measurement_report``.
"""

from __future__ import annotations

from typing import Any, Final

import highdicom as hd
import numpy as np
from highdicom.sr import RelationshipTypeValues as Relationship
from pydicom.dataset import Dataset

from engines.predictions import Picture
from engines.predictors.latent_picture import LatentPicture, with_directions
from engines.predictors.patient_directions import Directions, canonical_directions
from engines.records import SourceInstance
from stream_processors.reports import codes
from stream_processors.reports.content import SINGLE_FRAME_CLASSES, Subject
from stream_processors.reports.document import COMPLETION_DESCRIPTION, Shell, begin_object
from stream_processors.reports.evidence import EvidenceInstance, code_item, first_value
from stream_processors.reports.identity import ReportKey

PICTURE_SOP_CLASS_UID: Final = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary Capture Image Storage: one frame, and the colour class that every archive and viewer knows."""
_SHORT_TEXT = 1024  # PS3.5 6.2, VR ST


def build_picture(picture: Picture, shell: Shell, subject: Subject) -> Dataset:
    """Put a picture into a Secondary Capture Image.

    Args:
        picture: pixels and caption.
        shell: identity and series.
        subject: prediction, study, time and node, as for the report.
    """
    image = begin_object(shell, subject.evidence, subject.context, subject.prediction.model)
    picture, orientation = _oriented(picture, subject)
    image.ConversionType = "WSD"  # PS3.3 C.8.6.1: Workstation
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.Laterality, image.PatientOrientation = "", orientation
    image.BurnedInAnnotation = image.RecognizableVisualFeatures = "NO"  # no text that names a patient, no face
    image.DateOfSecondaryCapture, image.TimeOfSecondaryCapture = image.ContentDate, image.ContentTime
    image.DerivationDescription = picture.caption[:_SHORT_TEXT]
    image.ImageComments = COMPLETION_DESCRIPTION
    if "not for clinical use" in subject.prediction.model.intended_use.lower():
        image.ContentQualification = "RESEARCH"
    sources = [_source(source) for source in subject.evidence.sources]
    if sources:
        image.SourceImageSequence = sources
    _add_pixels(image, picture)
    image.LossyImageCompression = _compression(subject)
    return image


def picture_item(key: ReportKey) -> Any:
    """IMAGE item of a measurement group that refers to the picture (TID 1410, Visual explanation)."""
    return hd.sr.ImageContentItem(
        codes.VISUAL_EXPLANATION,
        PICTURE_SOP_CLASS_UID,
        key.picture_sop_instance_uid,
        relationship_type=Relationship.CONTAINS,
    )


def picture_instance(key: ReportKey, study_instance_uid: str) -> EvidenceInstance:
    """The picture as the evidence sequence of the report lists it."""
    return EvidenceInstance(
        study_instance_uid=study_instance_uid,
        series_instance_uid=key.picture_series_instance_uid,
        sop_class_uid=PICTURE_SOP_CLASS_UID,
        sop_instance_uid=key.picture_sop_instance_uid,
    )


def _oriented(picture: Picture, subject: Subject) -> tuple[Picture, list[str]]:
    """The picture with the directions of the patient marked, and its Patient Orientation (PS3.3 C.7.6.1.1.1).

    All panels show one view, so that one value is true wherever the picture shows the patient. Where the view is not
    known nothing is marked and the value is empty, which type 2C allows.
    """
    if not isinstance(picture, LatentPicture):
        return picture, []
    directions = _directions(subject)
    if directions is None:
        return picture, []
    return with_directions(picture, directions), [directions.row, directions.column]


def _directions(subject: Subject) -> Directions | None:
    """Directions in the view of the network, from the header of the first source; all sources are of one stack."""
    shown = subject.prediction.sources[0].sop_instance_uid if subject.prediction.sources else ""
    headers = (header for header in subject.context.evidence if str(header.SOPInstanceUID) == shown)
    return next((canonical_directions(_orientation(header)) for header in headers), None)


def _orientation(header: Dataset) -> tuple[float, ...]:
    """ImageOrientationPatient (PS3.3 C.7.6.2.1.1), empty where it is absent or not of numbers."""
    try:
        return tuple(float(cosine) for cosine in header.get("ImageOrientationPatient") or ())
    except (TypeError, ValueError):
        return ()


def _source(source: SourceInstance) -> Dataset:
    """Item of the Source Image Sequence (PS3.3 C.12.4)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.sop_class_uid, source.sop_instance_uid
    if source.frame_numbers and source.sop_class_uid not in SINGLE_FRAME_CLASSES:
        item.ReferencedFrameNumber = list(source.frame_numbers)
    item.PurposeOfReferenceCodeSequence = [code_item(codes.SOURCE_IMAGE)]
    return item


def _add_pixels(image: Dataset, picture: Picture) -> None:
    """Image Pixel Module (PS3.3 C.7.6.3), colour by pixel."""
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.Rows, image.Columns = picture.rgb_HW3.shape[:2]
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    content = np.ascontiguousarray(picture.rgb_HW3).tobytes()
    image.PixelData = content + b"\0" * (len(content) % 2)
    image["PixelData"].VR = "OB"


def _compression(subject: Subject) -> str:
    """Lossy Image Compression (PS3.3 C.7.6.1.1.5): once lossy, always lossy, also when stored without loss."""
    stated = {first_value(header, "LossyImageCompression") for header in subject.context.evidence}
    return "01" if "01" in stated else "00"
