"""Opens a bundle: every digest is verified before anything but the manifest is parsed.

Called by ``predictors.base``, ``selftest`` and ``cli``. Files are handed out as verified bytes, never as paths, so that
what is parsed is what was digested.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from engines.bundle.golden import GoldenCase, golden_cases
from engines.bundle.manifest import MANIFEST_NAME, Manifest
from engines.bundle.parts import FileDigest
from engines.errors import BundleCorrupt, BundleError
from engines.records import Modality

MANIFEST_BYTES_MAX = 4_000_000
FILE_BYTES_MAX = 2_000_000_000
RELEASED = Path(__file__).parent.parent / "bundles"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle.

    Args:
        path: its folder.
        manifest: parsed and consistent.
        sha256: digest of the manifest's bytes, which hold the digest of every other file.
    """

    path: Path
    manifest: Manifest
    sha256: str

    @property
    def weights_sha256(self) -> str:
        """Digest of the ONNX graph."""
        return self.manifest.files[self.manifest.graph].sha256

    def read(self, name: str) -> bytes:
        """Return the bytes of one file of the manifest, verified now.

        Raises:
            BundleCorrupt: the file is missing or altered.
        """
        return _verified_bytes(self.path / name, self.manifest.files[name])

    def graph(self) -> bytes:
        """Return the ONNX graph, verified now."""
        return self.read(self.manifest.graph)

    def golden(self) -> tuple[GoldenCase, ...]:
        """Return the golden vectors, verified now."""
        return golden_cases(self.read(self.manifest.golden.file))


def load_bundle(path: Path) -> Bundle:
    """Open a bundle and verify the digest of every file.

    Args:
        path: the bundle's folder.

    Raises:
        BundleCorrupt: a file is missing, altered or not named in the manifest; the manifest is not valid; something in
            the folder is not a plain file.
    """
    names = _plain_files(path)
    manifest_bytes = _bounded_bytes(path / MANIFEST_NAME, MANIFEST_BYTES_MAX)
    manifest = _parsed(manifest_bytes, path)
    _require_same_names(path, names, {*manifest.files, MANIFEST_NAME})
    for name, digest in manifest.files.items():
        _verified_bytes(path / name, digest)
    return Bundle(path=path, manifest=manifest, sha256=hashlib.sha256(manifest_bytes).hexdigest())


def released_bundles(root: Path = RELEASED) -> tuple[Path, ...]:
    """Return the folders of the bundles that come with the package, sorted by name."""
    return tuple(sorted(folder.parent for folder in root.glob(f"*/{MANIFEST_NAME}")))


def released_bundle(modality: Modality, root: Path = RELEASED) -> Path:
    """Return the folder of the one released bundle of a modality.

    Raises:
        BundleError: there is none, or more than one.
    """
    found = [folder for folder in released_bundles(root) if _stated_modality(folder) == modality.value]
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        msg = f"bundles released for {modality.value}: {names}; expected exactly one below {root}"
        raise BundleError(msg)
    return found[0]


def _stated_modality(folder: Path) -> object:
    try:
        stated = json.loads(_bounded_bytes(folder / MANIFEST_NAME, MANIFEST_BYTES_MAX))
    except ValueError:
        return None
    return stated.get("modality") if isinstance(stated, dict) else None


def _plain_files(path: Path) -> set[str]:
    try:
        entries = list(path.iterdir())
    except OSError as error:
        msg = f"{path} is not a readable bundle folder ({error.strerror}); check the path"
        raise BundleCorrupt(msg) from error
    strange = sorted(entry.name for entry in entries if entry.is_symlink() or not entry.is_file())
    if strange:
        msg = f"bundle {path.name} holds {', '.join(strange)}, which are not plain files; restore the release"
        raise BundleCorrupt(msg)
    return {entry.name for entry in entries}


def _parsed(manifest_bytes: bytes, path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(manifest_bytes)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        msg = f"{path.name}/{MANIFEST_NAME} is not valid: {field}: {first['msg']} ({error.error_count()} faults in all)"
        raise BundleCorrupt(msg) from error


def _require_same_names(path: Path, found: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        msg = f"bundle {path.name}: missing {missing}, not named in the manifest {extra}; restore the release"
        raise BundleCorrupt(msg)


def _verified_bytes(file: Path, digest: FileDigest) -> bytes:
    content = _bounded_bytes(file, min(digest.bytes, FILE_BYTES_MAX))
    found = hashlib.sha256(content).hexdigest()
    if len(content) != digest.bytes or found != digest.sha256:
        msg = (
            f"{file.parent.name}/{file.name} was altered: {len(content)} bytes with SHA-256 {found}; "
            f"expected {digest.bytes} bytes with {digest.sha256}; restore the release"
        )
        raise BundleCorrupt(msg)
    return content


def _bounded_bytes(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        msg = f"{file.parent.name}/{file.name} cannot be read ({error.strerror}); restore the release"
        raise BundleCorrupt(msg) from error
    if len(content) > limit:
        msg = f"{file.parent.name}/{file.name} is larger than the {limit} bytes expected; restore the release"
        raise BundleCorrupt(msg)
    return content
