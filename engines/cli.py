"""``purkinje-engine``: look at bundles, replay their golden vectors, compare and time the runtimes, compile plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from engines.build.bench import bench
from engines.build.rtx import BatchRange, build_plans
from engines.build.verify import verify
from engines.bundle.card import metric_rows
from engines.bundle.manifest import ManifestDraft
from engines.bundle.reader import Bundle, load_bundle, released_bundles
from engines.errors import EngineError
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import spec_sha256
from engines.runtime.open import RUNTIMES
from engines.runtime.runner import Runner
from engines.selftest import check_preprocessing, check_runner

_REFERENCE = "onnxruntime"

_CAPABILITIES = """\b
sm_75   T4, RTX 20
sm_80   A100, A30
sm_86   A10, A40, RTX 30
sm_89   L4, L40, RTX 40, RTX Ada
sm_120  RTX 50, RTX PRO Blackwell
"""

_bundles = click.argument("bundles", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False))
_runtimes = click.option(
    "--runtime", "names", multiple=True, type=click.Choice(list(RUNTIMES)), help="Only this one; may be repeated."
)


class _Refusing(click.Group):
    """Shows an engine's error as one line and exits 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except EngineError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Refusing)
def main() -> None:
    """Inspect and check engine bundles. Without BUNDLES: those that come with the package."""


@main.command()
@_bundles
def inspect(bundles: tuple[Path, ...]) -> None:
    """Print what a bundle is, what it eats, what it says and how well."""
    for bundle in _loaded(bundles):
        click.echo(_aligned(_facts(bundle)) + "\n")


@main.command()
@_bundles
@_runtimes
def selftest(bundles: tuple[Path, ...], names: tuple[str, ...]) -> None:
    """Replay the golden records with every runtime; exit 1 where a bundle can be served by none."""
    unserved = [bundle.manifest.name for bundle in _loaded(bundles) if not _replayed(bundle, names or tuple(RUNTIMES))]
    if unserved:
        msg = f"no runtime serves {', '.join(unserved)}"
        raise click.ClickException(msg)


@main.command("verify")
@_bundles
@click.option("--count", default=20, show_default=True, type=click.IntRange(min=1), help="Random inputs per bundle.")
@click.option("--seed", default=0, show_default=True, help="Of the inputs.")
def verify_command(bundles: tuple[Path, ...], count: int, seed: int) -> None:
    """Compare the runtimes on random valid inputs; exit 1 where they disagree."""
    rows, disagree = [("bundle", "runtime", "output", "largest", "tolerance", "")], False
    for bundle in _loaded(bundles):
        with _opened(bundle, tuple(RUNTIMES)) as runners:
            for parity in verify(bundle, runners, reference=_REFERENCE, count=count, seed=seed):
                disagree |= not parity.agrees
                numbers = (f"{parity.largest:.3g}", f"{parity.tolerance:.3g}")
                word = "agrees" if parity.agrees else "DISAGREES"
                rows.append((bundle.manifest.name, parity.runtime, parity.output, *numbers, word))
    click.echo(_aligned(rows))
    if disagree:
        msg = f"a runtime disagrees with {_REFERENCE}; `selftest` says which bundles it may serve"
        raise click.ClickException(msg)


@main.command("bench")
@_bundles
@_runtimes
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(min=1), help="Timed runs of each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_command(bundles: tuple[Path, ...], names: tuple[str, ...], repeats: int, as_json: bool) -> None:
    """Time the runtimes in turns, one thread each, every answer checked."""
    timings = []
    for bundle in _loaded(bundles):
        with _opened(bundle, names or tuple(RUNTIMES)) as runners:
            timings += [asdict(timing) for timing in bench(bundle, runners, repeats=repeats)]
    if as_json:
        click.echo(json.dumps(timings, indent=1))
    elif timings:
        click.echo(_aligned([tuple(timings[0]), *(tuple(map(str, timing.values())) for timing in timings)]))


