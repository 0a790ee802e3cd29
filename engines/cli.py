"""``purkinje-engine``: look at bundles, replay their golden vectors, compare and time the runtimes, compile and keep plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from engines.build.bench import bench
from engines.build.cache import PlanCache, PlanEntry, StandingPlan
from engines.build.compile import BatchRange, build_plan, plan_recipe
from engines.build.flavour import load_flavour
from engines.build.gate import COUNT_MIN, Verdict, gate
from engines.build.plan import Plan, Precision, read_plan
from engines.build.precision import PRECISIONS
from engines.bundle.card import metric_rows
from engines.bundle.manifest import ManifestDraft
from engines.bundle.reader import Bundle, load_bundle, released_bundles
from engines.errors import DeviceUnavailable, EngineError
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import spec_sha256
from engines.runtime.cuda import Device, open_cuda
from engines.runtime.open import RUNTIMES
from engines.runtime.runner import Runner
from engines.runtime.tensorrt_runner import TensorRtRunner
from engines.selftest import check_preprocessing, check_runner

_REFERENCE = "onnxruntime"
_PLAN_COLUMNS = ("graph", "runtime", "version", "target", "precision", "batch", "size", "used (UTC)", "name", "verdict")

_CAPABILITIES = """\b
sm_75   T4, RTX 20
sm_80   A100, A30
sm_86   A10, A40, RTX 30
sm_89   L4, L40, RTX 40, RTX Ada
sm_90   H100, H200 (only with --target)
sm_120  RTX 50, RTX PRO Blackwell
"""

_bundles = click.argument("bundles", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False))
_plan_folder = click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
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
@click.option(
    "--plan",
    "plans",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A plan of the one bundle; runs on the GPU it was compiled for. May be repeated.",
)
@_runtimes
@click.option(
    "--count", default=COUNT_MIN, show_default=True, type=click.IntRange(min=COUNT_MIN), help="Random inputs."
)
@click.option("--seed", default=0, show_default=True, help="Of the inputs.")
def verify_command(
    bundles: tuple[Path, ...], plans: tuple[Path, ...], names: tuple[str, ...], count: int, seed: int
) -> None:
    """Compare plans and runtimes with the golden records and with FP32; exit 1 where one disagrees.

    Without `--plan` and `--runtime`: every runtime of the CPU. The verdict on a plan is kept beside it; a plan that
    did not pass is not served until `cache clear` removes it.
    """
    if plans and len(bundles) != 1:
        msg = f"{len(bundles)} bundles with --plan; a plan is of one bundle: name it"
        raise click.UsageError(msg)
    chosen = names or (() if plans else tuple(name for name in RUNTIMES if name != _REFERENCE))
    verdicts = [
        verdict for bundle in _loaded(bundles) for verdict in _verdicts(bundle, plans, chosen, count=count, seed=seed)
    ]
    refused = sum(not verdict.passed for verdict in verdicts)
    if refused:
        msg = f"{refused} of {len(verdicts)} do not agree with FP32 and must not serve"
        raise click.ClickException(msg)


def _verdicts(
    bundle: Bundle, plans: Sequence[Path], names: Sequence[str], *, count: int, seed: int
) -> Iterator[Verdict]:
    with _opened(bundle, [_REFERENCE]) as opened:
        reference = opened[_REFERENCE]
        for path in plans:
            plan = read_plan(path)
            with _on_gpu(bundle, plan) as (runner, device):
                verdict = gate(bundle, runner, reference, count=count, seed=seed, device=device)
            PlanCache(path.parent, log=click.echo).record(plan, verdict)
            yield _shown(verdict, path.name)
        for name in names:
            with _opened(bundle, [name]) as runners:
                yield _shown(gate(bundle, runners[name], reference, count=count, seed=seed), name)


@contextmanager
def _on_gpu(bundle: Bundle, plan: Plan) -> Iterator[tuple[Runner, Device]]:
    """Open a plan on the first GPU it was compiled for."""
    cuda = open_cuda()
    fitting = [device for device in cuda.devices() if device.capability == plan.recipe.target]
    if not fitting:
        msg = f"no GPU of this machine is {plan.recipe.target}: {cuda.absence() or 'others are there'}"
        raise DeviceUnavailable(msg)
    trt = load_flavour(plan.recipe.runtime).module
    runner = TensorRtRunner(bundle.manifest, plan, trt, cuda, fitting[0].index)
    try:
        yield runner, fitting[0]
    finally:
        runner.close()


def _shown(verdict: Verdict, name: str) -> Verdict:
    against = f"{verdict.golden_records} golden records and {verdict.inputs} inputs"
    click.echo(f"{verdict.bundle}, {name} ({verdict.precision} on {verdict.device}): {against}")
    rows = [
        (
            one.against,
            one.output,
            one.measure,
            f"{one.value:.3g}",
            f"{one.limit:g}",
            "agrees" if one.holds else "DISAGREES",
        )
        for one in verdict.differences
    ]
    click.echo(_aligned([("against", "output", "measure", "value", "limit", ""), *rows]))
    for reason in verdict.reasons:
        click.echo(f"  {reason}")
    return verdict


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
@click.option("--target", metavar="SM", help="TensorRT: compute capability of this machine's GPU, such as sm_90.")
@click.option("--rtx", metavar="SM[,SM...]", help="TensorRT-RTX: compute capabilities, such as sm_86,sm_89.")
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Of the plans.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Of products and convolutions, and of what lies between them.",
)
@click.option(
    "--batch",
    nargs=3,
    type=click.IntRange(min=1),
    default=(1, 1, 8),
    show_default=True,
    metavar="MIN OPT MAX",
    help="Batch sizes the plan takes; fastest at OPT.",
)
def build_command(  # noqa: PLR0913, PLR0917 - one parameter per option
    bundle: Path, target: str | None, rtx: str | None, folder: Path, precision: Precision, batch: tuple[int, int, int]
) -> None:
    """Compile the graph of BUNDLE into plans.

    With --target for the GPU of this machine (extra `tensorrt`), or with --rtx ahead of time (extra `rtx`, no GPU and no
    driver needed). A plan runs only on the compute capability it was compiled for, with the version that compiled it;
    the JSON file beside it states both, the batch sizes, the precision and the digests of plan and graph, the .log file
    what the compiler said. A whole plan that stands in the folder is kept.
    """
    if (target is None) == (rtx is None):
        msg = "expected one of --target and --rtx"
        raise click.UsageError(msg)
    opened, flavour = load_bundle(bundle), load_flavour("tensorrt" if rtx is None else "tensorrt-rtx")
    with _usage_errors():
        sizes = BatchRange(minimum=batch[0], optimum=batch[1], maximum=batch[2])
        targets = dict.fromkeys((target or rtx or "").split(","))
        recipes = [plan_recipe(flavour, opened, name, precision, sizes) for name in targets]
    cache = PlanCache(folder, log=click.echo)
    plans = [build_plan(cache, folder, flavour, opened, recipe, progress=click.echo) for recipe in recipes]
    for plan in plans:
        click.echo(_built(plan))
    for plan in plans:
        click.echo(plan.path)


def _built(standing: StandingPlan) -> str:
    recipe, size = standing.plan.recipe, len(standing.plan.content) / 1e6
    if not standing.built:
        return f"{recipe.target}: {standing.path.name} stands there already"
    return f"{recipe.target}: {size:.2f} MB, {recipe.precision}, batch {recipe.batch_minimum} to {recipe.batch_maximum}"


@main.group()
def cache() -> None:
    """List and clear the compiled plans of a folder."""


@cache.command("list")
@_plan_folder
def cache_list(folder: Path) -> None:
    """Print the plans of FOLDER, the least recently used first; every digest is verified."""
    entries = PlanCache(folder).entries()
    if not entries:
        click.echo(f"no plans in {folder}")
        return
    click.echo(_aligned([_PLAN_COLUMNS, *map(_plan_row, entries)]))


@cache.command("clear")
@_plan_folder
@click.argument("name", required=False)
@click.option("--older-than", "days", type=click.FloatRange(min=0), metavar="DAYS", help="Not used for so long.")
def cache_clear(folder: Path, name: str | None, days: float | None) -> None:
    """Remove the plans of FOLDER with their verdicts: all of them, or NAME alone, or those not used for some days.

    A plan that failed its parity gate is refused until it is cleared. A plan that is being built stays.
    """
    with _usage_errors():
        removed = PlanCache(folder, log=click.echo).clear(name=name, older_than_days=days)
    for stem in removed:
        click.echo(f"removed {stem}")
    if not removed:
        click.echo("nothing was removed")


def _plan_row(entry: PlanEntry) -> tuple[str, ...]:
    recipe = entry.recipe
    stated = ("?",) * 6
    if recipe is not None:
        batch = f"{recipe.batch_minimum}-{recipe.batch_optimum}-{recipe.batch_maximum}"
        stated = (recipe.graph_sha256[:16], recipe.runtime, recipe.version, recipe.target, recipe.precision, batch)
    used = entry.last_used.strftime("%Y-%m-%d %H:%M")
    return (*stated, f"{entry.bytes_count / 1e6:.2f} MB", used, entry.name, entry.verdict)


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
