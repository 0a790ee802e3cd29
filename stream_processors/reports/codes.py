"""Every code a report contains, and which of them says what.

Entries are ``Code(value, scheme designator, meaning)``. Those that PS3.16 binds to a context group are asserted against
pydicom's copy of it; the few others are listed in ``OUTSIDE_DICOM`` and asserted by their check digits. Units are UCUM.
Private codes are not used. Read by every other module of this package; imports none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydicom.sr.coding import Code

from engines.errors import RefusalCode
from engines.records import Modality

# -- structure of the document (PS3.16 TID 1500, 1501, 1410, 2000, 4019, 4108) -----------------------------------------
IMAGING_MEASUREMENT_REPORT: Final = Code("126000", "DCM", "Imaging Measurement Report")
IMAGING_MEASUREMENTS: Final = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP: Final = Code("125007", "DCM", "Measurement Group")
QUALITATIVE_EVALUATIONS: Final = Code("C0034375", "UMLS", "Qualitative Evaluations")
PROCEDURE_REPORTED: Final = Code("121058", "DCM", "Procedure reported")
TRACKING_IDENTIFIER: Final = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UNIQUE_IDENTIFIER: Final = Code("112040", "DCM", "Tracking Unique Identifier")
ALGORITHM_NAME: Final = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION: Final = Code("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS: Final = Code("111002", "DCM", "Algorithm Parameters")
ARTIFICIAL_INTELLIGENCE: Final = Code("123110", "DCM", "Artificial Intelligence")
DEVICE: Final = Code("121007", "DCM", "Device")
DEVICE_OBSERVER_NAME: Final = Code("121013", "DCM", "Device Observer Name")
SOURCE: Final = Code("260753009", "SCT", "Source")
SOURCE_OF_MEASUREMENT: Final = Code("121112", "DCM", "Source of Measurement")
IMAGE_REGION: Final = Code("111030", "DCM", "Image Region")
ACQUISITION_EQUIPMENT: Final = Code("109101", "DCM", "Acquisition Equipment")
PROCESSING_EQUIPMENT: Final = Code("109102", "DCM", "Processing Equipment")
VISUAL_EXPLANATION: Final = Code("130401", "DCM", "Visual explanation")
SOURCE_IMAGE: Final = Code("121322", "DCM", "Source image for image processing operation")

# -- the readable companion (TID 2000, CID 7000 to 7002) --------------------------------------------------------------
DIAGNOSTIC_IMAGING_REPORT: Final = Code("18748-4", "LN", "Diagnostic Imaging Report")
FINDINGS: Final = Code("59776-5", "LN", "Findings")
SUMMARY: Final = Code("55112-7", "LN", "Summary")
CURRENT_PROCEDURE_DESCRIPTIONS: Final = Code("55111-9", "LN", "Current Procedure Descriptions")
CONCLUSION: Final = Code("121077", "DCM", "Conclusion")
PROCEDURE_DESCRIPTION: Final = Code("121065", "DCM", "Procedure Description")

# -- modifiers and properties of a number (TID 300, 310) --------------------------------------------------------------
FINDING: Final = Code("121071", "DCM", "Finding")
FINDING_SITE: Final = Code("363698007", "SCT", "Finding Site")
IMAGE_VIEW: Final = Code("111031", "DCM", "Image View")
DERIVATION: Final = Code("121401", "DCM", "Derivation")
MEAN: Final = Code("373098007", "SCT", "Mean")
ESTIMATED: Final = Code("414135002", "SCT", "Estimated")
MEASUREMENT_METHOD: Final = Code("370129005", "SCT", "Measurement Method")
SELECTION_STATUS: Final = Code("121404", "DCM", "Selection Status")
MEAN_VALUE_CHOSEN: Final = Code("121412", "DCM", "Mean value chosen")
UPPER_UNCERTAINTY: Final = Code("371886008", "SCT", "+, range of upper measurement uncertainty")
LOWER_UNCERTAINTY: Final = Code("371885007", "SCT", "-, range of lower measurement uncertainty")
STANDARD_DEVIATION: Final = Code("386136009", "SCT", "Standard Deviation")
PROBABILITY: Final = Code("122157", "DCM", "Probability")

# -- qualitative answers ----------------------------------------------------------------------------------------------
PRESENCE_OF_PROPERTY: Final = Code("121052", "DCM", "Presence of property")
PRESENT: Final = Code("52101004", "SCT", "Present")
ABSENT: Final = Code("272519000", "SCT", "Absent")
UNDETERMINED: Final = Code("373068000", "SCT", "Undetermined")
CARDIOVASCULAR_EVENT_RISK: Final = Code("395112001", "SCT", "Cardiovascular event risk")
HIGH_RISK: Final = Code("15508007", "SCT", "High risk")
LOW_RISK: Final = Code("75976002", "SCT", "Low risk")
UNCERTAIN_RISK: Final = Code("64957009", "SCT", "Uncertain risk")
SUMMARY_OF_ANALYSES: Final = Code("111065", "DCM", "Summary of Analyses")
FAILED: Final = Code("111224", "DCM", "Failed")
NOT_ATTEMPTED: Final = Code("111225", "DCM", "Not Attempted")
COMMENT: Final = Code("121106", "DCM", "Comment")

# -- anatomy, views, procedures ---------------------------------------------------------------------------------------
LEFT_VENTRICLE: Final = Code("87878005", "SCT", "Left ventricle")
RIGHT_VENTRICLE: Final = Code("53085002", "SCT", "Right ventricle")
HEART: Final = Code("80891009", "SCT", "Heart")
APICAL_FOUR_CHAMBER: Final = Code("399214001", "SCT", "Apical four chamber")
TRANSTHORACIC_ECHO: Final = Code("433236007", "SCT", "Transthoracic echocardiography")
CARDIAC_MRI: Final = Code("241620005", "SCT", "Cardiac MRI")
TWELVE_LEAD_ECG: Final = Code("268400002", "SCT", "12-Lead ECG")

# -- what is measured -------------------------------------------------------------------------------------------------
LVEF_BY_US: Final = Code("18043-0", "LN", "Left Ventricular Ejection Fraction by US")
LVEF_BY_MR: Final = Code("8811-2", "LN", "Left ventricular ejection fraction by MR")
LVEF_ANY_METHOD: Final = Code("10230-1", "LN", "Left ventricular Ejection fraction")
RVEF_ANY_METHOD: Final = Code("10231-9", "LN", "Right ventricular Ejection fraction")
CARDIAC_OUTPUT: Final = Code("82799009", "SCT", "Cardiac Output")
LV_END_DIASTOLIC_VOLUME: Final = Code("8821-1", "LN", "Left Ventricular ED Volume")
LV_END_SYSTOLIC_VOLUME: Final = Code("8823-7", "LN", "Left Ventricular ES Volume")
RV_END_DIASTOLIC_VOLUME: Final = Code("8822-9", "LN", "Right Ventricular ED Volume")
RV_END_SYSTOLIC_VOLUME: Final = Code("8824-5", "LN", "Right Ventricular ES Volume")
LV_MASS: Final = Code("18087-7", "LN", "Left Ventricle Mass")
PERCENT: Final = Code("%", "UCUM", "%")
MILLILITRE: Final = Code("ml", "UCUM", "ml")
GRAM: Final = Code("g", "UCUM", "g")
LITRES_PER_MINUTE: Final = Code("l/min", "UCUM", "l/min")

# -- findings ---------------------------------------------------------------------------------------------------------
IMPAIRED_LV_FUNCTION: Final = Code("275514001", "SCT", "Impaired left ventricular function")
CORONARY_ARTERY_DISEASE: Final = Code("53741008", "SCT", "Coronary Artery Disease")
ATRIAL_FIBRILLATION: Final = Code("49436004", "SCT", "Atrial Fibrillation")
SUDDEN_CARDIAC_DEATH: Final = Code("95281009", "SCT", "Sudden cardiac death")
HEART_FAILURE: Final = Code("84114007", "SCT", "Heart failure")
MYOCARDIAL_INFARCTION: Final = Code("22298006", "SCT", "Myocardial Infarction")
CARDIOMYOPATHY: Final = Code("85898001", "SCT", "Cardiomyopathy")

OUTSIDE_DICOM: Final = frozenset(
    {
        LVEF_ANY_METHOD,  # LOINC; TID 300 leaves the measurement name open
        RVEF_ANY_METHOD,  # LOINC; likewise
        SUDDEN_CARDIAC_DEATH,  # SNOMED CT; no context group lists it
        LITRES_PER_MINUTE,  # UCUM; PS3.16 CID 82 admits any UCUM unit
        MILLILITRE,  # UCUM; likewise
        GRAM,  # UCUM; likewise
        QUALITATIVE_EVALUATIONS,  # UMLS; TID 1500 names it, pydicom's dictionary has no UMLS concepts of that kind
        PERCENT,  # UCUM; PS3.16 spells the meaning "Percent", viewers print the code value
    }
)
"""Codes that pydicom's dictionary does not hold, or spells differently, each with its reason."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """How one estimate is named.

    Args:
        concept: concept name of the NUM item.
        unit: UCUM unit.
        site: anatomy it belongs to.
        label: words for the reader.
    """

    concept: Code
    unit: Code
    site: Code
    label: str


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How one probability is named: the finding it is about, and words for the reader."""

    finding: Code
    label: str


