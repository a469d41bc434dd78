"""``esper-verify``: the auditor's command."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from esper_events import __version__
from esper_events.anchor import Anchor, Fingerprint
from esper_events.checkpoint import load_checkpoint
from esper_events.errors import EsperEventsError, TrustError, cause
from esper_events.keys import PublicKey
from esper_events.proof import begins_like_proof
from esper_events.registered import read_registry
from esper_events.registry_rules import RegisteredRun
from esper_events.revocation import load_revocation
from esper_events.terminal import printable, silence
from esper_events.verify import Report, verify_path
from esper_events.verify_proof import ProofReport, verify_proof


@click.command(epilog="Example:  esper-verify event.tlog-proof --fingerprint ed25519:3b6a27bc...")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The trainer's public key (OpenSSH format), as you got it from a source you trust.",
)
@click.option("--fingerprint", help="That key's fingerprint, in place of the key.")
@click.option(
    "--checkpoint",
    "checkpoint_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A copy of the run's checkpoint, as you kept it: is the log still the one it is of?",
)
@click.option(
    "--revoked",
    "revoked_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `esper keys revoke` wrote; repeatable.",
)
@click.option(
    "--registry",
    "registry_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A copy of a workspace's registry/SERVER.segments: is the run as it was registered?",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(__version__, prog_name="esper-verify")
def main(
    path: Path,
    key_file: Path | None,
    fingerprint: str | None,
    checkpoint_file: Path | None,
    revoked_files: tuple[Path, ...],
    registry_file: Path | None,
    as_json: bool,
) -> None:
    """Check every byte of a run (a run directory or an exported file) or of a proof.

    Signatures, hash chain, order, signed checkpoint, and the rules that every run obeys. Exit
    code 0: it is whole, and says what is not excluded. 1: it is not; the line says what and where.
    2: bad usage.
    """
    registry = None if registry_file is None else _registry(registry_file)
    report = check(path, key_file, fingerprint, checkpoint_file, revoked_files, registry)
    try:
        show(path, report, as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        click.echo(f"esper-verify: cannot write the verdict: {cause(error)}", err=True)
        sys.exit(3)
    sys.exit(0 if report.ok else 1)


def trusted_key(key_file: Path | None, option: str = "--key") -> PublicKey | None:
    """The key in the file that ``option`` names.

    Raises:
        click.BadParameter: there is none in it.
    """
    try:
        return None if key_file is None else PublicKey.load(key_file)
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _registry(path: Path) -> Mapping[str, RegisteredRun]:
    try:
        return read_registry(path)
    except EsperEventsError as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--registry") from error
    except OSError as error:
        raise click.BadParameter(f"{path}: {cause(error)}", param_hint="--registry") from error


def check(
    path: Path,
    key_file: Path | None,
    fingerprint: str | None,
    checkpoint_file: Path | None,
    revoked_files: Sequence[Path],
    registry: Mapping[str, RegisteredRun] | None = None,
) -> Report | ProofReport:
    """Verify ``path``, a run or a proof, with what the user trusts; a run also against what a
    registry says of it, where there is one.

    Raises:
        click.UsageError: a file of the user's holds no key, no checkpoint or no revocation, the
            fingerprint is none or comes on top of a key, there is nothing that a proof could be
            held to, or a registry for one.
    """
    trusted = _anchor(key_file, fingerprint)
    try:
        kept = None if checkpoint_file is None else load_checkpoint(checkpoint_file)
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint="--checkpoint") from error
    try:
        revoked = [load_revocation(file) for file in revoked_files]
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint="--revoked") from error
    try:
        if _is_proof(path):
            if registry is not None:
                raise TrustError("a proof is of one event; what is held to a registry is a run")
            return verify_proof(path, trusted, kept, revoked)
    except TrustError as error:
        raise click.UsageError(f"{path}: {error}") from error
    return verify_path(path, trusted, kept, registry, revoked)


def _anchor(key_file: Path | None, fingerprint: str | None) -> Anchor | None:
    if fingerprint is None:
        return trusted_key(key_file)
    if key_file is not None:
        raise click.UsageError("--key and --fingerprint: name one of them")
    try:
        return Fingerprint(fingerprint)
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint="--fingerprint") from error


def _is_proof(path: Path) -> bool:
    try:
        return begins_like_proof(path)
    except OSError:
        return False  # What cannot be read is told of by the verification of a run.


def show(path: Path, report: Report | ProofReport, as_json: bool) -> None:
    """Print ``report`` for people, or as one JSON object."""
    if as_json:
        click.echo(json.dumps({"path": str(path), **dataclasses.asdict(report)}))
        return
    verdict = "ok" if report.ok else "FAILED"
    lines = [f"{path}: {verdict}: {report.message}"]
    lines += [f"  {detail}" for detail in report.details]
    lines += [f"  note: {note}" for note in report.messages[1:]]
    for line in lines:
        click.echo(printable(line))
