"""The announcer against the double of Orthanc: what is announced, when, how often, and what a crash changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthanc_plugin.announcer import Announcer, Clock
from orthanc_plugin.marks import MARK_METADATA, read_cursor, read_mark
from orthanc_plugin.orthanc_api import OrthancStopping
from orthanc_plugin.settings import Settings
from orthanc_plugin.status import Status
from orthanc_plugin.wire.events import content_digest
from orthanc_plugin.wire.log import LogUnavailable
from tests.doubles.memory_log import MemoryLog
from tests.doubles.orthanc import ECG, MR, PDF, SR, US_CLIP, US_STILL, FakeOrthanc, Stored

STUDY = "1.2.3"


class World:
    """One PACS and one log with two clocks that the test moves."""

    def __init__(self, **configured: Any) -> None:
        self.monotonic_s, self.utc_s = 1000.0, 1_800_000_000.0
        self.configured: dict[str, Any] = {"log": "sqlite:///unused", **configured}
        self.log = MemoryLog(lambda: self.utc_s)
        self.open_log: Callable[[], Any] = lambda: self.log
        self.stored = Stored()
        self.start()

    def start(self) -> None:
        """Start the plugin anew on the same database, as after a crash."""
        self.orthanc = FakeOrthanc(self.stored, lambda: self.utc_s)
        self.status = Status()
        clock = Clock(lambda: self.monotonic_s, lambda: self.utc_s, lambda _: None)
        self.announcer = Announcer(self.orthanc, Settings(**self.configured), self._open_log, self.status, clock)

    def _open_log(self) -> Any:
        return self.open_log()

    def crash(self, down_s: float = 0.0) -> None:
        """Lose everything in memory; come back later."""
        self.pass_time(down_s)
        self.start()
        self.announcer.turn()

    def kill_after(self, calls: int) -> None:
        """Die between two durable steps, as ``kill -9`` would have it, and start again."""
        self.orthanc.calls_left = calls
        with suppress(OrthancStopping):
            self.run(30.0)
        self.crash()

    def pass_time(self, seconds: float) -> None:
        """Move both clocks."""
        self.monotonic_s += seconds
        self.utc_s += seconds

    def run(self, seconds: float, step_s: float = 0.25) -> None:
        """Let the plugin work while the time passes."""
        self.announcer.turn()
        for _ in range(round(seconds / step_s)):
            self.pass_time(step_s)
            self.announcer.turn()

    def ecg(self, number: int = 1, study: str = STUDY, **more: Any) -> bool:
        uid = f"{study}.9.{number}"
        return self.orthanc.store(study, f"{study}.9", uid, sop_class_uid=ECG, modality="ECG", **more)

    def clip(self, number: int = 1, study: str = STUDY) -> bool:
        return self.orthanc.store(study, f"{study}.8", f"{study}.8.{number}", sop_class_uid=US_CLIP, modality="US")

    def stack(self, slices: range, phases: int = 4, total: str = "", study: str = STUDY) -> None:
        header = {"CardiacNumberOfImages": str(phases), "ImagesInAcquisition": total}
        for z in slices:
            for phase in range(phases):
                self.orthanc.store(
                    study,
                    f"{study}.7",
                    f"{study}.7.{z * phases + phase}",
                    sop_class_uid=MR,
                    modality="MR",
                    series_tags=header,
                    tags={"ImagePositionPatient": f"0\\0\\{z}"},
                )


@pytest.fixture
def world() -> World:
    """A running plugin on an empty PACS."""
    world = World()
    world.announcer.turn()
    return world


def test_an_ecg_is_announced_within_half_a_second(world: World) -> None:
    """An ECG has its event as soon as the debounce is over, with everything a processor needs."""
    world.ecg()
    world.run(0.5)
    (event,) = world.log.events
    assert (event.modality, event.revision, event.supersedes) == ("ecg", 1, None)
    assert event.study_instance_uid == STUDY
    assert event.series[0].series_instance_uid == f"{STUDY}.9"
    assert event.series[0].pacs_series_id == f"se-{STUDY}.9"
    assert event.series[0].instance_count == 1
    assert event.series[0].sop_class_uids == (ECG,)
    assert event.source.startswith("urn:orthanc:")
    assert event.last_received_utc == "2027-01-15T08:00:00Z"
    assert world.log.records[0].key == STUDY


def test_the_digest_is_over_uids_and_stored_md5(world: World) -> None:
    """The digest is what a processor computes from the files it fetched."""
    world.ecg(content=b"abc")
    world.run(0.5)
    (event,) = world.log.events
    expected = content_digest([(f"{STUDY}.9.1", "900150983cd24fb0d6963f7d28e17f72")])
    assert event.content_digest == event.series[0].digest == expected


def test_the_digest_does_not_need_stored_md5s(world: World) -> None:
    """Where Orthanc keeps no MD5, it is computed from the file, with the same digest."""
    world.orthanc.stores_md5 = False
    world.ecg(content=b"abc")
    world.run(0.5)
    assert world.log.events[0].content_digest == content_digest([(f"{STUDY}.9.1", "900150983cd24fb0d6963f7d28e17f72")])


def test_an_echo_waits_until_the_sender_is_quiet(world: World) -> None:
    """Clips that arrive one after the other make one event, after the quiet time."""
    for number in range(3):
        world.clip(number)
        world.run(2.0)
    assert world.log.events == []
    world.run(8.0)
    (event,) = world.log.events
    assert event.series[0].instance_count == 3


def test_the_time_of_the_event_is_that_of_the_last_instance_claimed(world: World) -> None:
    """What else arrives in the study does not move the time that the report will carry."""
    world.clip()
    world.run(2.0)
    world.orthanc.store(STUDY, f"{STUDY}.1", f"{STUDY}.1.1", sop_class_uid=SR, modality="SR")
    world.run(10.0)
    assert [event.last_received_utc for event in world.log.events] == ["2027-01-15T08:00:00Z"]


def test_a_whole_stack_is_announced_at_once(world: World) -> None:
    """A stack whose stated images are all there does not wait; the rule says so."""
    world.stack(range(5), total="20")
    world.run(0.25)
    assert [event.completeness_rule for event in world.log.events] == ["cmr.slices-x-phases"]


def test_a_stack_of_unknown_size_waits(world: World) -> None:
    """Without a stated total, whole slices say nothing, and the quiet time decides."""
    world.stack(range(5))
    world.run(19.0)
    assert world.log.events == []
    world.run(2.0)
    assert [event.completeness_rule for event in world.log.events] == ["cmr.quiet-time"]


def test_the_last_slice_completes_the_stack(world: World) -> None:
    """The decision is made anew when the missing slice arrives."""
    world.stack(range(4), total="20")
    world.run(5.0)
    assert world.log.events == []
    world.stack(range(4, 5), total="20")
    world.run(0.25)
    assert len(world.log.events) == 1


def test_modalities_of_one_study_are_announced_apart(world: World) -> None:
    """A study with ECG and echo makes one event on each topic."""
    world.ecg()
    world.clip()
    world.run(6.0)
    assert [event.modality for event in world.log.events] == ["ecg", "echo"]


def test_what_is_not_ours_is_left_alone(world: World) -> None:
    """CT, SR, our own PDF and echo stills make no event and leave nothing waiting."""
    own = {"Manufacturer": "Purkinje"}
    world.orthanc.store("1.4", "1.4.1", "1.4.1.1", sop_class_uid="1.2.840.10008.5.1.4.1.1.2", modality="CT")
    world.orthanc.store("1.4", "1.4.2", "1.4.2.1", sop_class_uid=SR, modality="SR", series_tags=own)
    world.orthanc.store("1.4", "1.4.3", "1.4.3.1", sop_class_uid=PDF, modality="ECG", series_tags=own)
    world.orthanc.store("1.4", "1.4.4", "1.4.4.1", sop_class_uid=US_STILL, modality="US")
    world.run(20.0)
    assert world.log.events == []
    assert sum(world.status.waiting.values()) == 0
    assert read_cursor(world.orthanc) == world.stored.sequence


def test_our_report_in_the_same_study_changes_nothing(world: World) -> None:
    """A report that comes back into an announced study makes no new revision."""
    world.ecg()
    world.run(1.0)
    world.orthanc.store(STUDY, f"{STUDY}.1", f"{STUDY}.1.1", sop_class_uid=SR, modality="SR")
    world.run(20.0)
    assert len(world.log.events) == 1


def test_a_resent_study_is_not_announced_again(world: World) -> None:
    """The same content, sent again or stored again under new change numbers, makes no second event."""
    world.ecg(content=b"x")
    world.run(1.0)
    assert not world.ecg(content=b"x")
    del world.stored.instances[f"i-{STUDY}.9.1"]
    world.stored.series[f"se-{STUDY}.9"]["Instances"].clear()
    assert world.ecg(content=b"x")
    world.run(2.0)
    assert len(world.log.events) == 1
    assert world.status.unchanged == 1


def test_a_late_instance_makes_a_new_revision(world: World) -> None:
    """Revision 2 names the event it supersedes and holds everything."""
    world.ecg(1)
    world.run(1.0)
    world.ecg(2)
    world.run(1.0)
    first, second = world.log.events
    assert (second.revision, second.supersedes) == (2, first.event_id)
    assert second.series[0].instance_count == 2


@pytest.mark.parametrize("down_s", [0.0, 3.0, 3600.0])
def test_a_crash_inside_the_quiet_time_loses_nothing(world: World, down_s: float) -> None:
    """The study is found again in the change log and announced exactly once."""
    world.clip()
    world.run(3.0)
    world.crash(down_s)
    world.run(10.0)
    assert len(world.log.events) == 1
    world.crash()
    world.run(10.0)
    assert len(world.log.events) == 1


def test_the_quiet_time_goes_on_over_a_restart(world: World) -> None:
    """Time that passed while Orthanc was down counts as quiet."""
    world.stack(range(3))
    world.run(1.0)
    world.crash(60.0)
    assert len(world.log.events) == 1


@pytest.mark.parametrize("step_s", [-7200.0, 7200.0])
def test_a_clock_step_does_not_lose_or_hurry_a_study(world: World, step_s: float) -> None:
    """The wall clock may jump either way while a study waits: waiting is monotonic."""
    world.clip()
    world.run(1.0)
    world.utc_s += step_s
    world.run(3.0)
    assert world.log.events == []
    world.run(3.0)
    assert len(world.log.events) == 1


@pytest.mark.parametrize("step_s", [-7200.0, 7200.0])
def test_a_clock_step_before_the_change_is_read_does_not_matter(world: World, step_s: float) -> None:
    """Once the plugin has caught up, an arrival counts from when it was seen, whatever date Orthanc gave it."""
    world.clip()
    world.utc_s += step_s
    world.run(4.5)
    assert world.log.events == []
    world.run(1.5)
    assert len(world.log.events) == 1


def test_a_clock_set_back_over_a_restart_only_starts_the_wait_again(world: World) -> None:
    """An arrival in the future counts as now."""
    world.clip()
    world.run(1.0)
    world.utc_s -= 7200
    world.crash()
    world.run(4.0)
    assert world.log.events == []
    world.run(2.0)
    assert len(world.log.events) == 1


def test_a_log_that_is_down_delays_only(world: World) -> None:
    """Arrivals wait, the log is tried with growing pauses, and everything is announced when it is back."""
    world.log.down = True
    for number in range(5):
        world.ecg(1, study=f"1.5.{number}")
    world.run(60.0)
    assert 5 < world.status.log_failures < 15
    assert world.status.log_state == "unavailable"
    assert sum(world.status.waiting.values()) == 5
    world.log.down = False
    world.run(11.0)
    assert len({event.study_instance_uid for event in world.log.events}) == len(world.log.events) == 5
    assert world.status.log_state == "ok"


@pytest.mark.parametrize("error", [ImportError("kafka"), ValueError("url"), OSError("disk"), LogUnavailable("down")])
def test_a_log_that_cannot_be_opened_is_tried_again(error: Exception) -> None:
    """Whatever opening the log raises, the study waits and is announced once it opens."""
    world = World()

    def fail() -> MemoryLog:
        raise error

    world.open_log = fail
    world.announcer.turn()
    world.ecg()
    world.run(5.0)
    world.open_log = lambda: world.log
    world.run(11.0)
    assert len(world.log.events) == 1


def test_an_outage_over_a_restart_loses_nothing(world: World) -> None:
    """The cursor never passes what is not announced, however long the log is down."""
    world.log.down = True
    world.ecg(1, study="1.5.1")
    world.run(30.0)
    world.crash(30.0)
    world.ecg(1, study="1.5.2")
    world.run(30.0)
    world.log.down = False
    world.run(11.0)
    assert sorted(event.study_instance_uid for event in world.log.events) == ["1.5.1", "1.5.2"]


def test_a_crash_between_append_and_mark_is_looked_up_in_the_log(world: World) -> None:
    """In the log, but marked as intent only: it is not appended again, and later revisions count on."""
    world.log.lose_answer = True
    world.ecg(1)
    world.run(0.5)
    assert len(world.log.records) == 1
    world.log.lose_answer = False
    world.crash()
    world.run(2.0)
    assert len(world.log.records) == 1
    world.ecg(2)
    world.run(2.0)
    assert [event.revision for event in world.log.events] == [1, 2]


def test_a_crash_before_the_append_announces_after_it(world: World) -> None:
    """The intent alone is not an announcement; the revision is not used up."""
    world.log.down = True
    world.ecg(1)
    world.announcer.turn()
    world.run(1.0)
    world.log.down = False
    world.announcer._delivery.probe()
    world.log.down = True
    world.run(2.0)
    mark = read_mark(world.orthanc, f"st-{STUDY}", "ecg")
    assert mark is not None
    assert not mark.in_log
    world.crash()
    world.log.down = False
    world.run(11.0)
    assert [event.revision for event in world.log.events] == [1]


def test_content_that_changed_after_a_lost_answer_supersedes(world: World) -> None:
    """The first attempt did reach the log; what came in between is revision 2 of it."""
    world.log.lose_answer = True
    world.ecg(1)
    world.run(0.5)
    world.log.lose_answer = False
    world.ecg(2)
    world.run(5.0)
    first, second = world.log.events
    assert (second.revision, second.supersedes) == (2, first.event_id)


def test_a_damaged_mark_is_an_absent_mark(world: World) -> None:
    """Nonsense in our metadata never stops an announcement."""
    world.ecg()
    world.stored.marks[(f"st-{STUDY}", str(MARK_METADATA["ecg"]))] = b"[1, 2"
    world.run(1.0)
    assert len(world.log.events) == 1


def test_a_deleted_study_is_owed_nothing(world: World) -> None:
    """A study that is deleted while it waits leaves the backlog."""
    world.clip()
    world.run(1.0)
    world.orthanc.delete_study(STUDY)
    world.run(10.0)
    assert world.log.events == []
    assert sum(world.status.waiting.values()) == 0


def test_the_archive_of_before_is_left_alone() -> None:
    """At the very first start, what has lain there is not announced; what arrives since the start is."""
    world = World()
    world.ecg(1, study="1.5.1")
    world.pass_time(3600)
    world.start()
    world.ecg(1, study="1.5.2")  # before the first turn
    world.run(2.0)
    assert [event.study_instance_uid for event in world.log.events] == ["1.5.2"]


def test_the_archive_of_before_is_announced_on_request() -> None:
    """AnnounceExisting starts at the beginning of the change log."""
    world = World(announce_existing=True)
    world.ecg(1)
    world.pass_time(3600)
    world.start()
    world.run(2.0)
    assert len(world.log.events) == 1


def test_one_study_that_orthanc_cannot_answer_for_does_not_block_the_others(world: World) -> None:
    """A refusal concerns its study only, and is tried again."""
    world.ecg(1, study="1.5.1")
    world.ecg(1, study="1.5.2")
    world.orthanc.refuse = r"st-1\.5\.1/series"
    world.run(2.0)
    assert [event.study_instance_uid for event in world.log.events] == ["1.5.2"]
    world.orthanc.refuse = None
    world.run(11.0)
    assert len(world.log.events) == 2


def test_a_claim_too_large_to_announce_is_counted_and_passed(world: World) -> None:
    """A study with more series than an event can carry is reported in the status and does not block."""
    for number in range(400):
        series = f"1.9.{number}"
        world.orthanc.store("1.9", series, f"{series}.1", sop_class_uid=ECG, modality="ECG")
    world.ecg()
    world.run(2.0)
    assert world.status.unannounceable == 1
    assert [event.study_instance_uid for event in world.log.events] == [STUDY]
    assert len(world.orthanc.warnings) == 1


def test_ecgs_overtake_a_queue_of_mr(world: World) -> None:
    """After an outage the ECGs go first."""
    world.log.down = True
    for number in range(5):
        world.stack(range(1), study=f"1.6.{number}")
    world.run(30.0)
    world.ecg()
    world.log.down = False
    world.run(11.0)
    assert [event.modality for event in world.log.events] == ["ecg", "cmr", "cmr", "cmr", "cmr", "cmr"]


def test_memory_is_bounded() -> None:
    """Beyond the limit studies wait in Orthanc's change log, and none is lost."""
    world = World(most_tracked=10)
    world.announcer.turn()
    world.log.down = True
    for number in range(600):
        world.ecg(1, study=f"1.6.{number}")
        if number % 100 == 0:
            world.run(0.25)
    world.run(5.0)
    assert sum(world.status.waiting.values()) <= 510  # one page of 500 changes may come on top
    world.log.down = False
    world.run(30.0)
    assert len({event.event_id for event in world.log.events}) == len(world.log.events) == 600