QUANTITIES: Final[dict[tuple[Modality, str], Quantity]] = {
    (Modality.ECHO, "lvef"): Quantity(
        concept=LVEF_BY_US, unit=PERCENT, site=LEFT_VENTRICLE, label="Left ventricular ejection fraction by ultrasound"
    ),
    (Modality.ECG, "lvef"): Quantity(
        concept=LVEF_ANY_METHOD,
        unit=PERCENT,
        site=LEFT_VENTRICLE,
        label="Left ventricular ejection fraction, inferred from ECG",
    ),
    (Modality.ECG, "rvef"): Quantity(
        concept=RVEF_ANY_METHOD,
        unit=PERCENT,
        site=RIGHT_VENTRICLE,
        label="Right ventricular ejection fraction, inferred from ECG",
    ),
    (Modality.ECG, "cardiac_output"): Quantity(
        concept=CARDIAC_OUTPUT, unit=LITRES_PER_MINUTE, site=HEART, label="Cardiac output, inferred from ECG"
    ),
    (Modality.ECG, "lvedv"): Quantity(
        concept=LV_END_DIASTOLIC_VOLUME,
        unit=MILLILITRE,
        site=LEFT_VENTRICLE,
        label="Left ventricular end-diastolic volume, inferred from ECG",
    ),
    (Modality.ECG, "lvesv"): Quantity(
        concept=LV_END_SYSTOLIC_VOLUME,
        unit=MILLILITRE,
        site=LEFT_VENTRICLE,
        label="Left ventricular end-systolic volume, inferred from ECG",
    ),
    (Modality.ECG, "rvedv"): Quantity(
        concept=RV_END_DIASTOLIC_VOLUME,
        unit=MILLILITRE,
        site=RIGHT_VENTRICLE,
        label="Right ventricular end-diastolic volume, inferred from ECG",
    ),
    (Modality.ECG, "rvesv"): Quantity(
        concept=RV_END_SYSTOLIC_VOLUME,
        unit=MILLILITRE,
        site=RIGHT_VENTRICLE,
        label="Right ventricular end-systolic volume, inferred from ECG",
    ),
    (Modality.ECG, "lv_mass"): Quantity(
        concept=LV_MASS, unit=GRAM, site=LEFT_VENTRICLE, label="Left ventricular mass, inferred from ECG"
    ),
}
"""Estimates by modality and key of ``engines.predictions.Estimate.quantity``."""

