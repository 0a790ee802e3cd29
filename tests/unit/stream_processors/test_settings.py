"""Settings refuse what they do not know and mask what is secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from engines.records import Modality
from stream_processors.errors import SettingsInvalid
from stream_processors.settings import Settings, load_settings, masked

MINIMUM = {"PURKINJE_SITE_URL": "https://hospital.example", "PURKINJE_LOG": "sqlite:///var/lib/purkinje/log.db"}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with the required settings and nothing else of ours."""
    import os

    for name in list(os.environ):
        if name.startswith("PURKINJE_"):
            monkeypatch.delenv(name)
    for name, value in MINIMUM.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_two_settings_are_enough(env: pytest.MonkeyPatch) -> None:
    """A site and a log are all that has no default."""
    settings = load_settings()
    assert settings.modalities == tuple(Modality)
    assert settings.log.url == MINIMUM["PURKINJE_LOG"]


def test_the_cross_modal_check_can_be_switched_off(env: pytest.MonkeyPatch) -> None:
    """It is on and has the window of the bundle unless the site says otherwise; a window is never negative."""
    settings = load_settings()
    assert (settings.cross_modal.enabled, settings.cross_modal.window_days) == (True, None)
    env.setenv("PURKINJE_CROSS_MODAL__ENABLED", "false")
    env.setenv("PURKINJE_CROSS_MODAL__WINDOW_DAYS", "0")
    settings = load_settings()
    assert (settings.cross_modal.enabled, settings.cross_modal.window_days) == (False, 0)
    env.setenv("PURKINJE_CROSS_MODAL__WINDOW_DAYS", "-1")
    with pytest.raises(SettingsInvalid, match=r"cross_modal\.window_days"):
        load_settings()


@pytest.mark.parametrize("name", MINIMUM)
def test_a_missing_setting_is_named_with_its_variable(env: pytest.MonkeyPatch, name: str) -> None:
    """Whoever forgets a required setting reads which variable to set."""
    env.delenv(name)
    with pytest.raises(SettingsInvalid, match=name):
        load_settings()


@pytest.mark.parametrize(
    "variable", ["PURKINJE_SITEURL", "PURKINJE_PACS__RESTT__URL", "PURKINJE_PACS__REST__USER", "purkinje_groups"]
)
def test_an_unknown_variable_is_an_error(env: pytest.MonkeyPatch, variable: str) -> None:
    """A misspelt variable is refused at every level, never ignored."""
    env.setenv(variable, "x")
    with pytest.raises(SettingsInvalid):
        load_settings()


