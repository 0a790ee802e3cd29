"""Who a report is: UIDs that follow from what was analysed and by what, never from a random number or a clock.

Same study content, same engine, same site: same UIDs, so that storing a report twice is a no-op. A new engine or a new
revision of the study gives new ones. UIDs stand under 2.25 (PS3.5 B.2: the UUID as a decimal integer).
Called by the pipeline (to look whether a report is there already) and by every module that writes one.
"""

from __future__ import annotations

import uuid
from dataclasses import astuple, dataclass
from functools import cached_property

from engines.records import Modality

TEMPLATE_VERSION = 3
"""Version of the content this package writes; raise it with every change of what a report says."""

_SEPARATOR = "\x1f"


def uid_from(namespace: uuid.UUID, *parts: str) -> str:
    """UID under 2.25 from a name-based UUID (RFC 9562, version 5); at most 44 characters."""
    return f"2.25.{uuid.uuid5(namespace, _SEPARATOR.join(parts)).int}"


@dataclass(frozen=True, kw_only=True)
class ReportKey:
    """Everything that decides which report this is.

    Args:
        site_url: address of the site, so that two hospitals never make the same UID.
        modality: kind of study.
        sop_class_uid: of the measurement report.
        template_version: ``TEMPLATE_VERSION`` at the time of writing.
        content_digest: digest of the claim that was analysed (SOP Instance UIDs and file digests).
        model_name: name of the engine.
        model_version: version of the engine.
        weights_sha256: digest of the weights; never that of a compiled plan, which differs between machines.
    """

    site_url: str
    modality: Modality
    sop_class_uid: str
    template_version: int
    content_digest: str
    model_name: str
    model_version: str
    weights_sha256: str

    @cached_property
    def _namespace(self) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_URL, self.site_url)

    def _uid(self, role: str) -> str:
        return uid_from(self._namespace, role, *(str(part) for part in astuple(self)))

    @property
    def sop_instance_uid(self) -> str:
        """Of the measurement report."""
        return self._uid("report-instance")

    @property
    def series_instance_uid(self) -> str:
        """Of the series that holds the measurement report and nothing else."""
        return self._uid("report-series")

    @property
    def companion_sop_instance_uid(self) -> str:
        """Of the readable companion."""
        return self._uid("companion-instance")

    @property
    def companion_series_instance_uid(self) -> str:
        """Of the series that holds the companion and nothing else."""
        return self._uid("companion-series")

    @property
    def picture_sop_instance_uid(self) -> str:
        """Of the picture that explains the answer."""
        return self._uid("picture-instance")

    @property
    def picture_series_instance_uid(self) -> str:
        """Of the series that holds the picture and nothing else."""
        return self._uid("picture-series")

    @property
    def algorithm_uid(self) -> str:
        """Device UID of the engine; another one as soon as its weights or version change."""
        return uid_from(self._namespace, "algorithm", self.model_name, self.model_version, self.weights_sha256)

    def tracking_uid(self, quantity: str) -> str:
        """Tracking Unique Identifier (TID 4108) of one quantity; the same across versions of the engine."""
        return uid_from(self._namespace, "tracking", self.content_digest, self.model_name, quantity)

    def device_observer_uid(self, node: str) -> str:
        """Device Observer UID (TID 1004) of the processing node."""
        return uid_from(self._namespace, "node", node)
