"""Starts a real Apache Kafka (KRaft) on loopback ports, for tests and for the demo. Not for a hospital.

The jars come from ``KAFKA_HOME`` or, through Maven and ``pom.xml``, from Maven Central into ``libs/``.
Standard library only: imported by path from the tests, or run as a script that prints one JSON line
(``{"url": ..., "pids": [...]}``) when the cluster answers and stops it on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

HERE = Path(__file__).resolve().parent
LIBS = HERE / "libs"
JAVA_MAJOR = 17  # what Apache Kafka 4 needs
READY_TIMEOUT_S = 60.0
START_ATTEMPTS = 3
_JVM = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dlog4j2.level=WARN")
_PR_SET_PDEATHSIG = 1


class KafkaMissing(Exception):
    """Neither the jars nor a way to get them is here; the message says what to install."""


class KafkaFailed(Exception):
    """A node did not start or did not become ready."""


def find_java() -> str:
    """Path of a Java that runs Kafka 4.

    Raises:
        KafkaMissing: no Java, or one that is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if not java or not Path(java).exists():
        raise KafkaMissing(f"no Java found; Kafka needs {JAVA_MAJOR} or later: apt-get install openjdk-17-jre-headless")
    banner = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', banner)
    if not found or int(found.group(1)) < JAVA_MAJOR:
        raise KafkaMissing(f"{java} is {banner.splitlines()[:1]}; Kafka needs Java {JAVA_MAJOR} or later")
    return java


def find_classpath() -> str:
    """Java class path of Kafka: ``KAFKA_HOME/libs``, else ``libs/`` here, filled through Maven once.

    Raises:
        KafkaMissing: neither can be had.
    """
    home = os.environ.get("KAFKA_HOME")
    if home:
        return _checked(Path(home) / "libs", f"KAFKA_HOME is {home}, but it holds no libs/kafka_*.jar")
    LIBS.mkdir(exist_ok=True)
    with _exclusive(LIBS / ".lock"):
        if not _complete(LIBS):
            _copy_jars()
    return _checked(LIBS, f"{LIBS} holds no kafka_*.jar")


def _complete(folder: Path) -> bool:
    return (folder / ".complete").exists() and any(folder.glob("kafka_*.jar"))


def _checked(folder: Path, otherwise: str) -> str:
    if not any(folder.glob("kafka_*.jar")):
        raise KafkaMissing(f"{otherwise}; unpack a Kafka distribution there or unset KAFKA_HOME")
    return str(folder / "*")


