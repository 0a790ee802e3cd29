"""UK Biobank as pairs: the resting ECG (20205) and the short-axis archive (20209) of one visit, with what its tables say.

Called by the study. Readers and decoders are those of ``training.data.sources`` and of the serving path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.decode.ecg_file import read_ecg_content
from engines.decode.ecg_reading import EcgContent
from engines.preprocess.cmr_volume import CmrVolumeSpec
from engines.preprocess.spec import EcgSpec
from engines.records import CineStack, EcgRecord
from training.data.pairs import Pair, pair_visits
from training.data.patient_split import PUBLISHED_SHARES
from training.data.sources.ecg_sets import EcgEntry
from training.data.sources.ukbb_ecg import UkbbOptions, cmr_loader, cmr_visits, ecg_visits, ukbb_ecgs
from training.ecg_cmr.pair_source import Arrays, PairEntry, pair_code_digest, pair_key, prepared_pair

SAME_VISIT_DAYS = 0


@dataclass(frozen=True, kw_only=True)
class UkbbPairs:
    """Participants with both studies of a visit, as a ``PairSource``; made by ``ukbb_pairs``.

    Args:
        instance: of the visit.
        ecg, cmr: how the records are prepared.
        listed: the pairs.
        studies: keys of both studies of each pair.
        load_ecg, load_cmr: the record of a key.
        salt: of the split.
        shares: of the parts, percent.
    """

    instance: int
    ecg: EcgSpec
    cmr: CmrVolumeSpec
    listed: tuple[PairEntry, ...] = field(repr=False)
    studies: tuple[tuple[str, str], ...] = field(repr=False)
    load_ecg: Callable[[str], EcgRecord] = field(repr=False)
    load_cmr: Callable[[str], CineStack] = field(repr=False)
    salt: str = "ukbb"
    shares: Mapping[str, int] = field(default_factory=lambda: dict(PUBLISHED_SHARES))

    @property
    def name(self) -> str:
        return f"UK Biobank 20205 and 20209, instance {self.instance}"

    @property
    def spec(self) -> Mapping[str, Any]:
        return {
            "ecg": self.ecg.model_dump(mode="json"),
            "cmr": self.cmr.model_dump(mode="json"),
            "code_sha256": pair_code_digest(),
        }

    def entries(self) -> Sequence[PairEntry]:
        return self.listed

    def read(self, number: int) -> Arrays:
        ecg, cmr = self.studies[number]
        return prepared_pair(self.load_ecg(ecg), self.load_cmr(cmr), ecg_spec=self.ecg, cmr_spec=self.cmr)


def ukbb_pairs(root: Path, *, ecg: EcgSpec, cmr: CmrVolumeSpec, options: UkbbOptions | None = None) -> UkbbPairs:
    """Open a folder of UK Biobank with both items and its tables.

    Raises:
        ValueError: as ``ukbb_ecgs`` and ``cmr_visits``, or no participant has both of one visit.
    """
    chosen = options or UkbbOptions()
    ecgs = ukbb_ecgs(root, ecg_record_of, chosen)
    pairs = pair_visits(ecg_visits(ecgs), cmr_visits(root, ecgs, chosen), window_days=SAME_VISIT_DAYS)
    return UkbbPairs(
        instance=chosen.instance,
        ecg=ecg,
        cmr=cmr,
        listed=tuple(_entry(pair, ecgs.entry(pair.ecg.key)) for pair in pairs),
        studies=tuple((pair.ecg.key, pair.cmr.key) for pair in pairs),
        load_ecg=ecgs.load,
        load_cmr=cmr_loader(root, chosen),
    )


def ecg_record_of(content: bytes) -> EcgRecord:
    """Return the record of a file's content, decoded as serving does; raises ``Refusal``."""
    return read_ecg_content(EcgContent(path=Path("ecg.xml"), data=content)).record


def _entry(pair: Pair, known: EcgEntry) -> PairEntry:
    return PairEntry(
        key=pair_key(pair.patient, pair.ecg.day, pair.cmr.day),
        patient=pair.patient,
        ecg_on=pair.ecg.day,
        cmr_on=pair.cmr.day,
        targets=known.targets,
        diseases=known.labels,
        demographics=known.demographics,
    )
