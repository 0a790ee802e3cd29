"""UIDs that follow from the work, and bytes that follow from the arguments."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from engines.records import Modality
from stream_processors.reports.identity import ReportKey
from stream_processors.reports.measurement_report import build_reports, encode
from tests.doubles.reports import make_context, make_header, make_prediction

KEY = ReportKey(
    site_url="https://hospital.example",
    modality=Modality.ECHO,
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
    template_version=1,
    content_digest="d" * 64,
    model_name="m",
    model_version="1",
    weights_sha256="b" * 64,
)
OTHER = {"modality": Modality.CMR, "template_version": 2}


@given(site=st.text(), digest=st.text(), model=st.text())
def test_every_uid_is_well_formed(site: str, digest: str, model: str) -> None:
    """No key, however odd its text, makes a malformed UID or two equal ones."""
    key = replace(KEY, site_url=site, content_digest=digest, model_name=model)
    uids = [
        key.sop_instance_uid,
        key.series_instance_uid,
        key.companion_sop_instance_uid,
        key.companion_series_instance_uid,
        key.picture_sop_instance_uid,
        key.picture_series_instance_uid,
        key.algorithm_uid,
        key.tracking_uid("lvef"),
        key.device_observer_uid("node"),
    ]
    assert all(UID(uid).is_valid and uid.startswith("2.25.") for uid in uids)
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize("field", [field.name for field in fields(ReportKey)])
def test_every_part_of_the_key_changes_the_instance(field: str) -> None:
    """A report of another study, engine, site or template is another instance."""
    other = replace(KEY, **{field: OTHER.get(field, "other")})
    assert other.sop_instance_uid != KEY.sop_instance_uid
    assert other.picture_sop_instance_uid != KEY.picture_sop_instance_uid
    assert other.companion_series_instance_uid != KEY.companion_series_instance_uid


def test_neighbouring_parts_do_not_run_together() -> None:
    """Moving a character from one part of the key to the next gives another UID."""
    one, two = replace(KEY, model_name="ab", model_version="c"), replace(KEY, model_name="a", model_version="bc")
    assert one.sop_instance_uid != two.sop_instance_uid


def test_a_quantity_is_tracked_across_versions_of_the_engine() -> None:
    """A new version keeps the tracking UID and changes the algorithm UID."""
    newer = replace(KEY, model_version="2", weights_sha256="e" * 64)
    assert newer.tracking_uid("lvef") == KEY.tracking_uid("lvef")
    assert newer.algorithm_uid != KEY.algorithm_uid


def digest_of_all_reports() -> str:
    """Digest over every report of every modality and answer."""
    digest = hashlib.sha256()
    for modality in Modality:
        headers = [make_header(modality, number) for number in (1, 2, 3)]
        for answer in ("answered", "undecided", "abstained", "refused"):
            for document in build_reports(make_prediction(modality, answer, headers), make_context(modality, headers)):
                digest.update(encode(document))
    return digest.hexdigest()


def test_same_arguments_same_bytes_in_every_process(root: Path) -> None:
    """A second delivery, in another process with other hash seeds and another time, makes the same bytes."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    script += "import test_reports_identity as t; print(t.digest_of_all_reports())"
    seen = {digest_of_all_reports()}
    for seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root), "TZ": f"UTC{seed[0]}"}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
        seen.add(done.stdout.strip())
    assert len(seen) == 1


def test_the_order_of_the_evidence_does_not_matter() -> None:
    """Instances that arrive in another order make the same bytes."""
    headers = [make_header(Modality.CMR, number, StudyDescription=f"Part {number}") for number in (1, 2, 3)]
    prediction = make_prediction(Modality.CMR, "answered", headers)
    one = build_reports(prediction, make_context(Modality.CMR, headers))
    two = build_reports(prediction, make_context(Modality.CMR, headers[::-1]))
    assert [encode(document) for document in one] == [encode(document) for document in two]
