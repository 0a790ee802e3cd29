"""The settings of the plugin: typed, bounded, without secrets when shown."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from orthanc_plugin.settings import KEYS, Settings, SettingsError, settings_from_configuration, without_secrets

LOG = "sqlite:///var/lib/purkinje/log.db"


def read(section: Any, **environment: str) -> Settings:
    """The settings of a section."""
    return settings_from_configuration({"Purkinje": section, "Name": "x"}, environment)


def test_every_field_has_a_key() -> None:
    """What can be set can be set from the configuration."""
    assert sorted(KEYS.values()) == sorted(field.name for field in fields(Settings))


def test_the_log_alone_suffices() -> None:
    """Waiting times have the documented defaults."""
    settings = read({"Log": LOG})
    assert (settings.log, settings.echo_quiet_s, settings.cmr_quiet_s) == (LOG, 5.0, 20.0)


def test_values_are_taken() -> None:
    """Numbers, switches, lists and options arrive as their types."""
    settings = read(
        {
            "Log": "kafka://a:9092,b:9092",
            "LogOptions": {"security": {"x": "y"}},
            "CmrQuietSeconds": 7,
            "AnnounceExisting": True,
            "CmrExcludedBodyParts": ["BRAIN"],
        }
    )
    assert settings.cmr_quiet_s == 7.0
    assert settings.announce_existing is True
    assert settings.cmr_excluded_body_parts == ("BRAIN",)
    assert settings.log_options == {"security": {"x": "y"}}


def test_the_environment_takes_the_place_of_the_log() -> None:
    """PURKINJE_LOG wins over the file."""
    assert read({"Log": LOG}, PURKINJE_LOG="kafka://k:1").log == "kafka://k:1"
    assert settings_from_configuration({}, {"PURKINJE_LOG": LOG}).log == LOG


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ({}, "no log"),
        ([], "not an object"),
        ({"Log": 5}, "expected text"),
        ({"Log": "redis://x"}, "expected sqlite"),
        ({"Log": LOG, "Quiet": 1}, "unknown key Quiet"),
        ({"Log": LOG, "CmrQuietSeconds": "20"}, "expected seconds"),
        ({"Log": LOG, "CmrQuietSeconds": True}, "expected seconds"),
        ({"Log": LOG, "CmrQuietSeconds": -1}, "expected 0 to"),
        ({"Log": LOG, "PollSeconds": 0}, "expected 0.05"),
        ({"Log": LOG, "MostTracked": 0}, "expected 1"),
        ({"Log": LOG, "MostTracked": 1.5}, "whole number"),
        ({"Log": LOG, "AnnounceExisting": 1}, "true or false"),
        ({"Log": LOG, "CmrExcludedBodyParts": "BRAIN"}, "list of texts"),
        ({"Log": LOG, "CmrExcludedDescriptions": "("}, "regular expression"),
        ({"Log": LOG, "EchoQuietSecondsMin": 9, "EchoQuietSecondsMax": 3}, "swap"),
        ({"Log": LOG, "LogOptions": "x"}, "expected an object"),
    ],
)
def test_a_wrong_setting_names_itself(section: Any, word: str) -> None:
    """Unknown keys, wrong types and values out of range are errors that say what to do."""
    with pytest.raises(SettingsError, match=word):
        read(section)


def test_secrets_are_not_shown() -> None:
    """Neither a password in a URL nor the options of the log appear in what the status shows."""
    settings = read({"Log": "kafka://user:geheim@h:1", "LogOptions": {"security": {"password": "geheim"}}})
    shown = json.dumps(settings.public())
    assert "geheim" not in shown
    assert "kafka://***@h:1" in shown
    assert without_secrets(LOG) == LOG


def test_a_wrong_log_is_named_without_its_secret() -> None:
    """The error about a log URL does not repeat the password."""
    with pytest.raises(SettingsError) as caught:
        read({"Log": "redis://user:geheim@h:1"})
    assert "geheim" not in str(caught.value)


def test_the_configuration_to_start_from_is_valid_and_closed(root: Path) -> None:
    """The template's section is accepted, and nothing is open to everybody."""
    template = json.loads((root / "deploy" / "orthanc" / "orthanc.json").read_text())
    assert settings_from_configuration(template, {}).log.startswith("kafka://")
    must_be = {
        "AuthenticationEnabled": True,
        "SslEnabled": True,
        "DicomCheckModalityHost": True,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": False,
        "DicomAlwaysAllowFind": False,
        "DicomAlwaysAllowGet": False,
        "DicomAlwaysAllowEcho": False,
        "ExecuteLuaEnabled": False,
        "RestApiWriteToFileSystemEnabled": False,
        "DeflatedTransferSyntaxAccepted": False,
        "OverwriteInstances": False,
    }
    assert {key: template[key] for key in must_be} == must_be


def test_every_setting_is_documented(root: Path) -> None:
    """The table in deploy/orthanc names each key."""
    readme = (root / "deploy" / "orthanc" / "README.md").read_text()
    assert [key for key in KEYS if f"`{key}`" not in readme] == []
