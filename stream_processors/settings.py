"""Settings of the processors: one frozen tree, read once at start from the environment and an optional file.

``PURKINJE_PACS__REST__URL=http://127.0.0.1:8042`` sets ``pacs.rest.url``; a TOML or JSON file named by ``--settings``
or ``PURKINJE_SETTINGS`` sets the rest. The environment wins over the file. An unknown key is an error in both, and
secrets are masked wherever settings are shown. Nothing else in the package reads the environment.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from engines.bundle.second_graphs import TrustedLabel, ViewAttribute
from engines.records import Modality
from stream_processors.errors import SettingsInvalid
from stream_processors.stages import Stage

ENV_PREFIX = "PURKINJE_"
ENV_FILE = f"{ENV_PREFIX}SETTINGS"
_FOREIGN_PREFIX = f"{ENV_PREFIX}PLUGIN_"
"""Variables of the Orthanc plugin, which may share an environment file with the processors."""

AeTitle = Annotated[str, Field(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")]
"""Application Entity title: 1 to 16 printable characters without backslash (PS3.5 6.2)."""

Port = Annotated[int, Field(ge=0, le=65535)]
"""TCP port; 0 lets the operating system choose, where we listen."""


Precision = Literal["fp32", "fp16", "bf16"]
"""Bits of a plan's layers, but for those that stay in fp32 always."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TopicSettings(_Frozen):
    """Numbers of the topics that the processors make where they are missing; topics that exist stay as they are.

    Partitions bound how many processors can share a modality and cannot be raised later without moving studies between
    them. Use three replicas where there are three brokers. ``create`` off: the site makes them (``deploy/kafka``).
    """

    create: bool = True
    partitions: int = Field(default=12, ge=1, le=1000)
    replication: int = Field(default=1, ge=1, le=9)


class LogSettings(_Frozen):
    """The log announcements come from and outcomes go to; the Orthanc plugin reads the same variable, ``PURKINJE_LOG``.

    ``url`` is ``sqlite:///absolute/path.db`` or ``kafka://host:port[,host:port]``; ``options`` are keyword arguments of
    that log (time limits, retention; for Kafka ``security``, the client's TLS and SASL settings).
    """

    url: str = Field(pattern=r"^(sqlite|kafka)://\S+$")
    options: dict[str, Any] = Field(default_factory=dict, repr=False)
    topics: TopicSettings = TopicSettings()

    @model_validator(mode="before")
    @classmethod
    def _plain_address(cls, given: Any) -> Any:
        return {"url": given} if isinstance(given, str) else given


class RestSettings(_Frozen):
    """Orthanc's REST interface: where studies are read and reports are looked up."""

    url: str = "http://127.0.0.1:8042"
    username: str | None = None
    password: SecretStr | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    read_timeout_s: float = Field(default=60.0, gt=0)
    connections: int = Field(default=4, ge=1, le=16)

    @model_validator(mode="after")
    def _credentials_come_together(self) -> RestSettings:
        if (self.username is None) != (self.password is None):
            msg = "username and password belong together: give both or neither"
            raise ValueError(msg)
        return self


class CommitmentSettings(_Frozen):
    """Storage commitment (PS3.4 J): the archive answers to this address, minutes later and on its own association."""

    listen_host: str
    listen_port: Port
    ledger: Path
    wait_s: float = Field(default=30.0, gt=0)
    reissue_after_s: float = Field(default=86400.0, gt=0)


class DimseSettings(_Frozen):
    """An archive that is written by C-STORE; ``commitment`` asks it to confirm that it keeps what it got."""

    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    called_ae_title: AeTitle
    calling_ae_title: AeTitle = "PURKINJE"
    timeout_s: float = Field(default=30.0, gt=0)
    commitment: CommitmentSettings | None = None


class PacsSettings(_Frozen):
    """Where studies come from and where reports go."""

    rest: RestSettings = RestSettings()
    write_back: Literal["rest", "dimse"] = "rest"
    dimse: DimseSettings | None = None
    largest_study_bytes: int = Field(default=8 * 1024**3, gt=0)

    @model_validator(mode="after")
    def _dimse_is_described(self) -> PacsSettings:
        if self.write_back == "dimse" and self.dimse is None:
            msg = "write_back is 'dimse' but pacs.dimse is missing: give host, port and called_ae_title"
            raise ValueError(msg)
        return self


class BatchSettings(_Frozen):
    """How many studies of a modality are worked on at once, and how they share its engine.

    Each of the ``lanes`` takes messages of its own and has its own child process that decodes; the engine runs what they
    ask for together: up to ``max_batch`` clips or records, and the first waits ``max_wait_ms`` at most. One lane never
    waits.
    """

    lanes: int = Field(default=1, ge=1, le=64)
    max_batch: int = Field(default=16, ge=1, le=256)
    max_wait_ms: float = Field(default=5.0, ge=0, le=60_000)


