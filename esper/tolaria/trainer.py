"""What ``esper train`` does: train the host while it grows, then its two controls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from platform import python_version
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from esper.kasmina.digest import model_digest
from esper.kasmina.isolation import seed_everything
from esper.kasmina.lattice import install_fossil
from esper.log.circuit import State
from esper.log.errors import FencedError, NoRoomError
from esper.log.event_log import EventLog
from esper.log.run import logged_start
from esper.log.takeover import Lease, lease_run_log
from esper.log.workspace import Workspace
from esper.tolaria.catch_up import CatchUpError
from esper.tolaria.config import Config, ConfigError, parse
from esper.tolaria.data import Splits, load
from esper.tolaria.growth import Growth
from esper.tolaria.logged import LoggedRun, RerunError
from esper.tolaria.models import create
from esper.tolaria.observer import Grown, Observer, Outcome, Part, SeedRow
from esper.tolaria.rerun import RerunReport
from esper.tolaria.schedule import make_scheduler
from esper.tolaria.training import (
    Batch,
    Score,
    batches_of,
    classification_loss,
    endless_batches,
    evaluate,
    make_optimizer,
    train_steps,
)
from esper.tolaria.trials import Trial, derived_seed, new_seed
from esper_events.events import Figures, RunStarted

PROBE_BATCH = 16
"""Held-out batches are this small so that a paired test has many pairs."""

REPORT_EVERY = 25

DATA = "data"
"""The name under which a log keeps the digest of the run's data."""


def train(
    config: Config,
    *,
    run_dir: Path,
    nats: str | None,
    seed: int,
    observer: Observer,
    resume: bool = False,
) -> Outcome:
    """:func:`grow`, then train its two controls.

    A host that has not grown is its own grown shape, and is not trained a third time.

    Raises:
        ConfigError, LogError, CatchUpError: see there.
    """
    splits = load(config.data, config.directory)
    grown, fossils = _grow(
        config, splits, run_dir=run_dir, nats=nats, seed=seed, observer=observer, resume=resume
    )
    control, control_size = _control(config, splits, seed, observer, "host alone", [])
    static, static_size = control, control_size
    if fossils:
        name: Part = "grown shape from the start"
        static, static_size = _control(config, splits, seed, observer, name, fossils)
    return Outcome(
        **msgspec.structs.asdict(grown),
        control_accuracy=control.accuracy,
        control_loss=control.loss,
        static_accuracy=static.accuracy,
        static_loss=static.loss,
        control_parameters=control_size,
        static_parameters=static_size,
    )


def grow(
    config: Config,
    *,
    run_dir: Path,
    nats: str | None,
    seed: int,
    observer: Observer,
    resume: bool = False,
    lease: Lease | None = None,
    accept_unproved: bool = False,
    after_step: Callable[[Growth], None] | None = None,
) -> Grown:
    """Run ``config``, without controls, and report to ``observer`` as it goes.

    ``nats`` overrides the config's server. The run's journal lies in ``run_dir``. With ``resume``
    the run there goes on that was killed, with the config and seed of its log. With a ``lease`` the
    run has that log id, and is begun, gone on with or taken over, as its log has it (see
    `lease_run_log`, also of ``accept_unproved``). ``after_step`` is called behind each safe point;
    it can stop the run by raising, once it has left or closed it.

    Raises:
        ConfigError: the model of the config cannot be made, or its data is missing.
        RunEndedError: the run to be gone on with has ended.
        FencedError: another has the run, or has taken it over by now.
        NoRoomError: the disk is full; with room again the run can be resumed.
        LogError: the log cannot be opened.
        SpoiltError: the host is spoilt, and has no checkpoint left to go back to.
        CatchUpError: the run to be resumed does something else now, or had other data.
    """
    splits = load(config.data, config.directory)
    while True:
        log = None
        if lease is not None:
            log = _leased_log(config, lease, run_dir, nats, accept_unproved)
            resume = bool(log.records())
        try:
            return _grow(
                config,
                splits,
                run_dir=run_dir,
                nats=nats,
                seed=seed,
                observer=observer,
                resume=resume,
                after_step=after_step,
                log=log,
            )[0]
        except FencedError as error:
            # What an epoch before had under way may come to a run that begins, once: the first
            # segment of its log. It is then gone on with.
            if lease is None or error.epoch >= lease.epoch:
                raise
        finally:
            if log is not None:
                log.close()


