"""Where the brokers are and how to prove who we are: addresses and security settings, no Kafka in it.

Used by ``kafka_log``.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from orthanc_plugin.wire.log import LogUnavailable

SECURITY_KEYS = (
    "security_protocol", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password", "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_crlfile",
    "ssl_ciphers", "ssl_check_hostname",
)  # fmt: skip


class _Secret(str):
    """A password that does not show when a mapping with it is written to a log (kafka-python does so)."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``; raises ValueError."""
    host, _, port = text.strip().rpartition(":")
    if not host or not port.isdecimal():
        msg = f"Kafka address is {text!r}; expected host:port"
        raise ValueError(msg)
    return host.strip("[]"), int(port)


def names(addresses: Sequence[tuple[str, int]]) -> str:
    """Addresses as a text for messages."""
    return ", ".join(f"{host}:{port}" for host, port in addresses)


def checked_security(given: Mapping[str, Any]) -> dict[str, Any]:
    """Security settings that kafka-python knows, passwords masked; raises ValueError with names, never with values."""
    unknown = sorted(set(given) - set(SECURITY_KEYS))
    if unknown:
        msg = f"unknown Kafka security settings {', '.join(unknown)}; known: {', '.join(SECURITY_KEYS)}"  # names only
        raise ValueError(msg)
    return {key: _Secret(value) if key.endswith("password") and value else value for key, value in given.items()}


def reach(addresses: Sequence[tuple[str, int]], timeout_s: float) -> None:
    """Fail fast and clearly when no broker listens; raises LogUnavailable."""
    reasons = []
    for each in addresses:
        try:
            socket.create_connection(each, timeout=timeout_s).close()
        except OSError as error:
            reasons.append(str(error))
        else:
            return
    msg = f"no Kafka broker of {names(addresses)} listens: {'; '.join(reasons)}"
    raise LogUnavailable(msg)
