"""``purkinje-train phantoms``: make phantom studies. Needs numpy and pydicom, never torch."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def phantoms() -> None:
    """Digital hearts as DICOM studies with known truth."""


@phantoms.command()
@click.option(
    "--method", type=click.Choice(["cmr", "echo", "ecg"]), required=True, help="What to render the hearts as."
)
@click.option("--seed", type=int, required=True, help="Any number; the same seed makes the same bytes.")
@click.option("--n", "count", type=click.IntRange(min=1), required=True, help="How many studies.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the studies and truth.json.",
)
@click.option("--patient-name", default=None, help="Name in every file instead of PHANTOM^PURKINJE.")
@click.option("--patient-id", default=None, help="Patient ID in every file.")
@click.option("--birth-date", default="", help="Birth date in every file, YYYYMMDD.")
@click.option(
    "--turned", is_flag=True, help="Also write each study with its pixels turned by 90, 180 and 270 degrees (cmr)."
)
@click.option(
    "--evenly",
    is_flag=True,
    help="Spread the ejection fractions, and what an ECG shows of them, as the population's are.",
)
def make(  # noqa: PLR0913, PLR0917 - one parameter per option
    method: str,
    seed: int,
    count: int,
    out: Path,
    patient_name: str | None,
    patient_id: str | None,
    birth_date: str,
    *,
    turned: bool,
    evenly: bool,
) -> None:
    """Make studies and truth.json."""
    if turned and method != "cmr":
        msg = f"--turned turns the images of cardiac MR studies; found --method {method}, expected --method cmr"
        raise click.UsageError(msg)
    from training.phantoms.dicom import Patient
    from training.phantoms.make import make_studies

    out.mkdir(parents=True, exist_ok=True)
    patient = None
    if patient_name or patient_id or birth_date:
        patient = Patient(
            name=patient_name or "PHANTOM^PURKINJE", patient_id=patient_id or "PHANTOM", birth_date=birth_date
        )
    with click.progressbar(length=count, label=f"{count} {method} studies") as bar:
        make_studies(
            method,
            seed,
            count,
            out,
            progress=lambda _done, _all: bar.update(1),
            patient=patient,
            turned=turned,
            evenly=evenly,
        )