def _leased_log(
    config: Config, lease: Lease, run_dir: Path, nats: str | None, accept_unproved: bool
) -> EventLog:
    area = config.log.workspace
    return lease_run_log(
        run_dir,
        lease,
        workspace=Workspace(None if area is None else Path(area)),
        nats=nats or config.log.nats,
        ack=config.log.ack,
        accept_unproved=accept_unproved,
    )


def _grow(
    config: Config,
    splits: Splits,
    *,
    run_dir: Path,
    nats: str | None,
    seed: int,
    observer: Observer,
    resume: bool,
    after_step: Callable[[Growth], None] | None = None,
    log: EventLog | None = None,
) -> tuple[Grown, list[Trial]]:
    """What :func:`grow` does, and what has grown, oldest first."""
    torch.set_num_threads(config.run.threads)
    if resume:
        _refuse_other_data(logged_start(run_dir), config, splits)
    model = _host(config, splits, seed)
    optimizer = make_optimizer(model, config.optimizer)
    scheduler = make_scheduler(optimizer, config.schedule, config.run.steps)
    growth = _growth(
        config,
        splits,
        model,
        optimizer,
        run_dir=run_dir,
        workspace=config.log.workspace,
        nats=nats or config.log.nats,
        ack=config.log.ack,
        seed=seed,
        config=config.text,
        facts={DATA: splits.digest()},
        resume=resume,
        log=log,
        checkpoint_every=config.run.checkpoint_every,
        checkpoint_with={"schedule": scheduler},
    )
    watcher = _Watcher(growth, observer, after_step)
    with growth:
        observer.part("grown", config.run.steps)
        if resume:
            observer.resumed(growth.resumed_at)
        _fit(config, splits, model, optimizer, scheduler, seed, observer, watcher=watcher)
        summary = growth.close(figures=lambda: _figures(evaluate(model, splits.test)))
        if isinstance(growth.log.failure, NoRoomError):  # Its end is not on record.
            raise growth.log.failure
    watcher.tell()
    score = evaluate(model, splits.test)
    grown = Grown(
        run=growth.run,
        run_dir=str(run_dir),
        events=summary.events,
        segments=summary.segments,
        head=summary.head,
        final_weights=model_digest(model),
        data=config.data.name,
        steps=config.run.steps,
        resumed_at=growth.resumed_at,
        test_accuracy=score.accuracy,
        test_loss=score.loss,
        parameters=_size(model),
        fossils=len(growth.fossils),
        behind=summary.behind,
        breakers=dict(growth.breakers),
        log_failure="" if growth.log.failure is None else str(growth.log.failure),
    )
    return grown, growth.fossils


def rerun(logged: LoggedRun, *, to: int | None, directory: Path, observer: Observer) -> RerunReport:
    """Train a logged run of :func:`train` again, up to step ``to`` or the log's end.

    ``directory`` is searched for a model factory of the config's.

    Raises:
        RerunError: the log holds no config of ``esper train``, ends before ``to``, or is of a
            run on other data.
        ConfigError: the model of the config cannot be made.
    """
    try:
        config = parse(logged.started.config, directory)
    except ConfigError as error:
        raise RerunError(
            f"the log holds no config of esper train ({error}); for a loop of one's own use "
            "esper.Growth(..., rerun=DIR)"
        ) from error
    steps = logged.steps if to is None else to
    if not 0 < steps <= logged.steps:
        raise RerunError(f"got step {steps}, wanted one from 1 to {logged.steps}")
    torch.set_num_threads(config.run.threads)
    splits = load(config.data, config.directory)
    _refuse_other_data(logged.started, config, splits)
    seed = logged.started.seed
    model = _host(config, splits, seed)
    optimizer = make_optimizer(model, config.optimizer)
    scheduler = make_scheduler(optimizer, config.schedule, config.run.steps)
    growth = _growth(config, splits, model, optimizer, rerun=logged)
    with growth:
        observer.part("re-run", steps)
        watcher = _Watcher(growth, observer)
        _fit(config, splits, model, optimizer, scheduler, seed, observer, steps, watcher)
        return growth.rerun_report()


