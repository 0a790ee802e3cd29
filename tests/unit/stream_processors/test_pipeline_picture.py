"""The picture on its way into the PACS: before the report that refers to it, once, and only where a site wants it."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread

from engines.errors import InputRefused, RefusalCode
from engines.records import Modality
from stream_processors.errors import PacsUnavailable
from stream_processors.settings import ReportSettings
from stream_processors.stages import Stage
from tests.doubles.log import FaultyLog
from tests.doubles.reports import make_picture
from tests.unit.stream_processors.conftest import World

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


class KilledHere(BaseException):
    """The process ends at this point."""


def made_world(log: FaultyLog, **changes: Any) -> World:
    """A cardiac MR study whose engine draws a picture."""
    world = World(log=log, modality=Modality.CMR, **changes)
    world.engine.picture = make_picture()
    return world


def classes(world: World) -> list[str]:
    """SOP classes of what was stored, in order."""
    return [str(dcmread(BytesIO(content)).SOPClassUID) for content in world.pacs.reports.values()]


def test_picture_and_text_are_stored_before_the_report(log: FaultyLog) -> None:
    """Three objects, the measurement report last, all of them verified; the outcome names the report."""
    world = made_world(log)
    outcome = world.pipeline.run(world.announce())
    assert outcome.report is not None
    assert classes(world) == [SECONDARY_CAPTURE, "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.88.33"]
    assert list(world.pacs.reports)[-1] == outcome.report.sop_instance_uid
    assert (world.pacs.calls["store"], world.pacs.calls["verify"]) == (3, 3)
    assert len(world.pacs.measurement_reports()) == 1


def test_a_second_delivery_stores_nothing(log: FaultyLog) -> None:
    """The standing report speaks for its picture too."""
    world = made_world(log)
    record = world.announce()
    world.pipeline.run(record)
    before = dict(world.pacs.reports)
    assert world.pipeline.run(record).outcome == "reported"
    assert world.pacs.reports == before
    assert world.pacs.calls["store"] == 3


@pytest.mark.parametrize("stage", [Stage.COMPANION, Stage.STORE, Stage.VERIFY, Stage.PUBLISH])
def test_a_kill_between_picture_and_report_is_mended(log: FaultyLog, stage: Stage) -> None:
    """Killed after any of the three and delivered again: the same three objects, the same bytes."""

    def kill(reached: Stage) -> None:
        if reached is stage:
            raise KilledHere

    undisturbed = made_world(log)
    undisturbed.pipeline.run(undisturbed.announce())
    world = made_world(log, checkpoint=kill)
    record = world.announce()
    with pytest.raises(KilledHere):
        world.pipeline.run(record)
    assert classes(world)[0] == SECONDARY_CAPTURE
    world.checkpoint = lambda _: None
    world.pipeline.run(record)
    assert world.pacs.reports == undisturbed.pacs.reports


def test_a_picture_that_is_not_taken_leaves_no_report(log: FaultyLog) -> None:
    """A report never refers to a picture that is not there."""
    world = made_world(log)
    record = world.announce()
    world.pacs.faults["store"] = [PacsUnavailable("full")]
    with pytest.raises(PacsUnavailable):
        world.pipeline.run(record)
    assert world.pacs.reports == {}
    assert world.pipeline.run(record).outcome == "reported"


@pytest.mark.parametrize("companion", [True, False])
def test_a_site_may_want_no_picture(log: FaultyLog, companion: bool) -> None:
    """With the picture off none is stored and the report refers to none; the text is a choice of its own."""
    world = made_world(log, report=ReportSettings(picture=False, companion=companion))
    world.pipeline.run(world.announce())
    assert SECONDARY_CAPTURE not in classes(world)
    assert len(world.pacs.reports) == 1 + companion
    assert not any(b"Visual explanation" in content for content in world.pacs.reports.values())


def test_the_picture_stands_without_the_text(log: FaultyLog) -> None:
    """With the companion off, picture and report are stored in this order."""
    world = made_world(log, report=ReportSettings(companion=False))
    world.pipeline.run(world.announce())
    assert classes(world) == [SECONDARY_CAPTURE, "1.2.840.10008.5.1.4.1.1.88.33"]


def test_a_new_revision_follows_the_report_not_the_picture(log: FaultyLog) -> None:
    """The picture of the earlier report is no predecessor."""
    world = made_world(log)
    first = world.pipeline.run(world.announce())
    world.pacs.instances["1.2.3.4.3"] = b"late"
    second = world.pipeline.run(world.announce(revision=2, received="2026-03-01T10:10:00+00:00"))
    assert first.report is not None
    assert second.report is not None
    report = dcmread(BytesIO(world.pacs.reports[second.report.sop_instance_uid]))
    (series,) = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.report.sop_instance_uid


def test_a_refusal_has_no_picture(log: FaultyLog) -> None:
    """Nothing was computed, so nothing is drawn."""
    world = made_world(log, refusal=InputRefused(RefusalCode.HEART_NOT_FOUND, "No beating ventricle."))
    world.pipeline.run(world.announce())
    assert SECONDARY_CAPTURE not in classes(world)
    assert len(world.pacs.measurement_reports()) == 1
