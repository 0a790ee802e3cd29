"""The plugin runs inside Orthanc's own Python: standard library, the Kafka client and itself, nothing else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ALLOWED = {"orthanc", "orthanc_plugin", "kafka", "crc32c", "google_crc32c"}

PROBE = """
import json, sys, types
before = set(sys.modules)
sys.path[:0] = {paths}
sys.modules["orthanc"] = types.ModuleType("orthanc")
import importlib, pkgutil
import orthanc_plugin
for found in pkgutil.walk_packages(orthanc_plugin.__path__, "orthanc_plugin."):
    importlib.import_module(found.name)
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def loaded(paths: list[str]) -> set[str]:
    """Top-level modules that a bare interpreter loads for the whole plugin."""
    command = [sys.executable, "-I", "-S", "-c", PROBE.format(paths=paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def test_only_the_standard_library_and_kafka_are_imported(root: Path) -> None:
    """Every module of the package, imported in a bare interpreter, loads nothing outside the allow-list."""
    kafka = importlib.util.find_spec("kafka")
    assert kafka is not None
    site_packages = str(Path(str(kafka.origin)).parents[1])
    foreign = loaded([str(root), site_packages]) - ALLOWED - set(sys.stdlib_module_names)
    assert foreign == set()


def test_the_embedded_log_needs_no_kafka(root: Path) -> None:
    """Without any installed package, the plugin and the embedded log still import."""
    probe = (
        f"import sys, types; sys.path.insert(0, {str(root)!r}); sys.modules['orthanc'] = types.ModuleType('orthanc');"
        "import orthanc_plugin.plugin, orthanc_plugin.wire.sqlite_log; print('kafka' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-I", "-S", "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
