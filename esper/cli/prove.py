"""``esper prove``: one event, or that a log only grew, shown without publishing the run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import RunFailedError, UserError, reading
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper_events.proof import ConsistencyProof, InclusionProof


@click.command(
    short_help="Prove one event without publishing the run.",
    epilog="Example:  esper prove runs/digits 41",
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("number", metavar="[N]", type=click.IntRange(min=0), required=False)
@click.option(
    "--from",
    "checkpoint_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A kept copy of DIR/checkpoint: prove that the log went on from it.",
)
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Where to write it.")
def prove(path: Path, number: int | None, checkpoint_file: Path | None, out: Path | None) -> None:
    """Write a proof from a run (a run directory or an exported file) to a file of its own.

    Of event N, as `esper show --all` numbers them; or, with --from, that a log still begins with
    what an earlier checkpoint counts. `esper-verify` checks it offline, with the fingerprint of
    the trainer's key or the kept checkpoint.
    """
    from esper_events.errors import ProofError

    if (number is None) == (checkpoint_file is None):
        raise click.UsageError("wanted either the number of an event or --from")
    try:
        with reading(path):
            if checkpoint_file is not None:
                _grown(path, checkpoint_file, out)
            elif number is not None:
                _event(path, number, out)
    except ProofError as error:
        raise UserError(f"{path}: {error}") from error


def _event(path: Path, number: int, out: Path | None) -> None:
    from esper_events.codec import decode_event
    from esper_events.events import Record
    from esper_events.prove import prove_event
    from esper_events.words import describe

    proof = prove_event(path, number)
    name = f"{_name(proof)}-{number}.tlog-proof"
    file = _write(proof, out or Path(name))
    checkpoint = proof.signed.checkpoint
    click.echo(printable(f"{file}: event {number} of the {checkpoint.size} of {checkpoint.log}"))
    click.echo(describe(Record(number, decode_event(proof.event))))
    trust = f"--fingerprint {_trusted(proof)}"
    click.echo(printable(f"next: esper-verify {shlex.quote(str(file))} {trust}"))


def _grown(path: Path, checkpoint_file: Path, out: Path | None) -> None:
    from esper_events.checkpoint import load_checkpoint
    from esper_events.errors import CheckpointError
    from esper_events.prove import prove_growth

    try:
        kept = load_checkpoint(checkpoint_file)
    except CheckpointError as error:
        raise click.BadParameter(str(error), param_hint="--from") from error
    proof = prove_growth(path, kept)
    size = proof.signed.checkpoint.size
    name = f"{_name(proof)}-{proof.old}-{size}.consistency-proof"
    file = _write(proof, out or Path(name))
    log = proof.signed.checkpoint.log
    click.echo(printable(f"{file}: {log} went on from {proof.old} events to {size}"))
    trust = f"--checkpoint {shlex.quote(str(checkpoint_file))}"
    click.echo(printable(f"next: esper-verify {shlex.quote(str(file))} {trust}"))


def _trusted(proof: InclusionProof) -> str:
    """The fingerprint that a verifier is most likely to know: the root's, where there is one."""
    from esper_events.keys import PublicKey

    key = proof.key if proof.certificate is None else PublicKey(proof.certificate.root)
    return key.fingerprint


def _name(proof: InclusionProof | ConsistencyProof) -> str:
    return proof.signed.checkpoint.log.replace("/", "-")


def _write(proof: InclusionProof | ConsistencyProof, file: Path) -> Path:
    from esper_events.files import whole_file

    try:
        with whole_file(file) as target:
            target.write(proof.text())
    except FileExistsError as error:
        raise UserError(f"{file} exists already; choose another name (--out)") from error
    except OSError as error:
        raise RunFailedError(f"cannot write {file}: {error.strerror}") from error
    return file
