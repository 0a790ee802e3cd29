"""How often ``make verify METHOD=ecg`` misses a bar by the luck of its seed: many seeds through the engine, without a PACS.

For each seed the hearts of a verification, evenly spread, and as many of a plain sample. Decoder and PACS change no number of
an ECG, so the record goes to the preparation at once; what counts as missed is the verification's own.

    python -m tests.benchmarks.seed_scatter --seeds 40 --first 900
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from engines.bundle.reader import released_bundle
from engines.errors import Refusal
from engines.predictors.base import Predictor, load_predictor
from engines.preprocess.registry import prepare
from engines.records import Modality
from stream_processors.local.bars import Verdict, accuracy_of, missed_bars
from training.phantoms.draws import Draw, even_draws, plain_draws
from training.phantoms.ecg import ecg_record
from training.phantoms.subjects import draw_subject

METHOD = "ecg"
STUDIES = 200
Judged = list[dict[str, Any]]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first", type=int, default=900)
    options = parser.parse_args()
    predictor = load_predictor(released_bundle(Modality(METHOD)))
    samples = {"evenly spread": even_draws, "plain": plain_draws}
    found: dict[str, list[Judged]] = {name: [] for name in samples}
    for seed in track(range(options.first, options.first + options.seeds), console=Console(stderr=True)):
        for name, draws in samples.items():
            found[name].append([judged(predictor, draw) for draw in draws(METHOD, seed, STUDIES)])
    predictor.close()
    Console(width=160).print(table(found))
    return 0


def judged(predictor: Predictor, draw: Draw) -> dict[str, Any]:
    """What a verification knows of one study."""
    rng = draw.generator()
    heart = draw_subject(rng)
    truth = {"lvef_percent": heart.lvef_percent}
    refused = {"verdict": Verdict.REFUSED, "measurements": [], "truth": truth}
    try:
        said = predictor.predict([prepare(ecg_record(heart, rng), predictor.spec)])
    except Refusal:
        return refused
    if said.abstention is not None:
        return refused
    lvef = next(each for each in said.estimates if each.quantity == "lvef")
    low, high = lvef.interval.low, lvef.interval.high
    return {
        "verdict": Verdict.RIGHT if low <= heart.lvef_percent <= high else Verdict.WRONG,
        "measurements": [{"quantity": "lvef", "value": lvef.value, "interval": {"low": low, "high": high}}],
        "truth": truth,
    }


def table(found: dict[str, list[Judged]]) -> Table:
    """One row a kind of sample: mean, SD and range over seeds, and the seeds that miss a bar."""
    shown = Table(title=f"{METHOD}: {STUDIES} studies a seed")
    for column in ("sample", "seeds", "R2 of LVEF", "right of the answered", "refused", "miss R2", "miss another bar"):
        shown.add_column(column)
    for name, seeds in found.items():
        missed = [missed_bars(METHOD, each) for each in seeds]
        r2 = [any(line.startswith("R2") for line in lines) for lines in missed]
        other = [any(not line.startswith("R2") for line in lines) for lines in missed]
        shown.add_row(
            name,
            str(len(seeds)),
            spread([r_squared(each) for each in seeds]),
            spread([share(each, Verdict.RIGHT) / (1 - share(each, Verdict.REFUSED)) for each in seeds]),
            spread([share(each, Verdict.REFUSED) for each in seeds]),
            str(sum(r2)),
            str(sum(other)),
        )
    return shown


def r_squared(studies: Judged) -> float:
    """Of the answered."""
    accuracy = accuracy_of(studies)
    assert accuracy is not None
    assert accuracy.r_squared is not None
    return accuracy.r_squared


def share(studies: Judged, verdict: Verdict) -> float:
    """Part of all studies."""
    return sum(each["verdict"] is verdict for each in studies) / len(studies)


def spread(values: Sequence[float]) -> str:
    """Mean, standard deviation and range."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    sys.exit(main())
