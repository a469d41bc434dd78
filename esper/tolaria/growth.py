"""Growth in a training loop of one's own: the whole of Esper behind three calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from esper.blueprints.ir import Blueprint
from esper.kasmina.digest import model_digest
from esper.kasmina.host import own_module
from esper.kasmina.host_optimizer import seed_optimizer
from esper.kasmina.host_update import AccumulatedUpdate, Stateful, Update
from esper.kasmina.lattice import Lattice
from esper.kasmina.random_state import RandomState
from esper.kasmina.shadow import LossFunction
from esper.log.circuit import State
from esper.log.errors import NoRoomError
from esper.log.event_log import EventLog, LogSummary
from esper.projections.lattice import LatticeState, fold_all
from esper.tamiyo.interface import Controller
from esper.telemetry.telemetry import Telemetry
from esper.tolaria.catch_up import CatchUpError, CatchUpLog
from esper.tolaria.checkpoint.host import HostState
from esper.tolaria.checkpoint.keeper import Checkpoints, Kept
from esper.tolaria.claims import Claim, refuse_second
from esper.tolaria.context import Context
from esper.tolaria.engine import Engine
from esper.tolaria.heldout import HeldOut, Reserve
from esper.tolaria.inputs import (
    RESERVED,
    checkpoint_contents,
    chosen_blueprints,
    default_controller,
    held_out_parts,
    host_objects,
    host_update,
    logged_settings,
    wanted_telemetry,
)
from esper.tolaria.logged import LoggedRun, RerunError, read_run
from esper.tolaria.observer import SeedRow
from esper.tolaria.rerun import Rerun, RerunReport, report
from esper.tolaria.rollback import Rollbacks
from esper.tolaria.run_log import (
    LogPlace,
    Outcome,
    declarations,
    require_same,
    run_ended,
    run_started,
    warn_of_failing,
    warn_of_failure,
)
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.trials import Trial
from esper_events.events import Figures, Record

T = TypeVar("T")


class Growth:
    """Lets ``model`` grow while the user's own loop trains it.

    Call :meth:`step` after every optimizer step and :meth:`close` at the end. ``model`` and
    ``optimizer`` stay the user's own objects throughout.

    Args:
        model: the host; of a compiled one, the module that was compiled.
        optimizer: the optimizer that trains it; a seed's parameters join its existing groups.
        loss_fn: the user's objective: takes a batch, runs ``model`` once, returns a scalar loss.
        probe: held-out batches, at least 6 (4 with ``confirm``). Without them the first
            ``RESERVED`` training batches are used, which is said in a warning and in the log.
        confirm: held-out batches for the fork gate alone; a third of ``probe`` otherwise.
        settings: see :class:`GrowthSettings`.
        controller: decides where and when to grow; the rule-based one by default.
        update: what the loop does with a loss (backward, clipping, optimizer step); needed when
            that is more than ``backward``, ``step`` and ``zero_grad``, so that a fork is trained
            exactly as the host is.
        update_state: objects with ``state_dict`` and ``load_state_dict`` that ``update`` changes
            besides model and optimizer, such as a gradient scaler: a fork has a state of its own
            of each.
        accumulate: each batch given to :meth:`step` is a sequence of micro-batches, those of one
            optimizer step. ``loss_fn`` and the held-out batches stay as they are, ``update``
            takes an iterator that gives the loss of one micro-batch after another.
        library: blueprints to choose from.
        run_dir: where the journal goes; ``runs/<run id>`` by default.
        workspace: directory of the shared server and keys; ``$ESPER_WORKSPACE`` or ``.esper``.
        nats: URL of a server of one's own; the workspace's embedded one otherwise.
        ack: whose acknowledgement a change waits for.
        seed: of everything random in growth.
        config: the text that describes this run in its log.
        facts: named texts that join the platform there: what else must be the same for the same
            bits, such as a digest of the data.
        log: an open log to write to, in place of ``run_dir``, ``workspace``, ``nats`` and
            ``ack``; :meth:`close` closes it.
        rerun: the run directory or exported file of a run that is to be trained again: its logged
            decisions take the controller's place, nothing new is logged, and
            :meth:`rerun_report` tells whether the bits are the same. Model, optimizer, batches
            and ``seed`` must be those of the run; ``settings`` are the log's unless given.
        resume: go on with the run in ``run_dir`` that was killed, with everything made as it was
            then: from its newest checkpoint, or from the start. What the log tells already is
            followed, what is new is appended. Refused where training does something else than the
            log tells.
        checkpoint_every: keep the state of training in ``run_dir/checkpoints`` every so many
            steps, as soon as nothing is on trial, and let ``resume`` go on from there. Call
            :meth:`step` last in an iteration: what comes behind it is not in the checkpoint.
        checkpoint_with: further objects with ``state_dict`` and ``load_state_dict`` that a
            checkpoint shall hold, by names of one's own: schedulers, a sampler of the data. Those
            of ``update_state`` are in it anyway.

    Attributes:
        resumed_at: the step after which a resumed run goes on; 0 when it is from the start. The
            loop's first batch must be that of step ``resumed_at + 1``, see :meth:`unseen`.

    Raises:
        LogError: the log cannot be opened.
        HeldOutError: there are too few held-out batches.
        KasminaError: no seed could join an optimizer of this kind, or the host is trained on
            several devices or in several processes.
        SlotError: the host has no place where anything could grow.
        TelemetryError: ``settings.step_statistics`` of a compiled host.
        ValueError: an object of ``checkpoint_with`` has a state that no file can hold as data, or
            another Growth is at work on the model.
        CheckpointError: model, optimizer or ``checkpoint_with`` are not those of the checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFunction,
        probe: Iterable[Any] | None = None,
        *,
        confirm: Iterable[Any] | None = None,
        settings: GrowthSettings | None = None,
        controller: Controller | None = None,
        update: Update | AccumulatedUpdate | None = None,
        update_state: Sequence[Stateful] = (),
        accumulate: bool = False,
        library: Sequence[Blueprint] | None = None,
        run_dir: str | Path | None = None,
        workspace: str | Path | None = None,
        nats: str | None = None,
        ack: Literal["journal", "jetstream"] = "journal",
        seed: int = 0,
        config: str | None = None,
        facts: Mapping[str, str] | None = None,
        log: EventLog | None = None,
        rerun: str | Path | LoggedRun | None = None,
        resume: bool = False,
        checkpoint_every: int | None = None,
        checkpoint_with: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.model = model = own_module(model)
        self.optimizer = optimizer
        self._logged = read_run(Path(rerun)) if isinstance(rerun, (str, Path)) else rerun
        self.settings = settings or logged_settings(self._logged) or GrowthSettings()
        self.library = chosen_blueprints(self.settings, library)
        self._loss_fn = loss_fn
        self._update = host_update(optimizer, update, update_state, accumulate)
        self._controller = controller or default_controller(self.settings, seed)
        self._seed = seed if self._logged is None else self._logged.started.seed
        self._host_weights = model_digest(model)
        self.resumed_at = 0
        self._step = 0
        self._wake = 1
        self._warned = False
        self._engine: Engine | Rerun | None = None
        self._parts: HeldOut | None = None
        self._reserve = Reserve(RESERVED)
        self._summary: LogSummary | None = None
        self._telemetry: Telemetry | None = None
        # Refused now rather than in the middle of training, and before there is a log.
        seed_optimizer(optimizer, [nn.Parameter(torch.zeros(1))], (), 1.0)
        parts = held_out_parts(probe, confirm)
        lattice = None if parts is None else self._find_slots(parts)
        directory = None if run_dir is None else Path(run_dir)
        place = LogPlace(directory, workspace, nats, ack, resume, log)
        training, self._host = None, None
        if checkpoint_every is not None or (self._logged and self._logged.back_to):
            self._host = HostState(model, optimizer, host_objects(update_state))
        if checkpoint_every is not None and self._host and self._logged is None:
            place.check_checkpoints(checkpoint_every)
            training = checkpoint_contents(self._host, self._controller, checkpoint_with or {})
        refuse_second(model)
        self.log, directory = place.open(self._logged)
        self.run = self.log.log_id
        self._claim = Claim(model, self, self.run)
        self._checkpoints: Checkpoints | None = None
        if training is not None and checkpoint_every is not None and directory is not None:
            sync, copies = self.settings.sync_decisions, self.log.copies
            self._checkpoints = Checkpoints(
                directory, checkpoint_every, self.log, training, copies, sync=sync
            )
        self._resuming = resume
        try:
            weights, drawn = self._host_weights, self._seed
            told = run_started(self.log, self.settings, weights, drawn, config, facts or {})
            self.log.append(told)
            self._start(parts, lattice)
        except BaseException as error:
            self.close("failed", f"{type(error).__name__}: {error}")
            raise
        self._wake = self._next_wake()

    def _start(self, parts: HeldOut | None, lattice: Lattice | None) -> None:
        """Begin as far as can be, from the newest checkpoint where there is one to go on from."""
        kept = None
        if self._resuming and self._checkpoints is not None:
            self._checkpoints.expect(self.log.records())
            self._checkpoints.forget_unnamed(self.log.records())
            kept = self._checkpoints.newest(self.log.records())
        if kept is not None:
            parts = kept.with_parts(parts)
        if parts is not None:
            self._begin(parts, lattice or self._find_slots(parts))
        if kept is not None:
            self._go_on(kept)
        self._resuming = False

    def _go_on(self, kept: Kept) -> None:
        """Be where the run was when it took the checkpoint."""
        if self._checkpoints and self.engine and isinstance(self.log, CatchUpLog):
            self.engine.restore(kept.seeds, self.log.told)
            self._checkpoints.put_back(kept)
            self.log.skip_to(kept.step)
            self.resumed_at = self._step = kept.step

    @property
    def engine(self) -> Engine | None:
        """The lifecycle of the seeds; None until there are held-out batches, and in a re-run."""
        return self._engine if isinstance(self._engine, Engine) else None

    @property
    def telemetry(self) -> Telemetry | None:
        """What ``settings.step_statistics`` and ``settings.sample_every`` ask for, from when the
        slots are known; None where they ask for nothing."""
        return self._telemetry

    def step(self, batch: Any, loss: Tensor | float | None = None) -> None:
        """The safe point after an optimizer step that trained on ``batch``.

        Acknowledged changes take effect here and nowhere else. ``loss`` is the step's training
        loss; given, an explosion during a graft ends it.

        Raises:
            RuntimeError: growth is closed, or ``loss`` still awaits its backward pass.
            FencedError: another has taken the run over, and this process has no part in it.
            SpoiltError: the host is spoilt, and has no checkpoint left to go back to.
        """
        self._step += 1
        telemetry = self._telemetry
        if telemetry is not None:
            telemetry.end_step(self._step, self._update.one(batch))
        if self._step >= self._wake:
            self._safe_point(batch, loss)
        if telemetry is not None:
            telemetry.begin_step()

    def _safe_point(self, batch: Any, loss: Tensor | float | None) -> None:
        """What is due at this step, and which step is the next at which anything may be."""
        if self._summary is not None:
            raise RuntimeError("growth.step after growth.close: make a new Growth for a new run")
        if self.log.fenced is not None:
            raise self.log.fenced
        if isinstance(self.log, CatchUpLog):
            self.log.step = self._step
        if self._engine is None:
            parts = self._reserve.take(self._update.one(batch))
            if parts is not None:
                self._begin(parts, self._find_slots(parts))
        else:
            self._engine.safe_point(self._step, batch, loss)
        if self._checkpoints and self.engine and self._parts:
            self._checkpoints.offer(self._step, self.engine, self._parts)
        if self.log.failure is not None and not self._warned:
            self._warned = True
            warn_of_failing(self.log, self._step)
        self._wake = self._next_wake()

    @property
    def breakers(self) -> dict[str, State]:
        """The circuit breakers, by what they are in front of: ``log``, while seeds can grow, and
        what the log has, such as ``objects``."""
        own = {} if self.engine is None else {"log": self.engine.decisions.circuit}
        return {name: circuit.state for name, circuit in (own | self.log.breakers).items()}

    @property
    def no_room(self) -> NoRoomError | None:
        """What cannot be written because the disk is full: the log, which then takes nothing more
        for as long as the run lasts, or a checkpoint. Training goes on, without growth or without
        newer checkpoints; :meth:`leave` stops it so that a later ``resume`` goes on."""
        failure = self.log.failure
        if isinstance(failure, NoRoomError):
            return failure
        return None if self._checkpoints is None else self._checkpoints.no_room

    def _next_wake(self) -> int:
        """The next step at which there may be something to do."""
        if self._engine is None or not self._engine.idle:
            return self._step + 1
        rare = self.settings.observe_every
        observing = self._step + rare - self._step % rare
        if self._checkpoints is None:
            return observing
        return min(observing, max(self._step + 1, self._checkpoints.next_step))

    def close(
        self,
        outcome: Outcome = "completed",
        reason: str = "",
        figures: Callable[[], Figures] | None = None,
    ) -> LogSummary:
        """End every trial that has not earned its place, and the log; safe to call twice.

        ``figures`` is called when the model has its final shape, to measure what the last event
        shall hold.

        Raises:
            ProjectionError: the log does not tell the state that the lattice is in.
        """
        if self._summary is not None:
            return self._summary
        if self._telemetry is not None:
            self._telemetry.close()
        if self._checkpoints is not None:
            self._checkpoints.close()
        if isinstance(self.log, CatchUpLog):
            self.log.step = self._step
            ends = outcome == "completed" and self.log.concluding
            if self._resuming or (self.log.behind and not ends):
                return self._leave(self.log, outcome)
        try:
            if self._engine is not None:
                self._engine.conclude(self._step, "the run ended")
            if self._logged is None and self.log.flush(self.settings.ack_timeout):
                folded = fold_all(self.log.records())
                require_same(self.state(folded.records), folded)
            measured = figures() if figures else {}
        except BaseException as error:
            if isinstance(self.log, CatchUpLog) and self.log.behind:
                self._leave(self.log, "failed")
            else:
                self._end("failed", f"{type(error).__name__}: {error}", {})
            raise
        if isinstance(self.log, CatchUpLog) and self.log.behind:
            return self._leave(self.log, outcome)
        return self._end(outcome, reason, measured)

    def leave(self) -> LogSummary:
        """Stop here, behind a :meth:`step`, without an end: a later ``resume`` goes on, from this
        very step if nothing is on trial and checkpoints are kept. The log is closed."""
        if self._summary is not None:
            return self._summary
        if self._telemetry is not None:
            self._telemetry.close()
        if self._checkpoints and self.engine and self._parts and self.no_room is None:
            self._checkpoints.offer_last(self._step, self.engine, self._parts)
        return self._closed()

    def _leave(self, log: CatchUpLog, outcome: Outcome) -> LogSummary:
        """Close a log that training has not caught up with; it can be resumed again."""
        summary = self._closed()
        if outcome == "completed":
            raise CatchUpError(
                f"training ended at step {self._step}, and the log tells {log.behind} records more"
            )
        return summary

    def _end(self, outcome: Outcome, reason: str, figures: Figures) -> LogSummary:
        end = self._step, outcome, reason, self.model, self.state(0), figures
        self.log.append(run_ended(*end))
        summary = self._closed()
        if outcome == "completed" and self.log.fenced is not None:
            raise self.log.fenced
        warn_of_failure(self.log, summary)
        return summary

    def _closed(self) -> LogSummary:
        self._summary = self.log.close()
        self._claim.release()
        self._wake = 0
        return self._summary

    def unseen(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches behind the first :attr:`resumed_at`, which the run before has trained on.

        ``batches`` must give the same as then. What is drawn at random while those are passed
        over is as if it had never been.
        """
        rest = iter(batches)
        state = RandomState()
        for _ in islice(rest, self.resumed_at):
            pass
        state.restore()
        return rest

    def records(self, start: int = 0) -> list[Record]:
        """Acknowledged records of the log from index ``start`` on."""
        return self.log.records(start)

    @property
    def fossils(self) -> list[Trial]:
        """The seeds that have become part of the host, oldest first."""
        return [] if self._engine is None else list(self._engine.transitions.fossils)

    def seed_rows(self) -> list[SeedRow]:
        """Live seeds and fossils as a person sees them."""
        return self._engine.rows() if isinstance(self._engine, Engine) else []

    def rerun_report(self) -> RerunReport:
        """How a re-run compares with its log, so far.

        Raises:
            RerunError: this is not a re-run.
        """
        if self._logged is None:
            raise RerunError("this run follows no log: make esper.Growth(..., rerun=DIR)")
        engine = self._engine if isinstance(self._engine, Rerun) else None
        return report(self._logged, engine, self._step, self._host_weights, self.model)

    def state(self, records: int) -> LatticeState:
        """The running lattice in the terms of its projection, after ``records`` records."""
        if self._engine is None:
            return LatticeState(records=records)
        return self._engine.state(records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, KeyboardInterrupt):
            self.close("interrupted", "interrupted by the user")
        else:
            self.close("failed", f"{type(error).__name__}: {error}")

    def _find_slots(self, parts: HeldOut) -> Lattice:
        first = parts.watch[0]
        return Lattice(self.model, self.optimizer, lambda: self._loss_fn(first))

    def _begin(self, parts: HeldOut, lattice: Lattice) -> None:
        self.log.append(*declarations(lattice, self.library))
        self._parts = parts
        shared = self.settings, self.library, self.log, self._seed
        context = Context(lattice, self._loss_fn, self._update, parts, *shared)
        logged, controller = self._logged, self._controller
        if logged is not None:
            self._engine = Rerun(context, logged, self._host)
        else:
            rollbacks = Rollbacks(context, self._checkpoints) if self._checkpoints else None
            self._engine = Engine(context, controller, rollbacks)
        self._telemetry = wanted_telemetry(context)
