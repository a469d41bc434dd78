"""What the parts of an engine share, and never changes during a run."""

from __future__ import annotations

from dataclasses import dataclass

from esper.blueprints.ir import Blueprint
from esper.kasmina.host_update import HostUpdate
from esper.kasmina.lattice import Lattice
from esper.kasmina.shadow import LossFunction
from esper.tolaria.breaker import Log
from esper.tolaria.heldout import HeldOut
from esper.tolaria.settings import GrowthSettings


@dataclass(frozen=True)
class Context:
    """The host in its lattice, how it is trained and judged, and where that is written down.

    ``loss_fn`` is the user's objective, ``update`` what their loop does with a loss, ``parts``
    the held-out batches, ``library`` the blueprints to choose from, ``run_seed`` the seed of
    everything random in growth.
    """

    lattice: Lattice
    loss_fn: LossFunction
    update: HostUpdate
    parts: HeldOut
    settings: GrowthSettings
    library: tuple[Blueprint, ...]
    log: Log
    run_seed: int
