"""UK Biobank: bulk item 20205 (ECG at rest), ``<eid>_20205_<instance>_<index>.xml``, and what tables say of its participants.

The files are CardioSoft XML; the decoder of the serving path reads them and is given by the caller. Item 6025, the exercise
ECG, has three leads and is left alone. ECG and images of one instance are of one visit: they pair on its day.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from engines.records import EcgRecord
from training.data.icd10_outcomes import APART, OUTCOMES, incident_label, occurrences, prevalent_label
from training.data.pairs import Visit
from training.data.sources.cmr_labels import HIGHEST_PERCENT, LOWEST_PERCENT
from training.data.sources.cmr_studies import files_below
from training.data.sources.ecg_sets import EcgDecoder, EcgEntry, EcgSet, file_content
from training.data.sources.ukbb_cmr import ArchiveLoader, ukbb_archives
from training.data.sources.ukbb_fields import (
    BODY_FIELDS,
    CARDIAC_FIELDS,
    DIAGNOSES,
    DIAGNOSIS_DATES,
    SEX,
    VISIT_DAY,
    Person,
    Place,
    columns_in,
    day_of,
    diagnoses_of,
    number_of,
    read_fields,
)
from training.data.sources.ukbb_table import withdrawn_eids

BULK_FIELD = "20205"
LARGEST_FILE_BYTES = 16 * 1024**2
"""A rest ECG with its medians has 0.4 MB."""
INCIDENT = "incident_"
"""Before the name of a disease: coded after the visit, of those who did not have it before."""

_FILE = re.compile(r"(?P<eid>\d+)_(?P<field>\d+)_(?P<instance>\d+)_(?P<index>\d+)\.xml")
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class UkbbOptions:
    """What the folder does not say itself.

    Args:
        instance: 2 is the first imaging visit, 3 the repeat.
        index: array index of the bulk item.
        outcomes: whether diagnoses are expected; without them no disease is labelled.
        quantities: whether the tables must state a quantity of the heart; what they state is taken either way.
        measured: quantities by the key of the ECG, measured by segmentation; for participants of whom the tables state
            none, so that one heart is never measured half by each.
    """

    instance: int = 2
    index: int = 0
    outcomes: bool = True
    quantities: bool = True
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)


def ukbb_ecgs(root: Path, decode: EcgDecoder, options: UkbbOptions | None = None) -> EcgSet:
    """Open a folder of this layout; participants who have withdrawn are not in it.

    Args:
        root: XML files in it or in folders below, tables and lists of the withdrawn in itself.
        decode: content of a CardioSoft XML to its record.
        options: visit and outcomes.

    Raises:
        ValueError: no file of the visit, one twice, all withdrawn, or a table lacks or breaks what is needed.
    """
    chosen = options or UkbbOptions()
    paths = _of_visit(root, chosen)
    withdrawn = withdrawn_eids(root)
    kept = {eid: path for eid, path in paths.items() if eid not in withdrawn}
    _log.info("ecgs.found", files=len(paths), withdrawn=len(paths) - len(kept))
    if not kept:
        raise ValueError(f"all {len(paths)} participants with an ECG have withdrawn")
    people = _people(root, kept.keys(), chosen)
    entries = tuple(_entry(eid, people[eid], chosen) for eid in sorted(kept))
    return EcgSet(
        name=f"UK Biobank {BULK_FIELD}, instance {chosen.instance}", entries=entries, load=_Loader(kept, decode)
    )


def _of_visit(root: Path, options: UkbbOptions) -> dict[str, Path]:
    matches = ((_FILE.fullmatch(path.name), path) for path in files_below(root))
    files = [(match, path) for match, path in matches if match and match["field"] == BULK_FIELD]
    visit = [(match["eid"], path) for match, path in files if _visit(match) == (options.instance, options.index)]
    found = dict(visit)
    if not found:
        others = ", ".join(f"{a}_{b}" for a, b in sorted({_visit(match) for match, _ in files})) or "none"
        wanted = f"<eid>_{BULK_FIELD}_{options.instance}_{options.index}.xml"
        raise ValueError(f"no file {wanted} in the folder; of that item it has {others}")
    if len(found) < len(visit):
        raise ValueError(f"{len(visit) - len(found)} ECGs are there twice, in two folders; leave one of each")
    return found


def _visit(match: re.Match[str]) -> tuple[int, int]:
    return int(match["instance"]), int(match["index"])


def _people(root: Path, eids: Collection[str], options: UkbbOptions) -> dict[str, Person]:
    instance = options.instance
    cardiac: set[Place] = {(field, instance) for field in CARDIAC_FIELDS}
    diagnoses: set[Place] = {(DIAGNOSES, 0), (DIAGNOSIS_DATES, 0)} if options.outcomes else set()
    body: set[Place] = {(field, instance) for field in BODY_FIELDS} | {(SEX, 0)}
    there = columns_in(root, cardiac | diagnoses | {(VISIT_DAY, instance)})
    needed = diagnoses | {(VISIT_DAY, instance)}
    missing = sorted(field for field, _ in needed - there)
    if missing:
        raise ValueError(
            f"no table has field {' or '.join(missing)} (instance {instance} for a visit); expected the columns"
            f" {VISIT_DAY}-{instance}.0, {DIAGNOSES}-0.0 on and {DIAGNOSIS_DATES}-0.0 on, or no outcomes"
        )
    if options.quantities and not there & cardiac:
        raise ValueError(
            f"no table has a field of 24100 to 24181 at instance {instance}; without them nothing is measured: measure the "
            "stacks with `purkinje-train evaluate segmentation --data` and give its table as --measured"
        )
    return read_fields(root, eids, cardiac | diagnoses | body | {(VISIT_DAY, instance)})


def _entry(eid: str, person: Person, options: UkbbOptions) -> EcgEntry:
    days = person.get((VISIT_DAY, options.instance), {})
    key = f"{eid}_{options.instance}"
    return EcgEntry(
        key=key,
        patient=eid,
        recorded=day_of(days[0]) if days else None,
        targets=_targets(person, options.instance) or dict(options.measured.get(key, {})),
        labels=_labels(person, options),
        demographics=_demographics(person, options.instance),
    )


def _targets(person: Person, instance: int) -> dict[str, float]:
    """Quantities that were measured; an ejection fraction that no heart has is a failed analysis and left out.

    Raises:
        ValueError: an ejection fraction is a fraction.
    """
    values = {name: number_of(person, field, instance) for field, name in CARDIAC_FIELDS.items()}
    found = {name: value for name, value in values.items() if value is not None}
    ejection = [name for name in ("lvef", "rvef") if name in found]
    if any(0 < found[name] <= 1 for name in ejection):
        raise ValueError(
            "a table gives an ejection fraction of 1 % or less; fields 24103 and 24109 in percent are expected"
        )
    implausible = {name for name in ejection if not LOWEST_PERCENT <= found[name] <= HIGHEST_PERCENT}
    return {name: value for name, value in found.items() if name not in implausible}


def _labels(person: Person, options: UkbbOptions) -> dict[str, bool]:
    """Prevalent and incident diseases as far as dates tell; nothing without the day of the visit."""
    days = person.get((VISIT_DAY, options.instance), {})
    if not options.outcomes or not days:
        return {}
    found = occurrences(diagnoses_of(person), day_of(days[0]), {**OUTCOMES, **APART})
    labels = {name: prevalent_label(each) for name, each in found.items()}
    labels |= {f"{INCIDENT}{name}": incident_label(each) for name, each in found.items()}
    return {name: bool(label) for name, label in labels.items() if label in (0.0, 1.0)}


def _demographics(person: Person, instance: int) -> dict[str, float]:
    """Sex is asked once (0 female, 1 male), the others at each visit."""
    values = {name: number_of(person, field, instance) for field, name in BODY_FIELDS.items()}
    values["male"] = number_of(person, SEX, 0)
    if values["male"] not in (None, 0.0, 1.0):
        raise ValueError(f"field {SEX} is neither 0 nor 1; expected the codes, not their meanings")
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class _Loader:
    """The record of a key; a value, so that it travels to worker processes."""

    paths: Mapping[str, Path]
    decode: Callable[[bytes], EcgRecord]

    def __call__(self, key: str) -> EcgRecord:
        return self.decode(file_content(self.paths[key.rpartition("_")[0]], "ECG", LARGEST_FILE_BYTES))


def ecg_visits(ecgs: EcgSet) -> list[Visit]:
    """Return the ECGs that have a day, as one side of pairs."""
    return [Visit(key=each.key, patient=each.patient, day=each.recorded) for each in ecgs.entries if each.recorded]


def cmr_visits(root: Path, ecgs: EcgSet, options: UkbbOptions | None = None) -> list[Visit]:
    """Return the short-axis archives of the same visit as the other side; the day is that of the participant's visit.

    Raises:
        ValueError: no archive of the visit is of a participant with an ECG, or one is there twice.
    """
    chosen = options or UkbbOptions()
    days = {entry.key: entry.recorded for entry in ecgs.entries}  # a key names the visit: another visit has another day
    archives = _archives(root, chosen)
    found = [(eid, f"{eid}_{chosen.instance}") for eid, _ in archives]
    visits = [Visit(key=key, patient=eid, day=day) for eid, key in found if (day := days.get(key)) is not None]
    if not visits:
        raise ValueError(f"{len(archives)} archives of short-axis images, none of a participant with an ECG and a day")
    if len({visit.key for visit in visits}) < len(visits):
        raise ValueError("an archive is there twice, in two folders; leave one of each")
    return visits


def _archives(root: Path, options: UkbbOptions) -> list[tuple[str, Path]]:
    wanted = (options.instance, options.index)
    return [(match["eid"], path) for match, path in ukbb_archives(root) if _visit(match) == wanted]


def cmr_loader(root: Path, options: UkbbOptions | None = None) -> ArchiveLoader:
    """Return what loads the stack of a key of ``cmr_visits``."""
    chosen = options or UkbbOptions()
    return ArchiveLoader({f"{eid}_{chosen.instance}": path for eid, path in _archives(root, chosen)})
