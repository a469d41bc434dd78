"""``esper verify``: is a run's log whole, and are all runs there that the registry names?"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import click

from esper.cli.failures import GOOD, VERIFICATION_FAILED
from esper.cli.options import key_option, nats_option, registry_of, workspace_option
from esper.cli.recorded import recorded_place
from esper.cli.verify_registry import reach, verify_registry


@click.command(
    short_help="Check every byte of a run's log, or a proof.",
    epilog="Example:  esper verify runs/digits --key trainer.pub",
)
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@key_option
@click.option("--fingerprint", metavar="TEXT", help="That key's fingerprint, in place of the key.")
@click.option(
    "--checkpoint",
    "checkpoint_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A copy of DIR/checkpoint that you kept: was the log cut or rewritten since?",
)
@click.option(
    "--revoked",
    "revoked_files",
    metavar="FILE",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `esper keys revoke` wrote; repeatable.",
)
@click.option(
    "--registry",
    "with_registry",
    is_flag=True,
    help="Ask the server's registry: is the run the one that it has seen? Without PATH: are all "
    "runs there?",
)
@nats_option
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    path: Path | None,
    key_file: Path | None,
    fingerprint: str | None,
    checkpoint_file: Path | None,
    revoked_files: tuple[Path, ...],
    with_registry: bool,
    nats: str | None,
    workspace: Path | None,
    as_json: bool,
) -> int:
    """Check every byte of a run (a run directory or an exported file), or a proof.

    With --registry alone: check a server's registry and its copy of every run there. Exit code 0:
    it is whole. 1: it is not, or there is none, and a line says what and where. 2: bad usage.
    """
    from esper_events.command import check, show

    if not with_registry:
        if path is None:
            raise click.UsageError("name a run or a proof, or ask for --registry")
        if nats is not None or workspace is not None:
            raise click.UsageError("--nats and --workspace say where the --registry is")
        report = check(path, key_file, fingerprint, checkpoint_file, revoked_files)
    elif path is None:
        if key_file or fingerprint or checkpoint_file or revoked_files:
            raise click.UsageError(
                "--key, --fingerprint, --checkpoint and --revoked are for a run: name it"
            )
        return verify_registry(nats, workspace, as_json)
    else:
        trusted = (key_file, fingerprint, checkpoint_file, revoked_files)
        with registry_of(*recorded_place(path, nats, workspace)) as (registry, _):
            registry.refresh()
            report = check(path, *trusted, registry.runs)
        if report.ok:
            notes = (*report.messages, reach(registry))
            report = dataclasses.replace(report, messages=notes)
    with contextlib.suppress(BrokenPipeError):  # the exit code tells the verdict all the same
        show(path, report, as_json)
    return GOOD if report.ok else VERIFICATION_FAILED
