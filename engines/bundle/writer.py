"""Writes a bundle: all files into a new folder beside the target, then one rename.

Called by the exporter of the training package. A bundle that exists is complete: a crash leaves at most a folder
whose name starts with a dot.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.bundle.card import model_card
from engines.bundle.golden import GoldenCase, golden_bytes
from engines.bundle.manifest import CARD_NAME, MANIFEST_NAME, Manifest, ManifestDraft
from engines.bundle.parts import FileDigest
from engines.predictors.distance import EmbeddingStatistics
from engines.predictors.similarity import SimilarityStatistics


@dataclass(frozen=True, kw_only=True)
class GateFiles:
    """The contents of the files that ``ManifestDraft.gate`` names."""

    graph: bytes
    golden: bytes


@dataclass(frozen=True, kw_only=True)
class CrossModalFiles:
    """The contents of the files that ``ManifestDraft.cross_modal`` names."""

    graph: bytes
    golden: Sequence[GoldenCase]
    statistics: SimilarityStatistics


def write_bundle(  # noqa: PLR0913 - one argument per file
    directory: Path,
    draft: ManifestDraft,
    *,
    onnx_bytes: bytes,
    golden: Sequence[GoldenCase],
    embedding: EmbeddingStatistics,
    gate: GateFiles | None = None,
    cross_modal: CrossModalFiles | None = None,
) -> Path:
    """Write the bundle to ``directory``, replacing what stands there.

    Args:
        directory: the bundle's folder; its parent exists.
        draft: the manifest without digests.
        onnx_bytes: the graph, without external data.
        golden: at least one case.
        embedding: mean and precision of the training embeddings.
        gate: where the manifest has a gate, and only there.
        cross_modal: where the manifest has a cross-modal check, and only there.

    Returns:
        ``directory``.

    Raises:
        ValueError: there is no golden case, or a gate or a cross-modal check in one of manifest and files alone.
    """
    if not golden or (cross_modal is not None and not cross_modal.golden):
        msg = "a bundle needs at least one golden case; none was given"
        raise ValueError(msg)
    files = {
        draft.graph: onnx_bytes,
        draft.golden.file: golden_bytes(golden),
        draft.out_of_distribution.file: embedding.to_bytes(),
        CARD_NAME: model_card(draft).encode(),
        **_gate_files(draft, gate),
        **_cross_modal_files(draft, cross_modal),
    }
    manifest = Manifest.model_validate({**draft.model_dump(mode="json"), "files": _digests(files)})
    text = manifest.model_dump_json(indent=1) + "\n"
    _replace_folder(directory, {**files, MANIFEST_NAME: text.encode()})
    return directory


def _gate_files(draft: ManifestDraft, gate: GateFiles | None) -> dict[str, bytes]:
    if (draft.gate is None) != (gate is None):
        msg = f"the manifest {'lacks' if draft.gate is None else 'has'} a gate; give its files with it, or neither"
        raise ValueError(msg)
    return {} if draft.gate is None or gate is None else {draft.gate.graph: gate.graph, draft.gate.golden: gate.golden}


def _cross_modal_files(draft: ManifestDraft, given: CrossModalFiles | None) -> dict[str, bytes]:
    part = draft.cross_modal
    if (part is None) != (given is None):
        msg = (
            f"the manifest {'lacks' if part is None else 'has'} a cross-modal check; give its files with it, or neither"
        )
        raise ValueError(msg)
    if part is None or given is None:
        return {}
    return {
        part.graph: given.graph,
        part.golden: golden_bytes(given.golden),
        part.statistics: given.statistics.to_bytes(),
    }


def _digests(files: Mapping[str, bytes]) -> dict[str, FileDigest]:
    return {
        name: FileDigest(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in sorted(files.items())
    }


def _replace_folder(directory: Path, files: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        for name, content in files.items():
            _write_durably(fresh / name, content)
        if directory.exists():
            directory.rename(Path(scratch) / "former")
        fresh.rename(directory)
    _sync(directory.parent)


def _write_durably(file: Path, content: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
