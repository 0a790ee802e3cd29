"""Fixtures of the integration tests: real Apache Kafka, one node for all tests of a session, three for one of them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LAUNCHER = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "broker.py"


def _launcher() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kafka_broker", LAUNCHER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kafka_launcher() -> ModuleType:
    """The launcher module; skips where Kafka cannot be had, but fails under CI."""
    module = _launcher()
    try:
        module.find_java()
        module.find_classpath()
    except module.KafkaMissing as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI needs Kafka: {error}")
        pytest.skip(str(error))
    return module


@pytest.fixture(scope="session")
def kafka_cluster(kafka_launcher: ModuleType) -> Iterator[Any]:
    """A node that every test shares; no test may stop it."""
    with kafka_launcher.Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka_url(kafka_cluster: Any) -> str:
    """Where the shared node answers."""
    return str(kafka_cluster.url)


@pytest.fixture
def own_kafka(kafka_launcher: ModuleType) -> Iterator[Callable[..., Any]]:
    """Makes clusters that a test may stop and kill."""
    clusters: list[Any] = []

    def start(**arguments: Any) -> Any:
        clusters.append(kafka_launcher.Cluster(**arguments))
        return clusters[-1].start()

    yield start
    for cluster in clusters:
        cluster.close()
