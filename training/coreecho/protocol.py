"""The comparison: every method on the same videos with several seeds; one outcome file each, so that a run resumes.

Phantoms: another set of hearts for each seed, and a second test set from scanners that no training video came from. EchoNet-
Dynamic: its own split for every seed.

Source: CoReEcho (Maani et al., MICCAI 2024), section of experiments: three fixed clips a test video, answers averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from training.checkpoint import BEST_NAME
from training.config import load_recipe
from training.coreecho.answers import answers_of
from training.coreecho.config import AnyEchoRun, CoReEchoRun, EchoRun, R2Plus1dShape, training_digest
from training.coreecho.curves import read_points
from training.coreecho.measurements import Outcome
from training.coreecho.networks import EchoNetwork, build_network
from training.coreecho.outcome import made_from_of, read_outcome, write_outcome
from training.coreecho.stages import train_echo
from training.coreecho.video_sets import Parts
from training.coreecho.videos import Videos

Progress = Callable[[str], None]
_ALL = "_all_clips"


@dataclass(frozen=True, kw_only=True)
class SeedVideos:
    """The videos of one seed; ``tests`` holds "in_domain" and, on phantoms, "out_of_domain"."""

    train: Videos
    validation: Videos
    tests: Mapping[str, Videos]

    @classmethod
    def of(cls, parts: Parts) -> SeedVideos:
        """Return the parts of a data set by their role."""
        other = {} if parts.other_scanner is None else {"out_of_domain": parts.other_scanner}
        return cls(train=parts.train, validation=parts.validation, tests={"in_domain": parts.test, **other})


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is compared on what.

    Args:
        runs: the method first, then what it is compared with.
        seeds: each brings its own weights, and on phantoms its own hearts.
        videos: of a seed.
        all_clips: whether every clip of a test video is asked about too.
        device: of training, such as ``cuda``.
    """

    runs: tuple[AnyEchoRun, ...]
    seeds: tuple[int, ...]
    videos: Callable[[int], SeedVideos]
    all_clips: bool
    device: str


def compare(protocol: Protocol, out: Path, progress: Progress) -> list[Outcome]:
    """Run what is missing and return everything, seed by seed."""
    outcomes = []
    for seed in protocol.seeds:
        videos = protocol.videos(seed)
        counts = [len(part.keys) for part in (videos.train, videos.validation, *videos.tests.values())]
        progress(f"seed {seed}: {' / '.join(map(str, counts))} videos")
        outcomes += [_once(protocol, run, seed, videos, out, progress) for run in protocol.runs]
    return outcomes


def name_of(run: AnyEchoRun) -> str:
    """Return the name of a run's method in the table."""
    if isinstance(run, CoReEchoRun):
        return "CoReEcho"
    encoder = "R(2+1)D" if isinstance(run.encoder, R2Plus1dShape) else "same encoder"
    return f"{run.fit.loss.upper()} end to end, {encoder}"


def echo_run(name: str) -> AnyEchoRun:
    """Return the run of a recipe on clips.

    Raises:
        ValueError: no such recipe, or a recipe of another kind.
    """
    run = load_recipe(name)
    if not isinstance(run, EchoRun):
        msg = f"{name} is no recipe on clips; take one such as coreecho_small or echocotr_small"
        raise ValueError(msg)  # noqa: TRY004 - a wrong name, not a wrong type
    return run


def settings_of(run: AnyEchoRun) -> str:
    """Return what decides a run, in one line of the page."""
    clip = f"{run.clips.frames} frames of {run.preprocess.size_px} px"
    if isinstance(run, CoReEchoRun):
        first, second = run.stage1, run.stage2
        stages = (
            f"{first.epochs} epochs of Rank-N-Contrast (temperature {first.temperature:g}, {2 * first.batch_videos} clips of "
            f"{first.batch_videos} videos a batch, AdamW {first.schedule.learning_rate:g}), {second.epochs} of the regressor alone"
        )
    else:
        fit = run.fit
        stages = (
            f"{fit.epochs} epochs of {fit.loss.upper()} ({fit.views * fit.batch_videos} clips of {fit.batch_videos} videos a "
            f"batch, {fit.optimiser} {fit.schedule.learning_rate:g})"
        )
    return f"{name_of(run)} ({run.recipe}): {clip}, {stages}"


def seeded(run: AnyEchoRun, seed: int) -> AnyEchoRun:
    """Return the run with weights, order, clips and dropout of its own."""
    return replace(run, seed=run.seed + 100 * seed)


def seed_folder(run: AnyEchoRun, seed: int, videos: SeedVideos, out: Path) -> Path:
    """Return where a run of a seed lives; another config of the recipe or other videos have another folder."""
    digest = training_digest(run, videos.train.sha256, videos.validation.sha256)
    return out / f"seed-{seed}-{run.recipe}-{digest[:8]}"


def trained_network(run: AnyEchoRun, folder: Path) -> EchoNetwork:
    """Return the network of a finished run, in evaluation mode.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    last = "stage2" if isinstance(run, CoReEchoRun) else "fit"
    epochs = run.stage2.epochs if isinstance(run, CoReEchoRun) else run.fit.epochs
    file, done = folder / last / BEST_NAME, len(read_points(folder / last))
    if not file.exists() or done < epochs:
        raise FileNotFoundError(f"{folder} holds {done} of {epochs} epochs of {last}; train the run to its end first")
    network = build_network(run)
    network.load_state_dict(load_file(file))
    return network.eval()


def _once(  # noqa: PLR0913, PLR0917 - what, with which seed, on what, and where it goes
    protocol: Protocol, run: AnyEchoRun, seed: int, videos: SeedVideos, out: Path, progress: Progress
) -> Outcome:
    """Read the outcome of these very videos and settings, or make it; what lies there of others is made again."""
    file = out / f"seed-{seed}-{run.recipe}.npz"
    parts = (videos.train, videos.validation, *videos.tests.values())
    digest = training_digest(seeded(run, seed), *(part.sha256 for part in parts), f"{seed} {protocol.all_clips}")
    if not file.exists() or made_from_of(file) != digest:
        write_outcome(file, _made(protocol, run, seed, videos, seed_folder(run, seed, videos, out), progress), digest)
    return read_outcome(file)


def _made(  # noqa: PLR0913, PLR0917 - as above
    protocol: Protocol, run: AnyEchoRun, seed: int, videos: SeedVideos, folder: Path, progress: Progress
) -> Outcome:
    own, name = seeded(run, seed), name_of(run)
    trained = train_echo(
        own,
        videos.train,
        videos.validation,
        folder,
        device=protocol.device,
        progress=lambda text: progress(f"seed {seed} {name}: {text}"),
    )
    network = trained.network.to(protocol.device)
    domains = {domain: answers_of(network, part, own, device=protocol.device) for domain, part in videos.tests.items()}
    if protocol.all_clips:
        domains |= {
            domain + _ALL: answers_of(network, part, own, clips="all", device=protocol.device)
            for domain, part in videos.tests.items()
        }
    return Outcome(model=name, seed=seed, domains=domains, seconds=trained.seconds)
