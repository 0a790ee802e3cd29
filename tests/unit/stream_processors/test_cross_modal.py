"""The finding of the cross-modal check: one form in an event, one in a report, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.predictors.similarity import Similarity
from engines.records import Modality
from stream_processors.cross_modal import CrossModalFinding

SIMILAR = Similarity(cosine=0.41239, own_percent=63.96, others_percent=98.5, below_limit=False)
FOUND = CrossModalFinding(
    partner_study_instance_uid="1.2.9",
    partner_modality=Modality.CMR,
    days_apart=2,
    bundle_sha256="e" * 64,
    similarity=SIMILAR,
    embedding=(0.6000000001, -0.8),
)
REASON = "There is no short-axis cine = nothing to compare."
NOT_COMPARED = replace(FOUND, similarity=None, embedding=(), not_compared=REASON)
PERCENT = st.floats(0, 100)


@given(cosine=st.floats(-1, 1), own=PERCENT, others=PERCENT, below=st.booleans())
def test_a_comparison_reads_back_to_the_digits_of_the_report(
    cosine: float, own: float, others: float, below: bool
) -> None:
    """Three decimals of the cosine, one of the shares, no minus zero, no embedding."""
    made = Similarity(cosine=cosine, own_percent=own, others_percent=others, below_limit=below)
    stated = replace(FOUND, similarity=made).parameters()
    read = CrossModalFinding.from_parameters({"name": "purkinje-ecg", **stated})
    assert read is not None
    assert read.embedding == ()
    assert read.similarity == Similarity(
        cosine=round(cosine, 3),
        own_percent=round(own, 1),
        others_percent=round(others, 1),
        below_limit=below,
    )
    assert not [value for value in stated.values() if value.startswith("-0.0") and float(value) == 0]
    assert not [name for name in stated if "embedding" in name]
    assert read.parameters() == stated


def test_a_reason_reads_back() -> None:
    """Why nothing was compared comes back as it was said."""
    assert CrossModalFinding.from_parameters(NOT_COMPARED.parameters()) == NOT_COMPARED


def test_a_report_without_the_check_has_no_finding() -> None:
    """Parameters of other things are none of this."""
    assert CrossModalFinding.from_parameters({"name": "purkinje-ecg", "runtime": "onnxruntime 1"}) is None


@pytest.mark.parametrize("name", [name for name in FOUND.parameters() if name != "cross_modal_cosine"])
def test_a_parameter_that_is_missing_is_an_error(name: str) -> None:
    """A damaged report is never read as another finding."""
    stated = FOUND.parameters()
    del stated[name]
    with pytest.raises(KeyError):
        CrossModalFinding.from_parameters(stated)


@pytest.mark.parametrize(
    ("name", "text"), [("cosine", "nan"), ("cosine", "1.001"), ("own_percent", "100.1"), ("days_apart", "few")]
)
def test_a_number_that_cannot_be_is_an_error(name: str, text: str) -> None:
    """No damaged number reaches an event."""
    with pytest.raises(ValueError, match=r"outside|invalid literal"):
        CrossModalFinding.from_parameters({**FOUND.parameters(), f"cross_modal_{name}": text})


def test_a_finding_is_a_comparison_or_a_reason() -> None:
    """Never both and never neither."""
    for changes in ({"similarity": None}, {"not_compared": REASON}):
        with pytest.raises(ValueError, match="exactly one"):
            replace(FOUND, **changes)  # type: ignore[arg-type]


def test_what_was_read_takes_the_embedding_that_was_made() -> None:
    """What was read gets the embedding of what was just made, and is otherwise as read."""
    read = CrossModalFinding.from_parameters(FOUND.parameters())
    assert read is not None
    assert read.with_embedding(FOUND).event()["embedding"] == [0.6, -0.8]
    assert read.with_embedding(FOUND).event()["cosine"] == 0.412
    assert read.with_embedding(None) == read
    assert NOT_COMPARED.with_embedding(NOT_COMPARED) == NOT_COMPARED
    assert NOT_COMPARED.event()["embedding"] is None
