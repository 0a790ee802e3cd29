"""Peak memory and time of decoding and preparing a long cine, against ``pixel_array`` of the whole file.

A clip of 1,000 frames is generated twice, JPEG baseline and uncompressed. Each side runs in a process of its own on the same
file: ours reads it through a spool window, decodes and prepares the clips of the network; the other one is
``pydicom.dcmread(path).pixel_array``. The peak is the high-water mark of resident memory (VmHWM) less what the same
imports take alone; ours is also given with the imports. Both sides must see the same pixels before they count.

    python -m tests.benchmarks.bench_cine_memory --out cine_memory.json
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "tests" / "unit" / "engines" / "test_preprocess_specs.json"
CHECKED = 500
"""Frame of which both sides must see the same pixels, give or take the rounding of colour."""


def main() -> int:
    """Measure and write; 1 when the sides disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--height", type=int, default=300)
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--side", choices=sorted(SIDES), help="run one side on --file and print what it took")
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    if options.side is not None:
        sys.stdout.write(json.dumps(SIDES[options.side](options.file, min(CHECKED, options.frames - 1))) + "\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = [compared(kind, options, Path(folder)) for kind in ("uncompressed", "jpeg")]
    options.out.write_text(
        json.dumps({"name": "Peak memory of a long cine", "rows": rows, "environment": environment()})
    )
    return 0 if all(row["correct"] for row in rows) else 1


def compared(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row: both sides on one file."""
    path = folder / f"{kind}.dcm"
    write_clip(path, kind, (options.frames, options.height, options.width))
    idle = measured("imports", path, options)["peak_bytes"]
    ours, whole = measured("purkinje", path, options), measured("pixel_array", path, options)
    differences = np.abs(np.subtract(ours["sample"], whole["sample"]))
    agree = bool(differences.max() <= 2 and np.max(whole["sample"]) > 0 and ours["clips"] > 0)
    return {
        "file": kind,
        "frames": options.frames,
        "file_mb": path.stat().st_size / 1e6,
        "purkinje_mb": (ours["peak_bytes"] - idle) / 1e6,
        "pixel_array_mb": (whole["peak_bytes"] - idle) / 1e6,
        "ratio": (ours["peak_bytes"] - idle) / (whole["peak_bytes"] - idle),
        "purkinje_with_imports_mb": ours["peak_bytes"] / 1e6,
        "purkinje_s": ours["seconds"],
        "pixel_array_s": whole["seconds"],
        "correct": agree,
    }


def measured(side: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--out", "-", "--side", side, "--file", path, "--frames", str(options.frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_purkinje(path: Path, checked: int) -> dict[str, Any]:
    """Decode and prepare as the decoding process does."""
    modules = import_both()
    before = time.perf_counter()
    with path.open("rb") as file:
        (window,) = modules["windows"](file.fileno(), [(0, path.stat().st_size)])
        (loop,) = modules["decode_echo"]([window])
        prepared = modules["prepare"](loop, modules["EchoSpec"](**json.loads(SPECS.read_text())["echo"]))
        seconds = time.perf_counter() - before
        peak = peak_bytes()
        sample = sampled(next(iter(loop.frames.luma([checked]))))
    clips = len(prepared.arrays["clip"])
    return {"peak_bytes": peak, "seconds": seconds, "sample": sample, "clips": clips}


def run_pixel_array(path: Path, checked: int) -> dict[str, Any]:
    """Decode the whole file with pydicom."""
    modules = import_both()
    before = time.perf_counter()
    pixels = modules["dcmread"](path).pixel_array
    seconds = time.perf_counter() - before
    peak = peak_bytes()
    frame = pixels[checked] if pixels.ndim == 3 else pixels[checked, ..., 0]  # the clip is grey: red is luma
    return {"peak_bytes": peak, "seconds": seconds, "sample": sampled(frame), "clips": 0}


def run_imports(_path: Path, _checked: int) -> dict[str, Any]:
    """Nothing but the imports that both sides share."""
    import_both()
    return {"peak_bytes": peak_bytes()}


def sampled(frame_HW: np.ndarray) -> list[int]:
    """Every 97th pixel of a frame."""
    return [int(value) for value in frame_HW.ravel()[::97]]


def import_both() -> dict[str, Any]:
    """Everything either side imports, so that only the work differs."""
    sys.path.insert(0, str(ROOT))
    import scipy.ndimage
    import scipy.spatial  # noqa: F401 - imported on the way by the preprocessing
    from pydicom import dcmread

    from engines.decode.echo import decode_echo
    from engines.decode.spool import windows
    from engines.preprocess.registry import prepare
    from engines.preprocess.spec import EchoSpec

    return {
        "dcmread": dcmread,
        "decode_echo": decode_echo,
        "windows": windows,
        "prepare": prepare,
        "EchoSpec": EchoSpec,
    }


SIDES = {"purkinje": run_purkinje, "pixel_array": run_pixel_array, "imports": run_imports}


def peak_bytes() -> int:
    """High-water mark of resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def write_clip(path: Path, kind: str, shape_THW: tuple[int, int, int]) -> None:
    """Write a grey clip with a speckled sector that beats."""
    frames, height, width = shape_THW
    clip = Dataset()
    clip.file_meta = FileMetaDataset()
    clip.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if kind == "jpeg" else ExplicitVRLittleEndian
    clip.SOPClassUID = clip.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    clip.SOPInstanceUID = clip.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    clip.StudyInstanceUID, clip.SeriesInstanceUID, clip.Modality = "2.25.2", "2.25.3", "US"
    clip.NumberOfFrames, clip.Rows, clip.Columns, clip.FrameTime = frames, height, width, "33"
    clip.SamplesPerPixel, clip.PhotometricInterpretation, clip.PixelRepresentation = 1, "MONOCHROME2", 0
    clip.BitsAllocated, clip.BitsStored, clip.HighBit = 8, 8, 7
    if kind == "jpeg":
        clip.SamplesPerPixel, clip.PhotometricInterpretation, clip.PlanarConfiguration = 3, "YBR_FULL_422", 0
        clip.PixelData = encapsulate([jpeg(image) for image in images(shape_THW)])
        clip["PixelData"].is_undefined_length = True
    else:
        clip.PixelData = b"".join(image.tobytes() for image in images(shape_THW))
    clip.save_as(path, enforce_file_format=True)


def images(shape_THW: tuple[int, int, int]) -> Any:
    """Frames of the clip, one at a time."""
    frames, height, width = shape_THW
    rows, columns = np.indices((height, width))
    sector = (np.abs(np.arctan2(columns - width / 2, rows)) < 0.65) & (
        np.hypot(columns - width / 2, rows) < 0.95 * height
    )
    speckle = np.random.default_rng(1).integers(20, 200, (height, width))
    for frame in range(frames):
        moved = np.roll(speckle, round(12 * np.sin(frame / 5)), axis=0)
        yield np.where(sector, moved, 0).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    """One frame as JPEG, YCbCr 4:2:2."""
    buffer = io.BytesIO()
    Image.fromarray(image).convert("YCbCr").save(buffer, "JPEG", quality=85, subsampling="4:2:2")
    return buffer.getvalue()


def environment() -> dict[str, str]:
    """Versions that the numbers belong to."""
    packages = {name: version(name) for name in ("numpy", "pydicom", "pillow", "scipy")}
    return {"python": platform.python_version(), "machine": platform.machine(), **packages}


if __name__ == "__main__":
    sys.exit(main())