LVEF_CONDITIONS: Final[dict[str, Condition]] = {
    f"lvef_at_most_{percent}": Condition(
        finding=IMPAIRED_LV_FUNCTION, label=f"Left ventricular ejection fraction of {percent} % or less"
    )
    for percent in (30, 35, 40, 50)
}
"""What a cardiac MR engine may be trained for, one of them a bundle."""

CONDITIONS: Final[dict[str, Condition]] = {
    **LVEF_CONDITIONS,
    "coronary_artery_disease": Condition(finding=CORONARY_ARTERY_DISEASE, label="Coronary artery disease"),
    "atrial_fibrillation": Condition(finding=ATRIAL_FIBRILLATION, label="Atrial fibrillation"),
    "sudden_cardiac_death": Condition(finding=SUDDEN_CARDIAC_DEATH, label="Sudden cardiac death"),
    "heart_failure": Condition(finding=HEART_FAILURE, label="Heart failure"),
    "myocardial_infarction": Condition(finding=MYOCARDIAL_INFARCTION, label="Myocardial infarction"),
    "cardiomyopathy": Condition(finding=CARDIOMYOPATHY, label="Cardiomyopathy"),
}
"""Probabilities by key of ``engines.predictions.ClassProbability.condition``."""

PROCEDURES: Final[dict[Modality, Code]] = {
    Modality.ECHO: TRANSTHORACIC_ECHO,
    Modality.CMR: CARDIAC_MRI,
    Modality.ECG: TWELVE_LEAD_ECG,
}

RAN_AND_ABSTAINED: Final = frozenset(
    {
        RefusalCode.OUT_OF_DISTRIBUTION,
        RefusalCode.CLIPS_DISAGREE,
        RefusalCode.RECONSTRUCTION_POOR,
        RefusalCode.NOT_A4C,
        RefusalCode.VIEW_UNCERTAIN,
    }
)
"""Reasons an engine gives after it ran; with any other reason it was not run at all (a refusal)."""


def presence_of(decision: bool | None) -> Code:
    """Code for a decision: present, absent, or undetermined when the engine cannot decide."""
    return {True: PRESENT, False: ABSENT, None: UNDETERMINED}[decision]


def risk_of(decision: bool | None) -> Code:
    """Cardiovascular event risk (CID 3118) of a decision on impaired left ventricular function."""
    return {True: HIGH_RISK, False: LOW_RISK, None: UNCERTAIN_RISK}[decision]
