"""The intake rules: what concerns us, by Modality and SOP class."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from orthanc_plugin.intake import Exclusions, chosen_series, is_own, modality_of_series

PREFIX = "1.2.840.10008.5.1.4.1.1."


@dataclass(frozen=True)
class Held:
    sop_class_uid: str
    number_of_frames: int = 1


@pytest.mark.parametrize(
    ("modality", "suffix", "expected"),
    [
        ("ECG", "9.1.1", "ecg"),
        ("ECG", "9.1.2", "ecg"),
        ("ECG", "9.1.3", "ecg"),
        ("ECG", "9.1.4", "ecg"),
        ("ECG", "104.1", "ecg"),
        ("OT", "9.1.1", "ecg"),
        ("US", "3.1", "echo"),
        ("US", "3", "echo"),
        ("US", "6.1", "echo"),
        ("US", "6", "echo"),
        ("", "3.1", "echo"),
        ("IVUS", "3.1", None),
        ("MR", "4", "cmr"),
        ("MR", "4.1", "cmr"),
        ("MR", "4.4", "cmr"),
        ("CT", "2", None),
        ("SEG", "66.4", None),
        ("SR", "88.33", None),
        ("PR", "11.1", None),
        ("KO", "88.59", None),
        ("DOC", "104.1", None),
        ("RTPLAN", "481.5", None),
        ("OT", "7", None),
        ("HD", "9.2.1", None),
    ],
)
def test_the_modality_of_a_series(modality: str, suffix: str, expected: str | None) -> None:
    """Modality speaks first, the SOP class where Modality says nothing; everything else is not ours."""
    assert modality_of_series({"Modality": modality}, PREFIX + suffix, Exclusions()) == expected


def test_modality_is_read_tolerantly() -> None:
    """Padding and lower case in Modality change nothing."""
    assert modality_of_series({"Modality": "mr "}, "", Exclusions()) == "cmr"


@pytest.mark.parametrize("name", ["Purkinje", "PURKINJE demo", " purkinje"])
def test_our_own_objects_never_trigger(name: str) -> None:
    """Whatever Modality and class it has, an object of our own making is not announced."""
    header = {"Modality": "ECG", "Manufacturer": name}
    assert is_own(header)
    assert modality_of_series(header, PREFIX + "104.1", Exclusions()) is None


def test_a_brain_is_announced_unless_the_site_excludes_it() -> None:
    """Every MR study goes to the processors, except for body parts and descriptions that the site names."""
    brain = {"Modality": "MR", "BodyPartExamined": "Brain", "SeriesDescription": "t2_tse_KNEE_left"}
    assert modality_of_series(brain, PREFIX + "4", Exclusions()) == "cmr"
    assert modality_of_series(brain, PREFIX + "4", Exclusions(frozenset({"BRAIN"}))) is None
    assert modality_of_series(brain, PREFIX + "4", Exclusions(descriptions=r"\bknee|_knee")) is None
    assert modality_of_series(brain, PREFIX + "4", Exclusions(frozenset({"HEAD"}), "spine")) == "cmr"


def test_exclusions_never_touch_other_modalities() -> None:
    """A body part excluded for MR does not silence an echo."""
    header = {"Modality": "US", "BodyPartExamined": "HEART"}
    assert modality_of_series(header, PREFIX + "3.1", Exclusions(frozenset({"HEART"}))) == "echo"


def test_an_ecg_picture_counts_only_without_a_waveform() -> None:
    """A PDF of an ECG is announced on its own, to be refused with a reason; beside a waveform it is left out."""
    picture, waveform = [Held(PREFIX + "104.1")], [Held(PREFIX + "9.1.1")]
    assert chosen_series("ecg", {"pdf": picture}) == ("pdf",)
    assert chosen_series("ecg", {"pdf": picture, "wave": waveform}) == ("wave",)
    assert chosen_series("ecg", {"other": [Held(PREFIX + "88.33")]}) == ()


def test_echo_series_need_a_clip() -> None:
    """Stills alone are not announced; a clip takes its whole series along, whichever class holds it."""
    still, clip = Held(PREFIX + "6.1"), Held(PREFIX + "3.1", 30)
    assert chosen_series("echo", {"stills": [still, still]}) == ()
    assert chosen_series("echo", {"stills": [still], "mixed": [still, clip]}) == ("mixed",)
    assert chosen_series("echo", {"retired": [Held(PREFIX + "3")], "old": [Held(PREFIX + "6", 2)]}) == (
        "retired",
        "old",
    )


def test_mr_series_need_an_mr_image() -> None:
    """Screenshots that call themselves MR are not announced."""
    assert chosen_series("cmr", {"a": [Held(PREFIX + "4")], "b": [Held(PREFIX + "7")]}) == ("a",)
