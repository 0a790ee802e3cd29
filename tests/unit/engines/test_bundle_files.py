"""A bundle on disk: what was altered, added or taken away is found before anything is parsed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from engines.bundle import reader, writer
from engines.bundle.golden import golden_cases
from engines.bundle.manifest import CARD_NAME, EMBEDDING_NAME, GOLDEN_NAME, GRAPH_NAME, MANIFEST_NAME
from engines.bundle.reader import load_bundle, released_bundle, released_bundles
from engines.bundle.writer import write_bundle
from engines.errors import BundleCorrupt, BundleError
from engines.records import Modality
from tests.doubles.bundles import draft, write_tiny

FILES = (MANIFEST_NAME, GRAPH_NAME, GOLDEN_NAME, EMBEDDING_NAME, CARD_NAME)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny bundle, read only."""
    return write_tiny(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(written, tmp_path / "tiny"))


def test_written_bundle_loads(written: Path) -> None:
    """What the writer wrote, the reader accepts, with the digest of the manifest and of the graph."""
    bundle = load_bundle(written)
    assert sorted(file.name for file in written.iterdir()) == sorted(FILES)
    assert bundle.manifest.name == "tiny-ecg"
    assert len(bundle.sha256) == 64
    assert bundle.weights_sha256 == bundle.manifest.files[GRAPH_NAME].sha256 != bundle.sha256
    assert bundle.graph() == (written / GRAPH_NAME).read_bytes()
    assert len(bundle.golden()) == 2


def test_same_parts_give_the_same_bundle(written: Path, tmp_path: Path) -> None:
    """Writing the same parts again gives the same digest."""
    assert load_bundle(write_tiny(tmp_path / "again")).sha256 == load_bundle(written).sha256


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST_NAME])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_flipped_bit_is_found(bundle: Path, name: str, place: float) -> None:
    """One bit flipped anywhere in any file makes the bundle corrupt."""
    content = bytearray((bundle / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleCorrupt, match=f"{name} was altered"):
        load_bundle(bundle)


def test_altered_manifest_is_another_bundle(bundle: Path, written: Path) -> None:
    """A manifest with another byte either is refused or has another digest; it never passes for the same bundle."""
    original = load_bundle(written).sha256
    content = (bundle / MANIFEST_NAME).read_bytes()
    for place in range(0, len(content), 97):
        spoilt = bytearray(content)
        spoilt[place] ^= 1
        (bundle / MANIFEST_NAME).write_bytes(spoilt)
        try:
            found = load_bundle(bundle).sha256
        except BundleCorrupt:
            continue
        assert found != original


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(bundle: Path, name: str) -> None:
    """A bundle without any one of its files is corrupt."""
    (bundle / name).unlink()
    expected = f"{name} cannot be read" if name == MANIFEST_NAME else rf"missing \['{name}'\]"
    with pytest.raises(BundleCorrupt, match=expected):
        load_bundle(bundle)


def test_extra_file_is_refused(bundle: Path) -> None:
    """A file the manifest does not name makes the bundle corrupt."""
    (bundle / "extra.pkl").write_bytes(b"x")
    with pytest.raises(BundleCorrupt, match=r"not named in the manifest \['extra.pkl'\]"):
        load_bundle(bundle)


def test_truncated_and_grown_files_are_refused(bundle: Path) -> None:
    """A file of another length is corrupt, and a grown one is not read to its end."""
    graph = bundle / GRAPH_NAME
    content = graph.read_bytes()
    for spoilt, message in ((content[:-1], "was altered"), (content + b"x", "larger than")):
        graph.write_bytes(spoilt)
        with pytest.raises(BundleCorrupt, match=message):
            load_bundle(bundle)


def test_links_and_folders_are_refused(bundle: Path) -> None:
    """A symbolic link or a folder inside a bundle is corrupt, even when what it points to has the right digest."""
    graph = bundle / GRAPH_NAME
    elsewhere = bundle.parent / "elsewhere.onnx"
    graph.rename(elsewhere)
    graph.symlink_to(elsewhere)
    with pytest.raises(BundleCorrupt, match="not plain files"):
        load_bundle(bundle)
    graph.unlink()
    graph.mkdir()
    with pytest.raises(BundleCorrupt, match="not plain files"):
        load_bundle(bundle)


def test_path_outside_the_bundle_is_refused(bundle: Path) -> None:
    """A manifest that names a file outside its folder is refused before that file is opened."""
    manifest = json.loads((bundle / MANIFEST_NAME).read_bytes())
    manifest["files"]["../outside"] = manifest["files"][GRAPH_NAME]
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleCorrupt, match="not valid"):
        load_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}'])
def test_unreadable_manifest_is_refused(bundle: Path, text: str) -> None:
    """A manifest that is not the JSON expected is corrupt, with the field named."""
    (bundle / MANIFEST_NAME).write_text(text)
    with pytest.raises(BundleCorrupt, match="is not valid"):
        load_bundle(bundle)