@main.command("build", epilog=_CAPABILITIES)
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rtx", required=True, metavar="SM[,SM...]", help="Compute capabilities, such as sm_86,sm_89.")
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Of the plans.")
@click.option(
    "--batch",
    nargs=3,
    type=click.IntRange(min=1),
    default=(1, 1, 8),
    show_default=True,
    metavar="MIN OPT MAX",
    help="Batch sizes the plan takes; fastest at OPT.",
)
def build_command(bundle: Path, rtx: str, folder: Path, batch: tuple[int, int, int]) -> None:
    """Compile the graph of BUNDLE into TensorRT-RTX plans, ahead of time.

    Needs the extra `rtx`, no GPU and no driver. A plan runs only on the compute capability it was compiled for, with
    the version of TensorRT-RTX that compiled it; the JSON file beside it states both, the batch sizes, the precision
    (FP32, no TF32) and the digests of plan and graph. A plan that stands in the folder is never replaced.
    """
    with _usage_errors():
        sizes = BatchRange(minimum=batch[0], optimum=batch[1], maximum=batch[2])
        plans = build_plans(load_bundle(bundle), rtx.split(","), sizes, folder, click.echo)
    for plan in plans:
        click.echo(plan)


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _loaded(paths: Sequence[Path]) -> Iterator[Bundle]:
    found = tuple(paths) or released_bundles()
    if not found:
        msg = "no bundle comes with this installation; name a folder"
        raise click.ClickException(msg)
    return (load_bundle(path) for path in found)


@contextmanager
def _opened(bundle: Bundle, names: Sequence[str]) -> Iterator[Mapping[str, Runner]]:
    runners: dict[str, Runner] = {}
    try:
        for name in names:
            runners[name] = RUNTIMES[name](bundle)
        yield runners
    finally:
        for runner in runners.values():
            runner.close()


def _replayed(bundle: Bundle, names: Sequence[str]) -> bool:
    prepared = check_preprocessing(bundle)
    click.echo(
        f"{bundle.manifest.name} {bundle.manifest.version}: {len(prepared)} golden records, preprocessing agrees"
    )
    verdicts = [_verdict(bundle, name, prepared) for name in names]
    return any(verdicts)


def _verdict(bundle: Bundle, name: str, prepared: Sequence[Prepared]) -> bool:
    try:
        with _opened(bundle, [name]) as runners:
            agreement = check_runner(bundle, runners[name], prepared)
            version = runners[name].identity.version
    except EngineError as error:
        click.echo(f"  {name} rejected: {error}")
        return False
    differences = ", ".join(f"{output} {value:.2g}" for output, value in agreement.differences.items())
    click.echo(f"  {name} {version} agrees; largest differences: {differences}")
    return True


def _facts(bundle: Bundle) -> list[tuple[str, ...]]:
    manifest = bundle.manifest
    size = sum(digest.bytes for digest in manifest.files.values())
    return [
        ("name", f"{manifest.name} {manifest.version} ({manifest.modality.value})"),
        ("method", manifest.method),
        ("intended use", manifest.intended_use),
        ("training data", manifest.training_data),
        ("made", manifest.created_utc.isoformat()),
        ("bundle", f"{bundle.sha256}, {size / 1e6:.2f} MB, {bundle.path}"),
        ("graph", bundle.weights_sha256),
        ("preprocessing", f"version {manifest.preprocess.preprocess_version}, {spec_sha256(manifest.preprocess)}"),
        *_tensors(manifest),
        *((f"  {name}", text) for name, text in metric_rows(manifest.metrics)),
    ]


def _tensors(manifest: ManifestDraft) -> Iterator[tuple[str, str]]:
    for role, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            sizes = " x ".join("batch" if size == -1 else str(size) for size in tensor.shape)
            yield role, f"{tensor.name} {tensor.dtype} {sizes}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