def _copy_jars() -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaMissing("Kafka's jars are not here and Maven is missing: apt-get install maven, or set KAFKA_HOME")
    command = [maven, "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
    done = subprocess.run(
        [*command, f"-DoutputDirectory={LIBS}", "-DincludeScope=runtime"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise KafkaMissing(f"Maven could not fetch Kafka's jars: {(done.stdout + done.stderr)[-800:].strip()}")
    (LIBS / ".complete").touch()


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Two test runs at once must not copy the jars into one folder at once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Node:
    """One broker (and controller) process; owned by a ``Cluster``.

    Args:
        number: ``node.id``, from 1.
        folder: where its configuration, data and log lie.
        ports: loopback ports of the broker and of the controller.
    """

    def __init__(self, number: int, folder: Path, ports: tuple[int, int]) -> None:
        self.number = number
        self.folder = folder
        self.port, self.controller_port = ports
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running node."""
        if self.process is None:
            raise KafkaFailed(f"node {self.number} is not running; call start()")
        return self.process.pid

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def port_was_taken(self) -> bool:
        """True when the node ended because somebody else took its port meanwhile."""
        return self.log_path.exists() and "Address already in use" in self.log_path.read_text(errors="replace")

    @property
    def log_path(self) -> Path:
        """What the node wrote to its standard output and error."""
        return self.folder / "node.log"

    def start(self) -> None:
        """Start the process and return at once; see ``wait_ready``."""
        if self.running:
            return
        command = [find_java(), *_JVM, *_LOGGING, "-cp", find_classpath(), "kafka.Kafka"]
        on_main = threading.current_thread() is threading.main_thread()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.folder / "kafka.cfg")],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_die_with_parent if on_main else None,  # noqa: PLW1509 - one call into libc, before exec
            )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return once the broker accepts connections.

        Raises:
            KafkaFailed: it ended, or does not listen in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.running:
                raise KafkaFailed(f"node {self.number} ended: {self.log_tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.1)
        raise KafkaFailed(f"node {self.number} does not listen after {timeout_s:.0f} s: {self.log_tail()}")

    def stop(self, timeout_s: float = 20.0) -> None:
        """Orderly end (SIGTERM); SIGKILL after the timeout."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """End at once (SIGKILL), as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def log_tail(self, characters: int = 1500) -> str:
        """End of the node's log, for messages."""
        return self.log_path.read_text(errors="replace")[-characters:] if self.log_path.exists() else "(no log)"


class Cluster:
    """One to a few Kafka nodes on loopback, each both broker and controller.

    Args:
        nodes: 1, or 3 for fault tests.
        folder: where to keep everything; None makes a temporary folder that ``close`` removes.
        properties: further ``server.properties``, for every node.
    """

    def __init__(
        self, nodes: int = 1, *, folder: Path | None = None, properties: Mapping[str, str] | None = None
    ) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="purkinje-kafka-"))
        self._count = nodes
        self._properties = dict(properties or {})
        self.nodes: list[Node] = []

    @property
    def bootstrap(self) -> list[str]:
        """``host:port`` of every node."""
        return [f"127.0.0.1:{node.port}" for node in self.nodes]

    @property
    def url(self) -> str:
        """What ``open_log`` takes."""
        return f"kafka://{','.join(self.bootstrap)}"

    def start(self) -> Self:
        """Format, start and wait; new ports are drawn when somebody else took one meanwhile.

        Raises:
            KafkaMissing: no jars or no Java.
            KafkaFailed: it does not start.
        """
        for attempt in range(1, START_ATTEMPTS + 1):
            self._prepare()
            try:
                self._start_nodes()
            except KafkaFailed:
                self._stop_nodes()
                if attempt == START_ATTEMPTS or not any(node.port_was_taken for node in self.nodes):
                    raise
            else:
                return self
        raise AssertionError

    def close(self) -> None:
        """Stop every node; remove a temporary folder."""
        self._stop_nodes()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        ports = free_ports(2 * self._count)
        self.nodes = [
            Node(index + 1, self.folder / f"node{index + 1}", (ports[2 * index], ports[2 * index + 1]))
            for index in range(self._count)
        ]
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        for node in self.nodes:
            self._format(node, cluster_id)

    def _format(self, node: Node, cluster_id: str) -> None:
        shutil.rmtree(node.folder, ignore_errors=True)
        node.folder.mkdir(parents=True)
        config = node.folder / "kafka.cfg"
        config.write_text("".join(f"{key}={value}\n" for key, value in self._settings(node).items()))
        command = [find_java(), *_JVM, *_LOGGING, "-cp", find_classpath(), "kafka.tools.StorageTool"]
        done = subprocess.run(
            # One word: one id in 64 begins with a hyphen and would be taken for an option.
            [*command, "format", f"--cluster-id={cluster_id}", "-c", str(config)],
            capture_output=True, text=True, check=False, cwd=node.folder,
        )  # fmt: skip
        if done.returncode != 0:
            raise KafkaFailed(f"formatting node {node.number} failed: {(done.stdout + done.stderr)[-1500:]}")

    def _settings(self, node: Node) -> dict[str, str]:
        voters = ",".join(f"{other.number}@127.0.0.1:{other.controller_port}" for other in self.nodes)
        replicas = str(min(3, self._count))
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(node.folder / "data"),
            # Topics are made on purpose, with stated partitions and replicas.
            "auto.create.topics.enable": "false",
            "unclean.leader.election.enable": "false",
            "min.insync.replicas": "2" if self._count >= 3 else "1",
            "offsets.topic.replication.factor": replicas,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": "2" if self._count >= 3 else "1",
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "num.network.threads": "2",
            "num.io.threads": "4",
            **self._properties,
        }

    def _start_nodes(self) -> None:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_ready()

    def _stop_nodes(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                node.process.terminate()  # all at once: a quorum that shrinks one by one waits for elections
        for node in self.nodes:
            node.stop()


def free_ports(count: int) -> list[int]:
    """Loopback ports the operating system just called free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _die_with_parent() -> None:
    """Ask Linux to end this child when its parent dies, so that a killed test run leaves no broker."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a cluster until SIGTERM or SIGINT; 3 means that Kafka cannot be had here, and why is on standard error."""
    parser = argparse.ArgumentParser(description="Apache Kafka on loopback, for tests and demos")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="keep data here instead of a temporary folder")
    parser.add_argument("--check", action="store_true", help="only say whether Kafka can be started here")
    options = parser.parse_args(arguments)
    try:
        find_java(), find_classpath()
        return 0 if options.check else _serve(Cluster(options.nodes, folder=options.folder))
    except KafkaMissing as error:
        sys.stderr.write(f"{error}\n")
        return 3


def _serve(cluster: Cluster) -> int:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        cluster.start()
        line = {"url": cluster.url, "pids": [node.pid for node in cluster.nodes]}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        while not ended.wait(1.0) and all(node.running for node in cluster.nodes):
            pass
        return 0 if ended.is_set() else 1
    finally:
        cluster.close()


if __name__ == "__main__":
    sys.exit(main())
