"""The suite of every log, against real Apache Kafka."""

from __future__ import annotations

import pytest

from tests.contract.test_log import LogSuite


class TestKafkaLog(LogSuite):
    """The log on Kafka keeps every promise."""

    redelivery_s = 15.0

    @pytest.fixture
    def url(self, kafka_url: str) -> str:
        return kafka_url
