"""What is known of each heart: the columns of the target table, and their typical spread.

Numpy only. The order of ``ESTIMATES`` and ``DISEASES`` is the order of the ECG network's outputs.
"""

from __future__ import annotations

ESTIMATES = ("lvef", "rvef", "cardiac_output")
"""Percent, percent, litres a minute."""

DISEASES = (
    "coronary_artery_disease",
    "atrial_fibrillation",
    "sudden_cardiac_death",
    "heart_failure",
    "myocardial_infarction",
    "cardiomyopathy",
)

LVEF_CONDITIONS = {"lvef_at_most_30": 30.0, "lvef_at_most_35": 35.0, "lvef_at_most_40": 40.0, "lvef_at_most_50": 50.0}
"""Condition -> percent; a heart at the threshold has the condition. Each has a label in the report's code table."""

COLUMNS = (*ESTIMATES, *LVEF_CONDITIONS, *DISEASES)

SPREADS = {"lvef": 15.0, "rvef": 12.0, "cardiac_output": 1.5}
"""Scale of each estimate in its own unit: losses and network heads count in it."""

CENTRES = {"lvef": 50.0, "rvef": 50.0, "cardiac_output": 5.0}
"""Where the network heads start, in the unit of each estimate."""