def test_huge_manifest_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest above its limit is refused without being parsed."""
    monkeypatch.setattr(reader, "MANIFEST_BYTES_MAX", 10)
    with pytest.raises(BundleCorrupt, match="larger than the 10 bytes"):
        load_bundle(bundle)


def test_no_folder_is_corrupt(tmp_path: Path) -> None:
    """A path that is not a folder is reported as such."""
    with pytest.raises(BundleCorrupt, match="not a readable bundle folder"):
        load_bundle(tmp_path / "nowhere")


def test_file_altered_after_loading_is_found(bundle: Path) -> None:
    """Bytes are verified again when they are read, so that what is parsed is what was digested."""
    loaded = load_bundle(bundle)
    content = bytearray((bundle / GRAPH_NAME).read_bytes())
    content[-1] ^= 1
    (bundle / GRAPH_NAME).write_bytes(content)
    with pytest.raises(BundleCorrupt, match="was altered"):
        loaded.graph()


def test_digests_are_verified_before_the_graph_is_parsed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an altered graph neither runtime is ever asked to parse it."""
    import onnxruntime

    from engines.runtime.onnx_runner import OnnxRunner

    loaded = load_bundle(bundle)
    (bundle / GRAPH_NAME).write_bytes(b"\x08" * loaded.manifest.files[GRAPH_NAME].bytes)
    parsed: list[object] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *arguments, **_: parsed.append(arguments))
    with pytest.raises(BundleCorrupt, match="was altered"):
        OnnxRunner(loaded)
    assert parsed == []


def test_writing_replaces_the_former_bundle(bundle: Path) -> None:
    """A second version takes the place of the first, and nothing of the first remains in it or beside it."""
    (bundle / "stale.bin").write_bytes(b"x")
    write_tiny(bundle, version="0.2.0")
    assert load_bundle(bundle).manifest.version == "0.2.0"
    assert [entry.name for entry in bundle.parent.iterdir()] == [bundle.name]


def test_crash_while_writing_leaves_the_former_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fails in the middle of writing, the bundle that stood there still loads."""
    before = load_bundle(bundle)
    writes: list[str] = []

    def fail_at_third(descriptor: int) -> None:
        writes.append(str(descriptor))
        if len(writes) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.os, "fsync", fail_at_third)
    with pytest.raises(OSError, match="No space left"):
        write_tiny(bundle, version="0.2.0")
    monkeypatch.setattr(writer.os, "fsync", os.fsync)
    assert load_bundle(bundle).sha256 == before.sha256
    assert [entry.name for entry in bundle.parent.iterdir()] == [bundle.name]


def test_bundle_without_golden_vectors_is_not_written(written: Path, tmp_path: Path) -> None:
    """A bundle that cannot be checked at start is never made."""
    from engines.predictors.distance import EmbeddingStatistics

    loaded = load_bundle(written)
    statistics = EmbeddingStatistics.from_bytes(loaded.read(EMBEDDING_NAME), size=4)
    with pytest.raises(ValueError, match="at least one golden case"):
        write_bundle(tmp_path / "none", draft(Modality.ECG), onnx_bytes=loaded.graph(), golden=[], embedding=statistics)
    assert not (tmp_path / "none").exists()


def test_golden_vectors_in_the_file_are_the_ones_given(written: Path) -> None:
    """The golden file of a bundle holds the prepared arrays and outputs under the manifest's names."""
    case, _ = golden_cases((written / GOLDEN_NAME).read_bytes())
    assert case.prepared.keys() == {"ecg"}
    assert case.outputs.keys() == {"estimates", "disease_logits", "embedding"}


def test_released_bundle_is_found_by_modality(tmp_path: Path) -> None:
    """The released bundle of a modality is the one folder whose manifest states it."""
    write_tiny(tmp_path / "first", Modality.ECG)
    write_tiny(tmp_path / "second", Modality.CMR)
    assert released_bundle(Modality.CMR, tmp_path).name == "second"
    assert [path.name for path in released_bundles(tmp_path)] == ["first", "second"]
    with pytest.raises(BundleError, match="released for echo: none"):
        released_bundle(Modality.ECHO, tmp_path)


def test_two_released_bundles_of_one_modality_are_refused(tmp_path: Path) -> None:
    """Nobody guesses between two bundles of one modality."""
    write_tiny(tmp_path / "first", Modality.ECG)
    write_tiny(tmp_path / "second", Modality.ECG)
    with pytest.raises(BundleError, match="first, second; expected exactly one"):
        released_bundle(Modality.ECG, tmp_path)


def test_a_corrupt_neighbour_does_not_hide_a_bundle(tmp_path: Path) -> None:
    """A folder with an unreadable manifest is passed over when another bundle is looked for."""
    write_tiny(tmp_path / "good", Modality.ECG)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / MANIFEST_NAME).write_text("{")
    assert released_bundle(Modality.ECG, tmp_path).name == "good"
