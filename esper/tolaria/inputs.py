"""What :class:`Growth` makes of its arguments, and what it takes where none are given."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from esper.blueprints.ir import Blueprint
from esper.blueprints.library import LIBRARY
from esper.kasmina.host_update import AccumulatedUpdate, HostUpdate, Stateful, Update
from esper.log.event_log import EventLog
from esper.log.run import open_run_log, resume_run_log
from esper.log.workspace import Workspace
from esper.tamiyo.interface import Controller, Restorable
from esper.tamiyo.rules import RuleController, Rules
from esper.telemetry.telemetry import Telemetry
from esper.tolaria.checkpoint.host import HostState
from esper.tolaria.checkpoint.training import Training
from esper.tolaria.context import Context
from esper.tolaria.heldout import HeldOut, split_held_out
from esper.tolaria.logged import LoggedRun
from esper.tolaria.settings import GrowthSettings

RESERVED = 24
"""Training batches that stand in for held-out ones when the user gives none."""


def new_run_id() -> str:
    """A name for a run that sorts by time and does not repeat."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(4)


def held_out_parts(probe: Iterable[Any] | None, confirm: Iterable[Any] | None) -> HeldOut | None:
    """The held-out batches dealt out to the gates; None, with a warning, where there are none."""
    if probe is not None:
        kept = None if confirm is None else tuple(confirm)
        return split_held_out(tuple(probe), kept, "probe")
    warnings.warn(
        f"no probe batches given: the gates use the first {RESERVED} training batches, which the "
        "host has learnt from; pass probe=... for a judgement on held-out data",
        stacklevel=4,
    )
    return None


def host_update(
    optimizer: torch.optim.Optimizer,
    update: Update | AccumulatedUpdate | None,
    stateful: Sequence[Stateful],
    accumulate: bool,
) -> HostUpdate:
    """How the host is trained; what most loops do with a loss where no ``update`` tells."""
    if update is None and (accumulate or stateful):
        named = "accumulate=True" if accumulate else "update_state"
        raise ValueError(f"{named} needs update: what the loop does with the losses of a batch")
    return HostUpdate(update or _plain_update(optimizer), tuple(stateful), accumulate)


def _plain_update(optimizer: torch.optim.Optimizer) -> Update:
    """Backward, step, zero_grad."""

    def update(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return update


def logged_settings(logged: LoggedRun | None) -> GrowthSettings | None:
    """The settings that a loop of one's own had; None where the log holds another config."""
    if logged is None:
        return None
    try:
        return msgspec.json.decode(logged.started.config, type=GrowthSettings)
    except msgspec.MsgspecError:
        return None


def open_log(
    run_dir: Path | None,
    workspace: str | Path | None,
    nats: str | None,
    ack: Literal["journal", "jetstream"],
    resume: bool,
) -> tuple[EventLog, Path]:
    """The log of a new run, or of one that is to be resumed, and the directory of the run."""
    area = Workspace(None if workspace is None else Path(workspace))
    if resume:
        if run_dir is None:
            raise ValueError("resume=True needs run_dir: the directory of the run that was killed")
        return resume_run_log(run_dir, workspace=area, nats=nats, ack=ack), run_dir
    run = new_run_id()
    directory = Path("runs") / run if run_dir is None else run_dir
    return open_run_log(directory, log_id=run, workspace=area, nats=nats, ack=ack), directory


def checkpoint_contents(
    host: HostState, controller: Controller, others: Mapping[str, Stateful]
) -> Training | None:
    """What the checkpoints of a run hold; None, with a warning, where they cannot hold it all."""
    if isinstance(controller, Restorable):
        named = {f"checkpoint_with[{name!r}]": held for name, held in others.items()}
        return Training(host, controller, named)
    warnings.warn(
        f"no checkpoints are taken: a {type(controller).__name__} cannot be restored, give it "
        "state() and restore(state); see esper.tamiyo.interface.Restorable",
        stacklevel=4,
    )
    return None


def host_objects(update_state: Sequence[Stateful]) -> dict[str, Stateful]:
    """The user's objects that belong to the host, by the names that messages give them."""
    return {f"update_state[{number}]": held for number, held in enumerate(update_state)}


def chosen_blueprints(
    settings: GrowthSettings, library: Sequence[Blueprint] | None
) -> tuple[Blueprint, ...]:
    """The blueprints of ``library`` (the shipped one where None) that the settings name."""
    known = {b.name: b for b in (LIBRARY.values() if library is None else library)}
    unknown = [name for name in settings.blueprints if name not in known]
    if unknown:
        raise ValueError(
            f"growth.blueprints: got {unknown[0]!r}, wanted some of {', '.join(known)}"
        )
    return tuple(known[name] for name in settings.blueprints or known)


def default_controller(settings: GrowthSettings, seed: int) -> RuleController:
    """The rule-based controller with the thresholds of the settings."""
    names = (field for field in Rules.__dataclass_fields__ if hasattr(settings, field))
    return RuleController(Rules(**{name: getattr(settings, name) for name in names}), seed)


def wanted_telemetry(context: Context) -> Telemetry | None:
    """What the settings ask for; None where they ask for nothing."""
    settings, lattice = context.settings, context.lattice
    if not (settings.step_statistics or settings.sample_every):
        return None
    return Telemetry(
        lattice.model,
        lattice.optimizer,
        context.loss_fn,
        lattice.map.slots.values(),
        every_step=settings.step_statistics,
        sample_every=settings.sample_every,
    )