def test_an_unknown_key_of_the_file_is_an_error(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A misspelt key in the file is named with its place."""
    file = tmp_path / "settings.toml"
    file.write_text("[pacs.rest]\nurll = 'http://pacs'\n")
    with pytest.raises(SettingsInvalid, match=r"pacs\.rest\.urll"):
        load_settings(file)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_the_environment_wins_over_the_file_key_by_key(env: pytest.MonkeyPatch, tmp_path: Path, suffix: str) -> None:
    """A variable replaces its own key and leaves its neighbours from the file."""
    file = tmp_path / f"settings.{suffix}"
    content = {"pacs": {"rest": {"url": "http://file:1", "read_timeout_s": 7.0}}}
    file.write_text(
        json.dumps(content) if suffix == "json" else "[pacs.rest]\nurl = 'http://file:1'\nread_timeout_s = 7.0\n"
    )
    env.setenv("PURKINJE_PACS__REST__URL", "http://env:2")
    env.setenv("PURKINJE_SETTINGS", str(file))
    rest = load_settings().pacs.rest
    assert (rest.url, rest.read_timeout_s) == ("http://env:2", 7.0)


@pytest.mark.parametrize("content", ["not = [valid", "[1, 2]"])
def test_a_broken_file_is_named(env: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    """A file that cannot be parsed, or holds no table, is an error that names it."""
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(SettingsInvalid, match=r"settings\.json"):
        load_settings(file)


def test_secrets_are_masked_wherever_settings_are_shown(env: pytest.MonkeyPatch) -> None:
    """Passwords of the PACS, the log and the addresses appear neither in the masked form nor in repr."""
    env.setenv("PURKINJE_PACS__REST__USERNAME", "purkinje")
    env.setenv("PURKINJE_PACS__REST__PASSWORD", "hunter2")
    env.setenv("PURKINJE_LOG", "")
    env.delenv("PURKINJE_LOG")
    env.setenv("PURKINJE_LOG__URL", "kafka://user:hunter2@broker:9092")
    env.setenv("PURKINJE_LOG__OPTIONS", '{"security": {"sasl_plain_password": "hunter2"}, "timeout_s": 5}')
    settings = load_settings()
    shown = masked(settings)
    assert "hunter2" not in json.dumps(shown)
    assert "hunter2" not in repr(settings.pacs)
    assert shown["pacs"]["rest"]["username"] == "purkinje"
    assert shown["log"]["options"]["timeout_s"] == 5
    assert settings.pacs.rest.password is not None
    assert settings.pacs.rest.password.get_secret_value() == "hunter2"


def test_a_wrong_value_is_not_quoted(env: pytest.MonkeyPatch) -> None:
    """The message of a refused value names its place and not the value, which may be a secret."""
    env.setenv("PURKINJE_PACS__REST__READ_TIMEOUT_S", "hunter2")
    with pytest.raises(SettingsInvalid) as refused:
        load_settings()
    assert "hunter2" not in str(refused.value)
    assert "PURKINJE_PACS__REST__READ_TIMEOUT_S" in str(refused.value)


def test_settings_are_frozen(env: pytest.MonkeyPatch) -> None:
    """Nobody changes a setting after the start."""
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.group = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.pacs.rest.url = "http://other"  # type: ignore[misc]


def test_writing_by_dimse_needs_an_archive(env: pytest.MonkeyPatch) -> None:
    """Write-back by C-STORE without an address is refused at start, not at the first report."""
    env.setenv("PURKINJE_PACS__WRITE_BACK", "dimse")
    with pytest.raises(SettingsInvalid, match=r"host, port and called_ae_title"):
        load_settings()


def test_a_variable_of_the_plugin_is_left_alone(env: pytest.MonkeyPatch) -> None:
    """Plugin and processors may share one environment file."""
    env.setenv("PURKINJE_PLUGIN_ANYTHING", "1")
    assert isinstance(load_settings(), Settings)


@pytest.mark.parametrize("value", ["after_nowhere", "store"])
def test_a_failpoint_that_does_not_exist_is_refused(env: pytest.MonkeyPatch, value: str) -> None:
    """A fault test with a misspelt failpoint fails instead of testing nothing."""
    env.setenv("PURKINJE_FAILPOINT", value)
    with pytest.raises(SettingsInvalid, match="failpoint"):
        load_settings()


def test_modalities_are_a_list(env: pytest.MonkeyPatch) -> None:
    """A site may serve some of the modalities; one that does not exist is refused."""
    env.setenv("PURKINJE_MODALITIES", '["ecg"]')
    assert load_settings().modalities == (Modality.ECG,)
    env.setenv("PURKINJE_MODALITIES", '["ct"]')
    with pytest.raises(SettingsInvalid, match="modalities"):
        load_settings()
    env.setenv("PURKINJE_MODALITIES", "ecg")
    with pytest.raises(SettingsInvalid, match="JSON"):
        load_settings()


def test_a_gpu_is_tried_first_and_costs_no_setting(env: pytest.MonkeyPatch) -> None:
    """By default TensorRT stands first, cardiac MR computes in fp32, echo and ECG in fp16 or else in fp32."""
    engine = load_settings().engine
    assert engine.runtimes == ("tensorrt", "openvino", "onnxruntime")
    assert engine.cpu_runtimes == ("openvino", "onnxruntime")
    assert not engine.gpu_expected
    assert {one: engine.gpu.precision.of(one) for one in Modality} == {
        Modality.CMR: ("fp32",),
        Modality.ECHO: ("fp16", "fp32"),
        Modality.ECG: ("fp16", "fp32"),
    }


def test_a_site_that_names_tensorrt_expects_it(env: pytest.MonkeyPatch) -> None:
    """Where the site itself wrote the runtimes, a missing GPU is something to report."""
    env.setenv("PURKINJE_ENGINE__RUNTIMES", '["tensorrt", "onnxruntime"]')
    assert load_settings().engine.gpu_expected
    env.setenv("PURKINJE_ENGINE__RUNTIMES", '["onnxruntime"]')
    assert not load_settings().engine.gpu_expected


@pytest.mark.parametrize("runtimes", ['["tensorrt"]', '["openvino", "tensorrt"]'])
def test_a_runtime_of_the_cpu_stands_behind_tensorrt(env: pytest.MonkeyPatch, runtimes: str) -> None:
    """Whatever happens to the GPU, something verified serves."""
    env.setenv("PURKINJE_ENGINE__RUNTIMES", runtimes)
    with pytest.raises(SettingsInvalid, match="one of the CPU behind it"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PURKINJE_ENGINE__GPU__DEVICES", "0"),
        ("PURKINJE_ENGINE__GPU__DEVICE", "-1"),
        ("PURKINJE_ENGINE__GPU__FLAVOUR", "tensorflow"),
        ("PURKINJE_ENGINE__GPU__PRECISION__ECHO", "int8"),
        ("PURKINJE_ENGINE__GPU__PRECISION__CT", "fp16"),
        ("PURKINJE_ENGINE__GPU__MEMORY_BYTES", "0"),
        ("PURKINJE_ENGINE__GPU__CACHE_BYTES", "0"),
        ("PURKINJE_ENGINE__GPU__BATCH__OPTIMUM", "9"),
    ],
)
def test_a_wrong_setting_of_the_gpu_is_refused(env: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """Unknown keys, unknown words and numbers out of range are refused at every level."""
    env.setenv(variable, value)
    with pytest.raises(SettingsInvalid):
        load_settings()


def test_the_table_of_the_gpu_is_frozen(env: pytest.MonkeyPatch) -> None:
    """Nothing of it changes while the processors run."""
    gpu = load_settings().engine.gpu
    with pytest.raises(ValidationError):
        gpu.device = 1  # type: ignore[misc]
