"""C-STORE throughput of Orthanc with our plugin against Orthanc without it.

Both arms run in one session, interleaved ABBA, with the same files (new UIDs each time), TCP_NODELAY on both ends and
Orthanc's default fsync. Every arm's instances are counted in Orthanc afterwards; a wrong count ends the benchmark.
Writes the median rates, and their median ratio (1 = as fast as without) with its bootstrap 95 % interval. Meant to reach
0.90 at least.

    python -m tests.benchmarks.bench_cstore --out cstore.json --rounds 6 --studies 3 --images 100
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stream_processors.local.orthanc import LocalOrthanc

ROWS = COLUMNS = 256
PHASES = 20
BOOTSTRAPS = 2000
PLUGIN = {"CmrQuietSeconds": 1.0, "PollSeconds": 0.5}


def write_studies(folder: Path, studies: int, images: int) -> int:
    """Write short-axis stacks of 132 kB images under new UIDs; return how many files."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = os.urandom(2 * ROWS * COLUMNS)
    for study in range(studies):
        root = f"2.25.{uuid.uuid4().int >> 32}"
        for number in range(images):
            image = Dataset()
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{root}.1.{number}"
            image.StudyInstanceUID, image.SeriesInstanceUID = root, f"{root}.1"
            image.PatientID, image.PatientName, image.Modality = f"BENCH-{root[-12:]}", "BENCH", "MR"
            image.CardiacNumberOfImages, image.ImagesInAcquisition = PHASES, images
            image.ImagePositionPatient = [0, 0, 8 * (number // PHASES)]
            image.Rows, image.Columns, image.BitsAllocated, image.BitsStored, image.HighBit = ROWS, COLUMNS, 16, 12, 11
            image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
            image.PixelData = pixels
            image.save_as(folder / f"{study}-{number:05d}.dcm", enforce_file_format=True)
    return studies * images


def instances_in(orthanc: LocalOrthanc) -> int:
    """Instances in its database."""
    return int(httpx.get(f"{orthanc.url}/statistics", timeout=30).json()["CountInstances"])


@dataclass(frozen=True)
class Run:
    """Instances per second by the wall clock, and Orthanc's own processor time per instance in milliseconds."""

    rate_per_s: float
    cpu_ms: float


def cpu_s(orthanc: LocalOrthanc) -> float:
    """Processor time that Orthanc has used so far; other programs on the machine disturb it little."""
    fields = Path(f"/proc/{orthanc.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def send(orthanc: LocalOrthanc, folder: Path) -> float:
    """C-STORE a folder in one association; seconds."""
    command = ["storescu", "-aec", "ORTHANC", "+sd", "127.0.0.1", str(orthanc.dicom_port), str(folder)]
    began = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True)
    return time.perf_counter() - began


def run_arm(orthanc: LocalOrthanc, work: Path, studies: int, images: int, *, plugin: bool) -> Run:
    """One run, counted and settled; the processor time includes the announcements."""
    folder = work / "send"
    folder.mkdir()
    expected = instances_in(orthanc) + write_studies(folder, studies, images)
    cpu_before_s = cpu_s(orthanc)
    seconds = send(orthanc, folder)
    shutil.rmtree(folder)
    stored = instances_in(orthanc)
    if stored != expected:
        raise SystemExit(f"{stored} instances stored; expected {expected}: the benchmark is void")
    if plugin:
        wait_settled(orthanc)
    return Run(studies * images / seconds, 1000 * (cpu_s(orthanc) - cpu_before_s) / (studies * images))


def wait_settled(orthanc: LocalOrthanc) -> None:
    """Let the plugin finish, so that its work on one run does not fall into the next."""
    while True:
        status = orthanc.plugin_status()
        last = httpx.get(f"{orthanc.url}/changes?last", timeout=30).json()["Last"]
        if status["walked"] == last and status["backlog"]["pending"] == 0:
            return
        time.sleep(0.1)


def bootstrap_interval(ratios: list[float]) -> tuple[float, float]:
    """95 % interval of the median."""
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(BOOTSTRAPS))
    return medians[int(0.025 * BOOTSTRAPS)], medians[int(0.975 * BOOTSTRAPS)]


def versions(orthanc: LocalOrthanc) -> dict[str, Any]:
    """What was measured."""
    system = httpx.get(f"{orthanc.url}/system", timeout=30).json()
    python = httpx.get(f"{orthanc.url}/plugins/python", timeout=30).json()
    storescu = subprocess.run(["storescu", "--version"], capture_output=True, text=True, check=False).stdout
    return {
        "orthanc": system["Version"],
        "orthanc_python": python["Version"],
        "storescu": storescu.splitlines()[0].strip("$ ") if storescu else "unknown",
        "purkinje": orthanc.plugin_status()["version"],
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
    }


def measure(rounds: int, studies: int, images: int, work: Path) -> dict[str, Any]:
    """ABBA rounds over two Orthancs that run side by side."""
    plugin = {"Log": f"sqlite://{work / 'log.db'}", **PLUGIN}
    with LocalOrthanc(work / "without") as without, LocalOrthanc(work / "with", plugin=plugin) as with_plugin:
        runs: dict[str, list[Run]] = {"without": [], "with": []}
        ratios, load = [], os.getloadavg()[0]
        arms = {"without": without, "with": with_plugin}
        for _ in range(rounds + 1):
            order = ("without", "with", "with", "without")
            row = [run_arm(arms[arm], work, studies, images, plugin=arm == "with") for arm in order]
            runs["without"] += [row[0], row[3]]
            runs["with"] += [row[1], row[2]]
            ratios.append(_both(row[1], row[2]) / _both(row[0], row[3]))
        announced = with_plugin.plugin_status()["announced"]
        if announced != 2 * (rounds + 1) * studies:
            raise SystemExit(f"{announced} studies announced; expected {2 * (rounds + 1) * studies}: void")
        del ratios[0], runs["with"][:2], runs["without"][:2]  # warm-up
        low, high = bootstrap_interval(ratios)
        row = {
            "instances per run": studies * images,
            "without, per s": _median([run.rate_per_s for run in runs["without"]]),
            "with, per s": _median([run.rate_per_s for run in runs["with"]]),
            "ratio": round(statistics.median(ratios), 3),
            "95 % from": round(low, 3),
            "to": round(high, 3),
            "CPU without, ms": _median([run.cpu_ms for run in runs["without"]]),
            "CPU with, ms": _median([run.cpu_ms for run in runs["with"]]),
        }
        environment = {**versions(with_plugin), "load before": round(load, 2)}
        return {"name": "C-STORE with the plugin against without", "rows": [row], "environment": environment}


def _both(first: Run, second: Run) -> float:
    return statistics.harmonic_mean([first.rate_per_s, second.rate_per_s])


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--work", type=Path, help="folder for the two storages (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-cstore-", dir=options.work) as work:
        result = measure(options.rounds, options.studies, options.images, Path(work))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