class LaneSettings(_Frozen):
    """One table per modality, so that an ECG never waits behind a cardiac MR."""

    echo: BatchSettings = BatchSettings()
    cmr: BatchSettings = BatchSettings()
    ecg: BatchSettings = BatchSettings()

    def of(self, modality: Modality) -> BatchSettings:
        """The table of a modality."""
        found: BatchSettings = getattr(self, modality.value)
        return found


class PrecisionSettings(_Frozen):
    """In what a GPU may compute; a plan of fewer bits that fails its parity gate gives way to one in fp32."""

    cmr: Precision = "fp32"
    echo: Precision = "fp16"
    ecg: Precision = "fp16"

    def of(self, modality: Modality) -> tuple[Precision, ...]:
        """What is tried for a modality, in this order."""
        wanted: Precision = getattr(self, modality.value)
        return (wanted,) if wanted == "fp32" else (wanted, "fp32")


class PlanBatchSettings(_Frozen):
    """Rows a plan takes at once: from one to ``maximum``, fastest at ``optimum``."""

    optimum: int = Field(default=1, ge=1, le=1024)
    maximum: int = Field(default=8, ge=1, le=1024)

    @model_validator(mode="after")
    def _in_order(self) -> PlanBatchSettings:
        if self.optimum > self.maximum:
            msg = f"optimum {self.optimum}, maximum {self.maximum}; expected optimum <= maximum"
            raise ValueError(msg)
        return self


class GpuSettings(_Frozen):
    """How engines run as TensorRT plans; without effect where ``runtimes`` does not name TensorRT, or without a GPU.

    A plan is executable code: nobody but the processors may write to the folder ``plans``. It keeps ``cache_bytes`` of
    them at most. One engine takes ``memory_bytes`` of the GPU at most, or is not served from it. ``auto`` takes TensorRT
    where it is installed, else TensorRT-RTX.
    """

    device: int = Field(default=0, ge=0, le=63)
    flavour: Literal["auto", "tensorrt", "tensorrt-rtx"] = "auto"
    precision: PrecisionSettings = PrecisionSettings()
    plans: Path = Path("/var/lib/purkinje/plans")
    cache_bytes: int = Field(default=4 * 1024**3, gt=0)
    memory_bytes: int = Field(default=4 * 1024**3, gt=0)
    batch: PlanBatchSettings = PlanBatchSettings()


class EngineSettings(_Frozen):
    """Which bundles serve and on what; the folders ``<bundles>/<modality>`` take the place of the released ones.

    ``runtimes`` are tried in their order. TensorRT stands first, since what serves where it cannot is a runtime of the
    CPU behind it; it costs nothing on a machine without a GPU. ``trusted_view_labels`` maps an attribute (``ViewName``) to
    patterns of the texts with which this site's scanners state an apical four-chamber view; such clips need not pass the
    view check of an echo engine.
    """

    bundles: Path | None = None
    runtimes: tuple[Literal["tensorrt", "openvino", "onnxruntime"], ...] = ("tensorrt", "openvino", "onnxruntime")
    threads: int = Field(default=1, ge=1, le=64)
    gpu: GpuSettings = GpuSettings()
    batch: LaneSettings = LaneSettings()
    trusted_view_labels: Mapping[ViewAttribute, tuple[str, ...]] = Field(default_factory=dict)

    @field_validator("trusted_view_labels")
    @classmethod
    def _patterns(cls, labels: Mapping[ViewAttribute, tuple[str, ...]]) -> Mapping[ViewAttribute, tuple[str, ...]]:
        for attribute, patterns in labels.items():
            for pattern in patterns:
                TrustedLabel(attribute=attribute, pattern=pattern)
        return labels

    @model_validator(mode="after")
    def _a_cpu_stands_behind(self) -> EngineSettings:
        if "tensorrt" in self.runtimes and (self.runtimes[0] != "tensorrt" or not self.cpu_runtimes):
            msg = f"runtimes are {list(self.runtimes)}; expected tensorrt first, and one of the CPU behind it"
            raise ValueError(msg)
        return self

    @property
    def cpu_runtimes(self) -> tuple[str, ...]:
        """Those that need no GPU."""
        return tuple(name for name in self.runtimes if name != "tensorrt")

    @property
    def gpu_expected(self) -> bool:
        """Whether the site itself asked for TensorRT: then a machine without a GPU is a fallback, and reports say so."""
        return "tensorrt" in self.runtimes and "runtimes" in self.model_fields_set


class DecodeSettings(_Frozen):
    """Limits of the child process that reads DICOM; None keeps the limit of ``engines.decode``."""

    memory_bytes: int | None = Field(default=None, gt=0)
    cpu_s: float | None = Field(default=None, gt=0)
    wall_s: float | None = Field(default=None, gt=0)


