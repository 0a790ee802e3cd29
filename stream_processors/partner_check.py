"""Compares an answered ECG or cardiac MR study with the same patient's study of the other modality, where there is one.

A check of identity and consistency beside the engine's answer, which it never changes. Whatever goes wrong with the
partner or the comparison becomes a sentence in the record; only a PACS that is away is waited for, as everywhere.
Called by ``pipeline``; one for all lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from engines.decode.spool import Spool
from engines.decode.study import StudyReading
from engines.errors import BundleError, DeviceLost, EngineError, NotApplicable, Refusal
from engines.predictions import CrossModal, ModelIdentity
from engines.predictors.cross_modal import load_cross_modal
from engines.predictors.similarity import Similarity
from engines.preprocess.cmr_volume import CmrVolumeSpec
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import PreprocessSpec
from engines.records import Modality
from engines.runtime.open import Opener
from orthanc_plugin.wire.events import StudyReady
from stream_processors.cross_modal import NAMES, PARTNERS, CrossModalFinding
from stream_processors.errors import (
    ClaimEnded,
    ClaimTooLarge,
    PacsError,
    PacsUnavailable,
    ProcessorError,
    ResourceExhausted,
)
from stream_processors.pacs.client import Partner, StudyReader
from stream_processors.routes import Sandbox, bundle_path, cpu_openers
from stream_processors.settings import Settings

_PASSED_ON: Final = (PacsUnavailable, DeviceLost)
"""What no comparison can be made without, and no report either: tried again, by this process or the next."""
_FAILURES: Final = (PacsError, ClaimTooLarge, ResourceExhausted, EngineError, ValueError, OSError, MemoryError)
_log = structlog.get_logger("stream_processors.partner_check")


class Comparer(Protocol):
    """Compares one ECG with one set of images, for several threads: ``engines.predictors.cross_modal.CrossModalCheck``."""

    @property
    def window_days(self) -> int:
        """Largest distance of the studies of a pair."""

    @property
    def identity(self) -> ModelIdentity:
        """Which engine it belongs to."""

    @property
    def ecg_spec(self) -> PreprocessSpec:
        """How the ECG is prepared."""

    @property
    def cmr_spec(self) -> CmrVolumeSpec:
        """How the images are prepared."""

    def compare(self, ecg: Prepared, cmr: Prepared) -> CrossModal:
        """How alike they are. Raises InferenceError and ValueError."""

    def close(self) -> None:
        """Give memory back."""


Load = Callable[[Path, Sequence[str], Mapping[str, Opener]], Comparer | None]
"""Opens and verifies what a bundle compares with: ``engines.predictors.cross_modal.load_cross_modal``."""


def open_partner_check(settings: Settings, reader: StudyReader, load: Load = load_cross_modal) -> PartnerCheck | None:
    """The check that the ECG bundle holds.

    None where it is switched off, where no lane needs it, or where there is no such bundle or none that compares. One
    that does not pass its self-test is told to the operator and left out: the engines answer without it.
    """
    wanted = settings.cross_modal.enabled and any(modality in PARTNERS for modality in settings.modalities)
    path = bundle_path(Modality.ECG, settings.engine)
    if not wanted or not path.is_dir():
        return None
    try:
        comparer = load(path, settings.engine.cpu_runtimes, cpu_openers(settings.engine))
    except BundleError as error:
        _log.error("partner_check.left_out", alert=True, message=str(error))
        return None
    return None if comparer is None else PartnerCheck(comparer, reader, window_days=settings.cross_modal.window_days)


class PartnerCheck:
    """The check of one process. Safe to use from several threads.

    Args:
        comparer: what compares; closed by ``close``.
        reader: where studies lie.
        window_days: in place of the comparer's own.
    """

    def __init__(self, comparer: Comparer, reader: StudyReader, *, window_days: int | None = None) -> None:
        self._comparer = comparer
        self._reader = reader
        self._window_days = comparer.window_days if window_days is None else window_days

    def finding(self, claim: StudyReady, spool: Spool, sandbox: Sandbox) -> CrossModalFinding | None:
        """Compare a study with its nearest partner; None where the patient has none.

        Args:
            claim: the study.
            spool: its instances.
            sandbox: the child of this thread.

        Raises:
            PacsUnavailable: try again later.
            DeviceLost: only a new process helps.
        """
        partners = self._partners(claim)
        if not partners:
            return None
        modality = Modality(claim.modality)
        try:
            own = self._prepared(modality, spool, sandbox)
        except _PASSED_ON:
            raise
        except _FAILURES as error:
            return self._not_compared(
                claim, partners[0], f"this {NAMES[modality]} cannot be used for it: {_said(error)}"
            )
        found = (self._with(partner, claim, own, sandbox) for partner in partners)
        return next((finding for finding in found if finding is not None), None)

    def close(self) -> None:
        """Give memory back."""
        self._comparer.close()

    def _partners(self, claim: StudyReady) -> Sequence[Partner]:
        """Without a list of partners there is none to name: a PACS that refuses it is told to the operator only."""
        wanted = PARTNERS.get(Modality(claim.modality))
        if wanted is None:
            return ()
        try:
            return self._reader.partners_of(claim.study_instance_uid, wanted, window_days=self._window_days)
        except _PASSED_ON:
            raise
        except _FAILURES as error:
            _log.warning("partners.not_listed", modality=claim.modality, error=type(error).__name__)
            return ()

    def _with(self, partner: Partner, claim: StudyReady, own: Prepared, sandbox: Sandbox) -> CrossModalFinding | None:
        """The finding with one partner; None where it is not meant for this, or still on its way.

        A partner that is changing is announced again when it is complete, and is then compared with this study.
        """
        modality = PARTNERS[Modality(claim.modality)]
        try:
            other = self._fetched(partner, modality, sandbox)
            found = self._compare(modality, own, other)
            return self._said_of(partner, modality, similarity=_similarity(found), embedding=found.embedding)
        except (NotApplicable, ClaimEnded):
            return None
        except _PASSED_ON:
            raise
        except _FAILURES as error:
            if partner.arriving and isinstance(error, Refusal):
                return None
            return self._not_compared(claim, partner, _said(error))

    def _fetched(self, partner: Partner, modality: Modality, sandbox: Sandbox) -> Prepared:
        with Spool() as spool:
            self._reader.fetch(partner, spool)
            return self._prepared(modality, spool, sandbox)

    def _prepared(self, modality: Modality, spool: Spool, sandbox: Sandbox) -> Prepared:
        """Raises the refusal where the study cannot be used."""
        spec = self._comparer.ecg_spec if modality is Modality.ECG else self._comparer.cmr_spec
        reading: StudyReading = sandbox.read_study(modality, spool, spec)
        if reading.refusal is not None:
            raise reading.refusal
        return reading.prepared[0]

    def _compare(self, modality: Modality, own: Prepared, other: Prepared) -> CrossModal:
        ecg, cmr = (other, own) if modality is Modality.ECG else (own, other)
        return self._comparer.compare(ecg, cmr)

    def _not_compared(self, claim: StudyReady, partner: Partner, reason: str) -> CrossModalFinding:
        said = {"study_instance_uid": claim.study_instance_uid, "modality": claim.modality, "message": reason}
        _log.info("partner.not_compared", **said)
        return self._said_of(partner, PARTNERS[Modality(claim.modality)], not_compared=reason)

    def _said_of(self, partner: Partner, modality: Modality, **said: Any) -> CrossModalFinding:
        return CrossModalFinding(
            partner_study_instance_uid=partner.study_instance_uid,
            partner_modality=modality,
            days_apart=partner.days_apart,
            bundle_sha256=self._comparer.identity.bundle_sha256,
            **said,
        )


def _similarity(found: CrossModal) -> Similarity:
    return Similarity(
        cosine=found.cosine,
        own_percent=found.own_percent,
        others_percent=found.others_percent,
        below_limit=found.below_limit,
    )


def _said(error: Exception) -> str:
    """Why, in words that name no patient: our own where they promise that, else the kind of error."""
    if isinstance(error, Refusal):
        return error.reason
    if isinstance(error, ProcessorError):
        return str(error)
    return f"the comparison failed ({type(error).__name__})"
