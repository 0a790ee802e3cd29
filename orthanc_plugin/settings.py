"""Settings of the plugin, from the ``Purkinje`` section of Orthanc's configuration and the environment.

Read once, when Orthanc loads the plugin. An unknown key or a wrong value is an error that names itself; the
plugin then stays off and Orthanc runs as if it were not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

SECTION = "Purkinje"
LOG_VARIABLE = "PURKINJE_LOG"
"""Environment variable that takes the place of the key ``Log`` (for secrets and containers)."""

_USER_INFORMATION = re.compile(r"(?<=//)[^/@]*@")


class SettingsError(ValueError):
    """The configuration cannot be used; the message says which key, what was found and what is expected."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an administrator may set; the key in the configuration stands in ``KEYS``.

    Args:
        log: where announcements go, ``sqlite:///absolute/path.db`` or ``kafka://host:port[,host:port]``.
        log_options: further options of that log (TLS and SASL of Kafka, for instance); never shown.
        announce_existing: announce what lay in Orthanc before the plugin was first started, too.
        ecg_debounce_s: an ECG is announced this long after its last instance.
        echo_quiet_s: quiet time of an echo study while nothing is known of the sender's pace.
        echo_quiet_min_s: lower bound of the adaptive quiet time.
        echo_quiet_max_s: upper bound of the adaptive quiet time.
        cmr_quiet_s: quiet time of an MR study whose slices x phases are not known to be complete.
        longest_wait_s: a study that never falls quiet is announced after this time all the same.
        poll_s: the change log is looked at this often, even without a callback.
        most_tracked: studies kept in memory at once; further ones wait in Orthanc's change log.
        cmr_excluded_body_parts: MR series with one of these values of (0018,0015) are not announced.
        cmr_excluded_descriptions: MR series whose (0008,103E) matches this regular expression are not announced.
    """

    log: str
    log_options: Mapping[str, Any] = field(default_factory=dict)
    announce_existing: bool = False
    ecg_debounce_s: float = 0.25
    echo_quiet_s: float = 5.0
    echo_quiet_min_s: float = 3.0
    echo_quiet_max_s: float = 15.0
    cmr_quiet_s: float = 20.0
    longest_wait_s: float = 900.0
    poll_s: float = 2.0
    most_tracked: int = 20_000
    cmr_excluded_body_parts: tuple[str, ...] = ()
    cmr_excluded_descriptions: str = ""

    def public(self) -> dict[str, Any]:
        """The settings with secrets masked, by configuration key."""
        shown = {key: getattr(self, name) for key, name in KEYS.items()}
        return {**shown, "Log": without_secrets(self.log), "LogOptions": sorted(self.log_options)}


KEYS = {
    "Log": "log",
    "LogOptions": "log_options",
    "AnnounceExisting": "announce_existing",
    "EcgDebounceSeconds": "ecg_debounce_s",
    "EchoQuietSeconds": "echo_quiet_s",
    "EchoQuietSecondsMin": "echo_quiet_min_s",
    "EchoQuietSecondsMax": "echo_quiet_max_s",
    "CmrQuietSeconds": "cmr_quiet_s",
    "LongestWaitSeconds": "longest_wait_s",
    "PollSeconds": "poll_s",
    "MostTracked": "most_tracked",
    "CmrExcludedBodyParts": "cmr_excluded_body_parts",
    "CmrExcludedDescriptions": "cmr_excluded_descriptions",
}
"""Configuration key -> field of ``Settings``."""


def settings_from_configuration(configuration: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Build the settings from Orthanc's whole configuration.

    Raises:
        SettingsError: unknown key, wrong type, value out of range, or no log.
    """
    section = configuration.get(SECTION, {})
    _check(isinstance(section, Mapping), f"section {SECTION!r} is not an object: write {SECTION!r}: {{'Log': ...}}")
    unknown = sorted(set(section) - set(KEYS))
    _check(not unknown, f"unknown key {', '.join(unknown)} in section {SECTION!r}; known are {', '.join(KEYS)}")
    values = {KEYS[key]: _typed(key, value) for key, value in section.items()}
    if environment.get(LOG_VARIABLE):
        values["log"] = environment[LOG_VARIABLE]
    _check(
        "log" in values, f"no log: set {SECTION}.Log or {LOG_VARIABLE}, for example sqlite:///var/lib/purkinje/log.db"
    )
    return _in_range(Settings(**values))


def without_secrets(url: str) -> str:
    """A URL with the user and password part masked."""
    return _USER_INFORMATION.sub("***@", url)


def _typed(key: str, value: Any) -> Any:
    kind = next(str(known.type) for known in fields(Settings) if known.name == KEYS[key])
    if kind == "float":
        _check(isinstance(value, int | float) and not isinstance(value, bool), f"{key} is {value!r}; expected seconds")
        return float(value)
    if kind == "int":
        _check(isinstance(value, int) and not isinstance(value, bool), f"{key} is {value!r}; expected a whole number")
    elif kind == "bool":
        _check(isinstance(value, bool), f"{key} is {value!r}; expected true or false")
    elif kind == "str":
        _check(isinstance(value, str), f"{key} is of type {type(value).__name__}; expected text")
    elif kind.startswith("Mapping"):
        _check(isinstance(value, Mapping), f"{key} is of type {type(value).__name__}; expected an object")
    else:
        _check(_is_list_of_text(value), f"{key} is {value!r}; expected a list of texts")
        return tuple(value)
    return value


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _in_range(settings: Settings) -> Settings:
    scheme = settings.log.partition("://")[0]
    shown = without_secrets(settings.log)
    _check(scheme in ("sqlite", "kafka"), f"Log is {shown!r}; expected sqlite:///path or kafka://host:port")
    for key, name in KEYS.items():
        if name.endswith("_s"):
            _check(0 <= getattr(settings, name) <= 86_400, f"{key} is {getattr(settings, name)}; expected 0 to 86400 s")
    _check(settings.poll_s >= 0.05, f"PollSeconds is {settings.poll_s}; expected 0.05 s or more")
    _check(settings.most_tracked >= 1, f"MostTracked is {settings.most_tracked}; expected 1 or more")
    _check(
        settings.echo_quiet_min_s <= settings.echo_quiet_max_s,
        "EchoQuietSecondsMin is above EchoQuietSecondsMax: swap them",
    )
    try:
        re.compile(settings.cmr_excluded_descriptions)
    except re.error as error:
        msg = f"CmrExcludedDescriptions is not a regular expression: {error}"
        raise SettingsError(msg) from error
    return settings


def _check(condition: bool, expectation: str) -> None:
    if not condition:
        raise SettingsError(expectation)
