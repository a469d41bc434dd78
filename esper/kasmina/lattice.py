"""All slots of one host and the seeds in them: the only code that changes a host's structure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import msgspec
import torch
from torch import nn

from esper.kasmina._lattice import AlphaSchedule, SlotTable
from esper.kasmina.errors import SlotError
from esper.kasmina.fold import Folding, fold_in
from esper.kasmina.graft import GraftedSeed, attach, detach
from esper.kasmina.host_optimizer import adopt_parameters, drop_parameters
from esper.kasmina.record import record_of
from esper.kasmina.seed import Seed
from esper.kasmina.slot_map import SlotMap
from esper.kasmina.slots import find_slots
from esper_events.events import SlotDeclared
from esper_events.stages import BLENDED, Stage

_STAGES = list(Stage)
_TO_DORMANT = (Stage.CULLED, Stage.EMBARGOED, Stage.DORMANT)
_TO_FOSSIL = (
    Stage.TRAINING,
    Stage.GRAFTING,
    Stage.STABILIZING,
    Stage.EVALUATING,
    Stage.FOSSILIZED,
)


class Lattice:
    """The slot table of a host together with the modules that stand in it."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        forward: Callable[[], object],
    ) -> None:
        """Find the slots by running ``forward`` once, which must call ``model`` once."""
        self.model = model
        self.optimizer = optimizer
        self.map: SlotMap = find_slots(model, forward)
        self.seeds: dict[int, Seed] = {}
        self.grafts: dict[int, GraftedSeed] = {}
        self._table = SlotTable()

    def stage(self, seed: int) -> Stage:
        """Where ``seed`` stands."""
        return _STAGES[self._table.stage(seed)]

    def in_stage(self, stages: Iterable[Stage]) -> list[Seed]:
        """Seeds that stand in one of ``stages``, oldest first."""
        wanted = set(stages)
        return [seed for number, seed in self.seeds.items() if self.stage(number) in wanted]

    @property
    def blended(self) -> Seed | None:
        """The seed under test in the forward path, of which there is at most one."""
        seeds = self.in_stage(BLENDED)
        return seeds[0] if seeds else None

    def occupied(self, slot: str) -> bool:
        """Whether a seed after its trial still holds the slot: blended, culled or in cool-down."""
        holding = BLENDED | {Stage.CULLED, Stage.EMBARGOED}
        return any(seed.slot.id == slot for seed in self.in_stage(holding))

    def germinate(self, seed: Seed) -> None:
        """Enter ``seed`` into its slot; the host does not change."""
        if seed.slot.id not in self.map.slots:
            raise SlotError(f"no slot {seed.slot.id!r}; the host has {', '.join(self.map.slots)}")
        self._table.add_seed(seed.id, seed.slot.id)
        self.seeds[seed.id] = seed
        self.advance(seed, Stage.GERMINATED)

    def advance(self, seed: Seed, stage: Stage) -> None:
        """Move ``seed`` to ``stage`` in the table; the C++ table refuses an illegal step."""
        self._table.advance(seed.id, _STAGES.index(stage))

    def start_graft(self, seed: Seed, schedule: AlphaSchedule) -> GraftedSeed:
        """Put ``seed`` into the forward path at alpha 0 and its parameters into the optimizer."""
        blended = self.blended
        if blended is not None:
            raise SlotError(f"seed {blended.id} is still blended; one graft is tested at a time")
        self.advance(seed, Stage.GRAFTING)
        self._table.start_blend(seed.id, schedule)
        graft, key = _grafted(self.model, seed)
        graft.train(self.model.training)
        host_parameters = list(self.model.get_submodule(seed.slot.end).parameters())
        attach(self.model, graft, key, seed.slot.start, seed.slot.end)
        own = {id(parameter) for parameter in seed.parameters}
        before = list(itertools.takewhile(lambda p: id(p) not in own, self.model.parameters()))
        adopt_parameters(self.optimizer, seed.trainable, seed.optimizer, host_parameters, before)
        seed.optimizer = None
        self.grafts[seed.id] = graft
        return graft

    def tick(self) -> None:
        """Advance the alpha of a blend in progress by one step."""
        self._table.tick()
        for number, graft in self.grafts.items():
            if self.stage(number) is Stage.GRAFTING:
                graft.alpha.fill_(self._table.alpha(number))

    def alpha(self, seed: int) -> float:
        """The seed's alpha: exactly 0 before its blend and exactly 1 after it."""
        return self._table.alpha(seed)

    def fault(self, seed: int) -> str:
        """What the ``seed`` under test has raised in the host's own passes; empty for nothing."""
        graft = self.grafts.get(seed)
        return "" if graft is None else graft.faults.first

    def remove(self, seed: Seed) -> None:
        """Take ``seed`` out of the forward path and the optimizer; the host's tensors stay."""
        graft = self.grafts.pop(seed.id, None)
        if graft is not None:
            detach(self.model, graft.key, seed.slot.start, seed.slot.end)
            drop_parameters(self.optimizer, seed.parameters)

    def fossilize(self, seed: Seed) -> None:
        """Make ``seed`` an ordinary part of the host: gradients flow through its input too."""
        self.advance(seed, Stage.FOSSILIZED)
        self.grafts[seed.id].isolated = False

    def fold(self, seed: Seed, forward: Callable[[], object]) -> Folding:
        """Let the fossil ``seed`` become part of its module's weights and leave the forward path.

        Its body must be affine at each position; ``forward`` runs the model once on a held-out
        batch.

        Raises:
            FoldError: slot and seed do not compose to one module; nothing has changed.
        """
        folding = fold_in(self.model, self.optimizer, seed, forward)
        self.remove(seed)
        self.forget(seed)
        return folding

    def restore(self, seed: Seed, stage: Stage, *, in_path: bool) -> None:
        """Enter a seed that came to ``stage`` before this lattice was made: FOSSILIZED, or any from
        CULLED on.

        One that stands ``in_path`` is built into the host; its tensors, and its place in the
        optimizer, are the caller's to fill.
        """
        self.germinate(seed)
        way = _TO_FOSSIL if stage is Stage.FOSSILIZED else _TO_DORMANT
        for each in way[: way.index(stage) + 1]:
            self.advance(seed, each)
            if each is Stage.GRAFTING:
                self._table.start_blend(seed.id, AlphaSchedule(1))
                self._table.tick()
        if in_path:
            self.grafts[seed.id] = install_fossil(self.model, seed)

    def forget(self, seed: Seed) -> None:
        """Let the tensors of a seed that has ended go; its number stays in the table."""
        seed.body = nn.Identity()
        seed.optimizer = None


