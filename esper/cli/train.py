"""``esper train``: train a model that grows, on the record."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import NotWholeError, RunFailedError, UserError, say

if TYPE_CHECKING:
    from esper.tolaria.config import Config
    from esper.tolaria.observer import Grown


@click.command(
    short_help="Train a model and let it grow.",
    epilog="Example:  esper train examples/digits.toml --run-dir runs/digits",
)
@click.argument(
    "config_file", metavar="[CONFIG.toml]", type=click.Path(path_type=Path), required=False
)
@click.option(
    "--run-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the run is kept; must not hold one yet. Default: runs/NAME-TIME.",
)
@click.option("--nats", metavar="URL", help="A NATS server of your own. Default: a private one.")
@click.option(
    "--resume",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Go on with a run that was killed, in place of CONFIG.toml.",
)
@click.option("--seed", type=int, metavar="N", help="Use this seed in place of the config's.")
@click.option("--no-controls", is_flag=True, help="Leave the two models for comparison out.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on stdout.")
def train(
    config_file: Path | None,
    run_dir: Path | None,
    nats: str | None,
    resume: Path | None,
    seed: int | None,
    no_controls: bool,
    as_json: bool,
) -> None:
    """Train the model of CONFIG.toml and let it grow where it is held back.

    Then train, for comparison, the host alone and the grown shape from the start. Every change
    is signed and kept in the run's directory. Ctrl-C ends the run and closes its log.
    """
    if resume is not None:
        if config_file is not None or run_dir is not None or seed is not None:
            raise click.UsageError("--resume takes config, seed and directory from the run itself")
        config, directory = _logged_config(resume), resume
    elif config_file is not None:
        config = _config(config_file, nats, seed)
        directory = _fresh(run_dir) if run_dir else _default_directory(config_file)
    else:
        raise click.UsageError("wanted CONFIG.toml, or --resume DIR")
    outcome = _train(
        config, directory, nats, as_json, resume=resume is not None, controls=not no_controls
    )
    from esper.cli.summary import as_dict, print_summary

    if as_json:
        click.echo(json.dumps(as_dict(outcome)))
    else:
        print_summary(outcome)
    if outcome.log_failure:
        raise RunFailedError(f"the log of {directory} is not whole: {outcome.log_failure}")


def _config(path: Path, nats: str | None, seed: int | None) -> Config:
    from esper.tolaria.config import ConfigError, check_nats_url, read, with_seed

    try:
        if nats is not None:
            check_nats_url(nats, "--nats")
        return with_seed(read(path), seed)
    except ConfigError as error:
        raise UserError(str(error)) from error


def _logged_config(run_dir: Path) -> Config:
    """The config and seed that the log of ``run_dir`` begins with."""
    from esper.log.errors import JournalError
    from esper.log.run import logged_start
    from esper.tolaria.config import ConfigError, parse, with_seed

    try:
        started = logged_start(run_dir)
        return with_seed(parse(started.config, Path.cwd()), started.seed)
    except JournalError as error:
        raise NotWholeError(run_dir, error) from error
    except ConfigError as error:
        raise UserError(f"{run_dir}: its log holds no config of esper train ({error})") from error


def _default_directory(config_file: Path) -> Path:
    """A new directory; making it claims it, should another run start in the same second."""
    stem = f"{config_file.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory, number = Path("runs") / stem, 1
    while True:
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            if not directory.exists():  # "runs" is a file
                return _fresh(directory)
            number += 1
            directory = Path("runs") / f"{stem}-{number}"
        except OSError:
            return _fresh(directory)  # which says why
        else:
            return directory


def _fresh(directory: Path) -> Path:
    """The directory, if a run can be kept in it: asked before anything slow is loaded."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = (directory / "journal").exists()
    except OSError as error:
        raise UserError(
            f"--run-dir {directory}: cannot be made ({error.strerror}); choose another"
        ) from error
    if taken:
        raise UserError(f"{directory} holds a run already: choose another --run-dir")
    return directory


def _train(
    config: Config,
    directory: Path,
    nats: str | None,
    as_json: bool,
    *,
    resume: bool,
    controls: bool,
) -> Grown:
    from esper.cli.view import watching

    with watching(to_stderr=as_json) as view:
        from esper.kasmina.errors import KasminaError
        from esper.log.errors import JournalError, LogError, NoRoomError, RunEndedError
        from esper.tolaria import trainer
        from esper.tolaria.catch_up import CatchUpError
        from esper.tolaria.checkpoint.file import CheckpointError
        from esper.tolaria.config import ConfigError
        from esper.tolaria.rollback import SpoiltError

        run = trainer.train if controls else trainer.grow
        try:
            return run(
                config,
                run_dir=directory,
                nats=nats,
                seed=config.run.seed,
                observer=view,
                resume=resume,
            )
        except ConfigError as error:
            _forget(directory)
            raise UserError(str(error)) from error
        except KasminaError as error:
            _forget(directory)
            raise UserError(f"the model cannot grow: {error}") from error
        except KeyboardInterrupt:
            _tell_interrupted(directory)
            raise
        except (CatchUpError, CheckpointError) as error:
            raise RunFailedError(f"{directory} cannot be resumed: {error}") from error
        except SpoiltError as error:
            raise RunFailedError(f"the run in {directory} has failed: {error}") from error
        except RunEndedError as error:
            raise UserError(str(error)) from error
        except NoRoomError as error:
            _forget(directory)
            raise RunFailedError(f"{error}; {_when_there_is_room(directory)}") from error
        except LogError as error:
            if resume and isinstance(error, JournalError):
                raise NotWholeError(directory, error) from error
            _forget(directory)
            raise RunFailedError(f"the log of {directory} failed: {error}") from error


def _when_there_is_room(directory: Path) -> str:
    """What to do about a full disk."""
    free = f"free space on the disk of {directory}"
    if not directory.exists():
        return f"{free} and start the run again"
    return f"the run has stopped; {free}, then: esper train --resume {shlex.quote(str(directory))}"


def _forget(directory: Path) -> None:
    """Remove the directory of a run that never began, if nothing lies in it."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def _tell_interrupted(directory: Path) -> None:
    if (directory / "journal").exists():
        say(f"the log of {directory} is closed; next: esper show {shlex.quote(str(directory))}")
    else:
        _forget(directory)