def test_calls_per_instance_are_few(world: World) -> None:
    """A page of one series costs a handful of calls, not one per instance."""
    world.stack(range(50))
    before = world.orthanc.calls.total()
    world.announcer.turn()
    assert world.orthanc.calls.total() - before <= 6


def test_a_restart_after_ten_thousand_settled_studies_costs_nothing(world: World) -> None:
    """What is settled is not looked at again: a start asks for the changes after the cursor only."""
    for number in range(200):
        world.ecg(1, study=f"1.6.{number}")
    world.run(5.0)
    assert len(world.log.events) == 200
    world.run(2.0)
    world.crash()
    assert world.orthanc.calls.total() < 12


def test_a_mixed_backlog_is_reconciled_without_reading_settled_studies_again(world: World) -> None:
    """Behind one unsettled study, settled ones cost their mark only, no digest."""
    world.clip()
    world.announcer.turn()
    for number in range(50):
        world.ecg(1, study=f"1.6.{number}")
    world.run(1.0)
    world.crash()
    assert not any("md5" in path for path in world.orthanc.calls)
    world.run(10.0)
    assert len(world.log.events) == 51


def test_stopping_is_passed_on(world: World) -> None:
    """When Orthanc stops, the turn ends at once."""
    world.orthanc.stopping = True
    with pytest.raises(OrthancStopping):
        world.announcer.turn()


