"""UK Biobank as pairs: both studies of a visit, decoded and prepared as serving does, with what the tables say."""

from __future__ import annotations

import io
import pickle
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.decode.ecg_file import read_ecg_file
from engines.errors import InputRefused
from tests.doubles.ecg_files import cardiosoft, steps
from tests.doubles.hearts import small_mr_scan, small_subject
from training.data.sources.ukbb_ecg import UkbbOptions
from training.ecg_cmr.pair_source import prepared_pair
from training.ecg_cmr.preparation import cmr_volume_small, ecg_of_pairs
from training.ecg_cmr.segmentation_study import UkbbStacks
from training.ecg_cmr.store_build import build_pair_store
from training.ecg_cmr.ukbb_pairs import UkbbPairs, ecg_record_of, ukbb_pairs
from training.phantoms.cmr import rendered
from training.phantoms.dicom import Patient, Study, write_cmr

BOTH, ECG_ALONE, WITHDRAWN = "1000018", "1000027", "1000036"
TABLE = f"""eid,53-2.0,31-0.0,21003-2.0,50-2.0,21002-2.0,24100-2.0,24103-2.0,41270-0.0,41270-0.1,41280-0.0,41280-0.1
{BOTH},2016-05-04,0,61,165,70.5,147.6,59.1,I48,I500,2010-02-02,2019-03-03
{ECG_ALONE},2016-06-01,1,55,175,80,210,33.3,,,,
{WITHDRAWN},2017-01-09,1,70,180,88,150,60,,,,
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three participants: one with both studies, one without images, one who has withdrawn."""
    folder = tmp_path_factory.mktemp("ukbb")
    for seed, eid in enumerate((BOTH, ECG_ALONE, WITHDRAWN)):
        (folder / f"{eid}_20205_2_0.xml").write_bytes(
            cardiosoft({lead: values // 2 for lead, values in steps(seed=seed).items()})
        )
    images = _images(tmp_path_factory.mktemp("dicom"))
    for eid in (BOTH, WITHDRAWN):
        (folder / f"{eid}_20209_2_0.zip").write_bytes(images)
    (folder / "ukb1.csv").write_text(TABLE, encoding="utf-8")
    (folder / "w1_20200820.csv").write_text(f"{WITHDRAWN}\n", encoding="utf-8")
    return folder


def _images(folder: Path) -> bytes:
    """A heart as an archive, one series a slice."""
    scan = small_mr_scan(1, one_series_per_slice=True)
    stack = rendered(small_subject(1), scan, np.random.default_rng(1))
    study = Study(key="ukbb", number=1, patient=Patient(), subject=small_subject(1), description="Heart")
    paths = write_cmr(study, scan, np.asarray(stack.images_SPHW, np.uint16), stack.trigger_times_ms, folder)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in paths:
            file.write(path, path.name)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pairs(root: Path) -> UkbbPairs:
    """Opened."""
    return ukbb_pairs(root, ecg=ecg_of_pairs(), cmr=cmr_volume_small())


def test_only_participants_with_both_studies_are_pairs(pairs: UkbbPairs) -> None:
    """One entry, with what the tables say of the participant and the day; the one who has withdrawn is not there."""
    (entry,) = pairs.entries()
    assert (entry.patient, entry.ecg_on, entry.cmr_on) == (BOTH, date(2016, 5, 4), date(2016, 5, 4))
    assert dict(entry.targets) == {"lvedv": 147.6, "lvef": 59.1}
    assert dict(entry.demographics) == {"age_years": 61, "height_cm": 165, "weight_kg": 70.5, "male": 0.0}
    assert entry.diseases["atrial_fibrillation"]
    assert not entry.diseases["heart_failure"]
    assert entry.diseases["incident_heart_failure"]
    assert BOTH not in repr(pairs)


def test_a_store_holds_what_serving_would_see(pairs: UkbbPairs, root: Path, tmp_path: Path) -> None:
    """Decoded by the decoders of the serving path, in another process too, and prepared by the same code."""
    store = build_pair_store(pickle.loads(pickle.dumps(pairs)), tmp_path)
    ecg = read_ecg_file(root / f"{BOTH}_20205_2_0.xml").record
    expected = prepared_pair(ecg, pairs.load_cmr(f"{BOTH}_2"), ecg_spec=pairs.ecg, cmr_spec=pairs.cmr)
    assert {name: array.shape for name, array in expected.items()} == {
        "ecg": (12, 5000),
        "volumes": (2, 12, 56, 56),
        "slice_mask": (12,),
        "cine": (16, 56, 56),
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(store.read(name)[0], array)


def test_end_diastole_comes_first(pairs: UkbbPairs) -> None:
    """The mid slice of the first volume is the first frame of the cine, and that of the second volume is not."""
    arrays = pairs.read(0)
    mid = (arrays["volumes"].shape[1] - 1) // 2
    np.testing.assert_array_equal(arrays["volumes"][0, mid], arrays["cine"][0])
    assert not np.array_equal(arrays["volumes"][1, mid], arrays["cine"][0])


def test_a_visit_without_pairs_is_refused(root: Path) -> None:
    """The repeat visit is not in the folder; the message says what is."""
    with pytest.raises(ValueError, match="2_0"):
        ukbb_pairs(root, ecg=ecg_of_pairs(), cmr=cmr_volume_small(), options=UkbbOptions(instance=3))


def test_what_is_no_ecg_is_refused() -> None:
    """A refusal, so that the other participants are read all the same."""
    with pytest.raises(InputRefused, match="not recognised"):
        ecg_record_of(b"%PDF-1.4")


@pytest.fixture(scope="module")
def unmeasured(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same participants, and tables that state no quantity of the heart."""
    folder = tmp_path_factory.mktemp("unmeasured")
    for path in root.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "ukb1.csv").write_text(
        TABLE.replace("24100-2.0", "1-2.0").replace("24103-2.0", "2-2.0"), encoding="utf-8"
    )
    return folder


def of(root: Path, **chosen: Any) -> UkbbPairs:
    """Opened with options."""
    return ukbb_pairs(root, ecg=ecg_of_pairs(), cmr=cmr_volume_small(), options=UkbbOptions(**chosen))


def test_tables_without_quantities_are_refused_unless_others_measured(unmeasured: Path) -> None:
    """The message names the command that measures; its table then stands where the tables state nothing."""
    with pytest.raises(ValueError, match="evaluate segmentation --data"):
        of(unmeasured)
    assert dict(of(unmeasured, quantities=False).entries()[0].targets) == {}
    measured = {f"{BOTH}_2": {"lvesv": 60.0}, f"{ECG_ALONE}_2": {"lvesv": 1.0}}
    assert dict(of(unmeasured, quantities=False, measured=measured).entries()[0].targets) == {"lvesv": 60.0}


def test_no_heart_is_measured_half_by_each(root: Path) -> None:
    """What the tables state of a participant is all that is taken of them."""
    (entry,) = of(root, measured={f"{BOTH}_2": {"lvesv": 60.0, "lvef": 1.0}}).entries()
    assert dict(entry.targets) == {"lvedv": 147.6, "lvef": 59.1}


def test_the_stacks_of_pairs_are_measured_under_the_key_of_the_ecg(pairs: UkbbPairs) -> None:
    """So that the table of the measurements finds the participant again; patients have no labels."""
    source = UkbbStacks(pairs=pickle.loads(pickle.dumps(pairs)))
    assert list(source.keys) == [f"{BOTH}_2"]
    assert dict(source.stated(0)) == {"lvedv": 147.6, "lvef": 59.1}
    stack, labels = source.read(0)
    assert labels is None
    np.testing.assert_array_equal(stack.images_SPHW, pairs.load_cmr(f"{BOTH}_2").images_SPHW)
