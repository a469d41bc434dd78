"""``esper rerun``: train a logged run again and compare the bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import (
    GOOD,
    VERIFICATION_FAILED,
    NotWholeError,
    RunFailedError,
    UserError,
    reading,
)
from esper.cli.options import key_option

if TYPE_CHECKING:
    from esper.tolaria.rerun import RerunReport


@click.command(
    short_help="Train a run again from its log; are the bits the same?",
    epilog="Example:  esper rerun runs/digits",
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--to", type=int, metavar="N", help="Stop after step N. Default: the run's last.")
@key_option
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on stdout.")
def rerun(path: Path, to: int | None, key_file: Path | None, as_json: bool) -> int:
    """Train the run of PATH again, its logged decisions in the controller's place.

    PATH is a run directory or an exported file. The same bits are reached on the same platform
    and number of threads. Exit code 0: identical. 1: not, or the log is damaged or missing.
    """
    report = _rerun(path, to, key_file, as_json)
    if as_json:
        click.echo(json.dumps(_as_dict(report)))
    else:
        _tell(report)
    return GOOD if report.identical else VERIFICATION_FAILED


def _rerun(path: Path, to: int | None, key_file: Path | None, as_json: bool) -> RerunReport:
    from esper.cli.view import watching
    from esper.tolaria.logged import RerunError, from_records
    from esper_events.command import trusted_key
    from esper_events.reader import LogReader

    trusted = trusted_key(key_file)
    try:
        with reading(path):
            logged = from_records(LogReader(path, trusted).records())
    except RerunError as error:
        raise NotWholeError(path, error) from error
    with watching(to_stderr=as_json) as view:
        from esper.tolaria import trainer
        from esper.tolaria.config import ConfigError
        from esper.tolaria.platform import describe_platform

        for name, value in describe_platform().items():
            there = logged.started.platform.get(name)
            if there not in (None, value) and name != "threads":
                click.echo(f"note: {name} is {value} here, was {there} then", err=True)
        try:
            return trainer.rerun(logged, to=to, directory=Path.cwd(), observer=view)
        except (RerunError, ConfigError) as error:
            raise UserError(str(error)) from error
        except RuntimeError as error:
            raise RunFailedError(f"the re-run of {path} failed: {error}") from error


def _as_dict(report: RerunReport) -> dict[str, object]:
    return {
        "step": report.step,
        "final_weights": report.final_weights,
        "logged_weights": report.logged_weights,
        "identical": report.identical,
        "checked": report.checked,
        "difference": None if report.difference is None else str(report.difference),
    }


def _tell(report: RerunReport) -> None:
    click.echo(f"step {report.step}: weights {report.final_weights}")
    if report.identical:
        click.echo(f"identical: all {report.checked} recorded digests have the same bits")
    else:
        click.echo(f"NOT identical: first difference at {report.difference}")