def test_no_patient_data_leaves_the_pacs(world: World) -> None:
    """A name, ID or birth date in Orthanc's answers is in no event, mark or status."""
    canary = "CANARY^PATIENT"
    world.ecg(series_tags={"SeriesDescription": canary, "OperatorsName": canary}, tags={"ImageComments": canary})
    world.stored.studies[f"st-{STUDY}"]["PatientMainDicomTags"] = {"PatientName": canary}
    world.stored.studies[f"st-{STUDY}"]["MainDicomTags"]["StudyDescription"] = canary
    world.run(1.0)
    everything = f"{world.log.records}{world.stored.marks}{world.stored.properties}{world.status.as_json()}"
    assert len(world.log.records) == 1
    assert canary not in everything


@pytest.mark.parametrize("calls", range(40))
def test_kill_between_any_two_steps_loses_and_repeats_nothing(calls: int) -> None:
    """Wherever the process dies on the way from arrival to mark, each event is in the log exactly once."""
    world = World()
    world.announcer.turn()
    world.ecg()
    world.clip()
    world.stack(range(3), total="12")
    world.kill_after(calls)
    world.run(30.0)
    assert sorted(event.modality for event in world.log.events) == ["cmr", "ecg", "echo"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_study_is_announced_exactly_once_whatever_happens(seed: int) -> None:
    """Random arrivals, kills, outages, lost answers, clock steps: the last revision of each study holds everything."""
    rng = random.Random(seed)
    world = World()
    world.announcer.turn()
    for _ in range(60):
        _something_happens(world, rng)
    world.log.down = world.log.lose_answer = False
    world.crash()
    world.run(1000.0, 5.0)
    assert sum(world.status.waiting.values()) == 0
    assert len({event.event_id for event in world.log.events}) == len(world.log.events)
    _check_last_revisions(world)


def _something_happens(world: World, rng: random.Random) -> None:
    study = f"1.7.{rng.randrange(4)}"
    happening = rng.randrange(9)
    if happening == 0:
        world.ecg(rng.randrange(6), study=study)
    elif happening == 1:
        world.clip(rng.randrange(6), study=study)
    elif happening == 2:
        world.stack(range(rng.randrange(1, 6)), total=rng.choice(["", "20"]), study=study)
    elif happening == 3:
        world.crash(rng.choice([0.0, 30.0]))
    elif happening == 4:
        world.log.down = rng.random() < 0.5
    elif happening == 5:
        world.log.lose_answer = rng.random() < 0.3
    elif happening == 6:
        world.utc_s += rng.choice([-3000.0, 3000.0])
    elif happening == 7:
        world.kill_after(rng.randrange(40))
    world.run(rng.choice([0.0, 0.5, 7.0]))


def _check_last_revisions(world: World) -> None:
    last = {(event.study_instance_uid, event.modality): event for event in world.log.events}
    for series in world.stored.series.values():
        header = series["MainDicomTags"]
        modality = {"ECG": "ecg", "US": "echo", "MR": "cmr"}[header["Modality"]]
        (claim,) = last[(series["ParentStudy"].removeprefix("st-"), modality)].series
        assert claim.instance_count == len(series["Instances"])
    revisions: dict[tuple[str, str], list[int]] = {}
    for event in world.log.events:
        revisions.setdefault((event.study_instance_uid, event.modality), []).append(event.revision)
    assert all(seen == list(range(1, len(seen) + 1)) for seen in revisions.values())
