"""The cross-modal check with nothing replaced but the PACS and the weights: bundle, child process and DICOM are real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.decode.sandbox import DecodeSandbox
from engines.decode.spool import Spool
from engines.records import Modality
from stream_processors.cross_modal import PARTNERS, CrossModalFinding
from stream_processors.partner_check import PartnerCheck, open_partner_check
from stream_processors.settings import Settings
from tests.doubles.bundles import SHARED, cross_modal, write_tiny
from tests.doubles.hearts import written
from tests.doubles.pacs import FakePacs, OtherStudy, claim_of
from training.phantoms.dicom import Patient

CANARY = Patient(name="CANARY^KIWI", patient_id="CANARY-4711", birth_date="19010203")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[Modality, dict[str, bytes]]:
    """One heart as DICOM, by modality and name of the instance."""
    found = {modality: written(modality.value, 11, tmp_path_factory.mktemp(modality), CANARY) for modality in PARTNERS}
    return {modality: {f"1.2.{n:03d}": each for n, each in enumerate(files)} for modality, files in found.items()}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    """A child that the tests share."""
    child = DecodeSandbox()
    yield child
    child.close()


@pytest.fixture
def pacs() -> FakePacs:
    """Emptied by the tests, and filled."""
    return FakePacs()


@pytest.fixture
def check(pacs: FakePacs, tmp_path: Path) -> Iterator[PartnerCheck]:
    """As the processors open it, from a tiny bundle."""
    write_tiny(tmp_path / "ecg", Modality.ECG, schema_version=4, cross_modal=cross_modal())
    engine = {"bundles": tmp_path, "runtimes": ("onnxruntime",)}
    opened = open_partner_check(Settings(site_url="https://hospital.example", log="sqlite:///x", engine=engine), pacs)
    assert opened is not None
    yield opened
    opened.close()


def _find(pacs: FakePacs, check: PartnerCheck, sandbox: DecodeSandbox, modality: Modality) -> CrossModalFinding | None:
    with Spool() as spool:
        for uid in sorted(pacs.instances):
            spool.append([pacs.instances[uid]])
        return check.finding(claim_of(pacs, modality.value), spool, sandbox)


def test_a_bundle_compares_two_studies_of_the_pacs(
    studies: dict[Modality, dict[str, bytes]], pacs: FakePacs, check: PartnerCheck, sandbox: DecodeSandbox
) -> None:
    """Either order gives the same numbers, and the embedding of the images; the window is that of the bundle."""
    found = []
    for own, other in PARTNERS.items():
        pacs.instances, pacs.others = studies[own], [OtherStudy(modality=other, instances=studies[other])]
        finding = _find(pacs, check, sandbox, own)
        assert finding is not None
        assert (finding.not_compared, finding.partner_modality, len(finding.embedding)) == (None, other, SHARED)
        found.append(finding)
    first, second = found
    assert first.similarity == second.similarity
    assert first.embedding == second.embedding
    far = replace(pacs.others[0], study_date=pacs.study_date.replace(day=10))
    pacs.others = [far]
    assert _find(pacs, check, sandbox, own) is None


def test_what_the_child_refuses_is_said(
    studies: dict[Modality, dict[str, bytes]], pacs: FakePacs, check: PartnerCheck, sandbox: DecodeSandbox
) -> None:
    """A few slices of the stack are no volume; an ECG in the wrong place is no partner at all."""
    images = studies[Modality.CMR]
    pacs.instances = studies[Modality.ECG]
    pacs.others = [OtherStudy(modality=Modality.CMR, instances=dict(list(images.items())[:5]))]
    finding = _find(pacs, check, sandbox, Modality.ECG)
    assert finding is not None
    assert finding.similarity is None
    assert "CANARY" not in str(finding.not_compared)
    pacs.others = [OtherStudy(modality=Modality.CMR, instances=studies[Modality.ECG])]
    assert _find(pacs, check, sandbox, Modality.ECG) is None


def test_a_bundle_without_the_part_is_served_without_a_check(pacs: FakePacs, tmp_path: Path) -> None:
    """Bundles of older schemas hold none."""
    write_tiny(tmp_path / "ecg", Modality.ECG)
    engine = {"bundles": tmp_path, "runtimes": ("onnxruntime",)}
    settings = Settings(site_url="https://hospital.example", log="sqlite:///x", engine=engine)
    assert open_partner_check(settings, pacs) is None