class CrossModalSettings(_Frozen):
    """The check of an ECG against the same patient's cardiac MR, and the other way round; only where the ECG bundle can.

    ``window_days`` is the largest distance of their Study Dates; None keeps that of the bundle.
    """

    enabled: bool = True
    window_days: int | None = Field(default=None, ge=0, le=36_525)


class ReportSettings(_Frozen):
    """Form of the reports."""

    sop_class_uid: Literal[
        "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34"
    ] = "1.2.840.10008.5.1.4.1.1.88.33"
    companion: bool = True
    picture: bool = True
    report_refusals: bool = True


class MetricsSettings(_Frozen):
    """Prometheus metrics over HTTP; off without a port. Loopback unless told otherwise."""

    host: str = "127.0.0.1"
    port: Port | None = None


class Settings(BaseSettings):
    """Everything the processors can be told.

    ``log`` is the plain address, or a table with ``url`` and ``options``.
    ``site_url`` names the hospital and is part of every report's UID: it must be the site's own and must never change.
    ``node`` names this installation in the report (device observer).
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    site_url: str = Field(min_length=8, pattern=r"^https?://\S+$")
    node: str = Field(default="purkinje", min_length=1, max_length=64)
    log: Annotated[LogSettings, NoDecode]
    group: str = Field(default="purkinje", pattern=r"^[A-Za-z0-9._-]{1,249}$")
    modalities: tuple[Modality, ...] = tuple(Modality)
    pacs: PacsSettings = PacsSettings()
    engine: EngineSettings = EngineSettings()
    decode: DecodeSettings = DecodeSettings()
    report: ReportSettings = ReportSettings()
    cross_modal: CrossModalSettings = CrossModalSettings()
    metrics: MetricsSettings = MetricsSettings()
    status_file: Path | None = None
    shutdown_s: float = Field(default=20.0, gt=0)
    failpoint: str | None = Field(default=None, pattern=f"^after_({'|'.join(Stage)})$")

    def group_of(self, modality: Modality) -> str:
        """Consumer group of one modality; each has its own, so that a change in one lane never halts the others."""
        return f"{self.group}.{modality.value}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature belongs to pydantic-settings
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then what was read from the file."""
        return env_settings, init_settings


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read, merge and check the settings.

    Args:
        path: TOML or JSON file; ``PURKINJE_SETTINGS`` names one where this is None.
        environ: for the check of unknown names; the process's environment where None.

    Raises:
        SettingsInvalid: names every wrong key with its place, never its value.
    """
    environ = os.environ if environ is None else environ
    _refuse_unknown_variables(environ)
    path = path or (Path(environ[ENV_FILE]) if environ.get(ENV_FILE) else None)
    try:
        return Settings(**(_read_file(path) if path else {}))
    except ValidationError as error:
        raise SettingsInvalid(_explain(error)) from None
    except SettingsError as error:
        msg = f"settings are not usable: {error}; lists and tables are written as JSON in the environment"
        raise SettingsInvalid(msg) from None


def masked(settings: Settings) -> dict[str, Any]:
    """The effective settings as JSON values, secrets as asterisks, credentials cut out of addresses."""
    plain = settings.model_dump(mode="json")
    plain["log"]["url"] = _without_credentials(plain["log"]["url"])
    plain["log"]["options"] = {name: _hidden(value) for name, value in plain["log"]["options"].items()}
    plain["pacs"]["rest"]["url"] = _without_credentials(plain["pacs"]["rest"]["url"])
    return plain


def _hidden(value: Any) -> Any:
    """Tables (``security``) hold passwords next to harmless keys: all their values are hidden."""
    return dict.fromkeys(value, "**********") if isinstance(value, Mapping) else value


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host = rest.rpartition("@")[2]
    return f"{scheme}{separator}{'***@' if host != rest else ''}{host}"


def _refuse_unknown_variables(environ: Iterable[str]) -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | {ENV_FILE}
    ours = (name for name in environ if name.upper().startswith(ENV_PREFIX) and not name.startswith(_FOREIGN_PREFIX))
    unknown = sorted(name for name in ours if name.upper().partition("__")[0] not in known)
    if unknown:
        msg = f"unknown environment variable: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        raise SettingsInvalid(msg)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        msg = f"settings file {path} cannot be read: {error.strerror}"
        raise SettingsInvalid(msg) from None
    except ValueError as error:
        msg = f"settings file {path} is not valid {path.suffix.removeprefix('.').upper() or 'TOML'}: {error}"
        raise SettingsInvalid(msg) from None
    if not isinstance(data, dict):
        msg = f"settings file {path} holds {type(data).__name__}; expected a table of settings"
        raise SettingsInvalid(msg)
    return data


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in problem["loc"])
        variable = ENV_PREFIX + "__".join(str(part) for part in problem["loc"]).upper()
        lines.append(f"{place or 'settings'}: {problem['msg']} (environment: {variable})")
    return "settings are not usable:\n  " + "\n  ".join(lines)