def _refuse_other_data(started: RunStarted, config: Config, splits: Splits) -> None:
    """Raise ``CatchUpError`` when the run began with other data than there is here."""
    logged, here = started.platform.get(DATA), splits.digest()
    if logged not in (None, here):
        versions = f"{started.platform.get('python', 'unknown')} then, {python_version()} now"
        raise CatchUpError(
            f"the data set {config.data.name!r} is not the one that the run began with: its digest "
            f"is {here[:12]}, the log says {logged[:12]} (Python {versions}); wanted the same "
            "files, and the same versions of the packages that the data comes with"
        )


def _host(config: Config, splits: Splits, seed: int) -> nn.Module:
    """The host at its start; the same for the same seed, and so is all randomness after it."""
    seed_everything(derived_seed(seed, "host"))
    return create(config, splits)


def _growth(
    chosen: Config,
    splits: Splits,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    **record: Any,
) -> Growth:
    """Growth judged on the held-out parts of the data; ``record`` says where its log is."""
    return Growth(
        model,
        optimizer,
        classification_loss(model),
        batches_of(splits.probe, PROBE_BATCH),
        confirm=batches_of(splits.confirm, PROBE_BATCH),
        settings=chosen.growth,
        **record,
    )


def _fit(
    config: Config,
    splits: Splits,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    seed: int,
    observer: Observer,
    to: int | None = None,
    watcher: _Watcher | None = None,
) -> None:
    """Train for the configured steps, or up to step ``to``, on the same batches for the same
    seed; a resumed run is trained from where it goes on."""
    steps = config.run.steps if to is None else to
    start = 0 if watcher is None else watcher.growth.resumed_at
    held_out: float | None = None

    def after_step(step: int, batch: Batch, loss: Tensor) -> None:
        nonlocal held_out
        if watcher is not None:
            watcher.growth.step(batch, loss)
        if step % config.growth.observe_every == 0:
            held_out = evaluate(model, splits.probe).accuracy
        if step % REPORT_EVERY == 0 or step == steps:
            observer.progress(step, steps, float(loss), held_out)
            if watcher is not None:
                watcher.tell()
        if watcher is not None:
            watcher.end_step()

    order, size = derived_seed(seed, "batches"), config.run.batch_size
    batches = endless_batches(splits.train, size, order, start)
    train_steps(model, optimizer, batches, steps, after_step, scheduler=scheduler, start=start)


def _control(
    config: Config,
    splits: Splits,
    seed: int,
    observer: Observer,
    name: Part,
    fossils: list[Trial],
) -> tuple[Score, int]:
    """Train the host with ``fossils`` built in from the start; its test score and size."""
    model = _host(config, splits, seed)
    for number, trial in enumerate(fossils):
        install_fossil(model, new_seed(number, trial.seed.slot, trial.blueprint, seed))
    optimizer = make_optimizer(model, config.optimizer)
    scheduler = make_scheduler(optimizer, config.schedule, config.run.steps)
    observer.part(name, config.run.steps)
    _fit(config, splits, model, optimizer, scheduler, seed, observer)
    return evaluate(model, splits.test), _size(model)


def _figures(score: Score) -> Figures:
    return {"test_accuracy": score.accuracy, "test_loss": score.loss}


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _Watcher:
    """Tells an observer what is new in a run: acknowledged records, and seeds that changed."""

    def __init__(
        self,
        growth: Growth,
        observer: Observer,
        after_step: Callable[[Growth], None] | None = None,
    ) -> None:
        self.growth = growth
        self._after_step = after_step
        self._observer = observer
        self._told = 0
        self._rows: list[SeedRow] = []
        self._breakers: dict[str, State] = {}

    def end_step(self) -> None:
        """Behind everything else of a step; raises ``NoRoomError``, with the run left to be
        resumed, where the disk is full."""
        full = self.growth.no_room
        if full is not None:
            self.growth.leave()
            raise full
        if self._after_step is not None:
            self._after_step(self.growth)

    def tell(self) -> None:
        """Report what has come since the last call."""
        records = self.growth.records(self._told)
        for record in records:
            self._observer.event(record)
        self._told += len(records)
        breakers = self.growth.breakers
        if breakers != self._breakers:
            self._breakers = breakers
            self._observer.breakers(breakers)
        rows = self.growth.seed_rows()
        if rows != self._rows:
            self._rows = rows
            self._observer.seeds(rows)