def _grafted(model: nn.Module, seed: Seed) -> tuple[GraftedSeed, str]:
    """What stands for ``seed`` in the forward path, and the key under which it does.

    That is its number, or the next that is free where an earlier run has grown a seed of that
    number.
    """
    present = [module for module in model.modules() if isinstance(module, GraftedSeed)]
    taken = {graft.key for graft in present}
    number = next(n for n in itertools.count(seed.id) if str(n) not in taken)
    orders = (graft.record.order for graft in present if graft.record is not None)
    order = 1 + max(orders, default=-1)
    record = record_of(number, seed.slot, seed.recipe, order) if seed.recipe else None
    return GraftedSeed(seed.body, seed.slot, record).to(seed.slot.device), str(number)


def install_fossil(model: nn.Module, seed: Seed) -> GraftedSeed:
    """Build ``seed`` into a host in which it did not grow: the grown shape from the start."""
    graft, key = _grafted(model, seed)
    graft.alpha.fill_(1.0)
    graft.isolated = False
    attach(model, graft, key, seed.slot.start, seed.slot.end)
    return graft


def describe_slots(slot_map: SlotMap) -> tuple[SlotDeclared, ...]:
    """The slots as the log declares them, in order of the forward pass."""
    return tuple(
        msgspec.convert(slot, SlotDeclared, from_attributes=True)
        for slot in slot_map.slots.values()
    )
