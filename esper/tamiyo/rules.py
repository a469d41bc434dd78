"""The rule-based controller: wait for a plateau on held-out data, hold a tournament, graft its
winner. It is the baseline that a learned controller has to beat, and its fallback.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

from esper.tamiyo.interface import (
    Advance,
    Candidate,
    Cull,
    Germinate,
    Observation,
    Plateau,
    Policy,
    Proposal,
    SeedView,
)
from esper_events.events import Objective
from esper_events.stages import BLENDED, Stage

NAME = "esper/rules"
VERSION = 1
"""Of the rules below: to be raised when they come to answer otherwise."""


@dataclass(frozen=True)
class Rules:
    """Thresholds of the rule-based controller, in steps and observations.

    ``patience`` and ``plateau`` define stagnation, ``trials`` the size of a tournament,
    ``trial_steps`` its length in shadow steps and ``rungs`` how often it halves. The seeds of a
    tournament learn from the ``objectives`` in turn.
    """

    warmup: int
    patience: int
    plateau: float
    max_growths: int
    trials: int
    trial_steps: int
    rungs: int
    max_refusals: int = 3
    objectives: tuple[Objective, ...] = ("shadow",)


class RuleController:
    """Plateau, tournament by successive halving, then one gate after another.

    Each tournament that leaves nothing behind doubles the patience before the next.
    """

    def __init__(self, rules: Rules, seed: int = 0) -> None:
        self._rules = rules
        self._random = random.Random(seed)
        self._tried: Counter[tuple[str, str]] = Counter()
        self._since = 0
        self._fossils = 0
        self._fruitless = 0

    def decide(self, observation: Observation) -> list[Proposal]:
        """Proposals for this step; see :class:`esper.tamiyo.interface.Controller`."""
        seeds = [seed for seed in observation.seeds if not seed.pending]
        if not observation.seeds:
            return self._consider_growth(observation)
        self._since = observation.step
        blended = [seed for seed in seeds if seed.stage in BLENDED]
        entering = [seed for seed in seeds if seed.stage is Stage.GERMINATED]
        proposals: list[Proposal] = [Advance(s.id, "next stage") for s in blended if s.ready]
        proposals += [Advance(s.id, "enter the trial") for s in entering if s.ready]
        training = [seed for seed in observation.seeds if seed.stage is Stage.TRAINING]
        if training and len(training) == len(observation.seeds):
            proposals += self._tournament(training)
        return proposals

    @property
    def policy(self) -> Policy:
        """Its rules; see :class:`esper.tamiyo.interface.Described`."""
        return Policy(NAME, VERSION, asdict(self._rules))

    def state(self) -> dict[str, Any]:
        """All that it remembers; see :class:`esper.tamiyo.interface.Restorable`."""
        return {
            "random": self._random.getstate(),
            "tried": [(*place, times) for place, times in self._tried.items()],
            "since": self._since,
            "fossils": self._fossils,
            "fruitless": self._fruitless,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as the controller did whose :meth:`state` this was."""
        version, numbers, spare = state["random"]
        self._random.setstate((version, tuple(numbers), spare))
        self._tried = Counter({(slot, name): times for slot, name, times in state["tried"]})
        self._since = state["since"]
        self._fossils = state["fossils"]
        self._fruitless = state["fruitless"]

    def _consider_growth(self, observation: Observation) -> list[Proposal]:
        rules = self._rules
        if observation.fossils >= rules.max_growths or observation.step < rules.warmup:
            return []
        if observation.fossils > self._fossils:
            self._fossils, self._fruitless = observation.fossils, 0
        losses = [loss for step, loss in observation.held_out if step > self._since]
        patience = rules.patience << self._fruitless
        if not has_plateaued(losses, patience, rules.plateau):
            return []
        self._fruitless += 1
        chosen = self._portfolio(observation.candidates)
        why = "held-out loss has stopped falling"
        objectives = cycle(rules.objectives)
        seeds = [Germinate(c.slot, c.blueprint, why, next(objectives)) for c in chosen]
        return [Plateau(losses[-1]), *seeds]

    def _portfolio(self, candidates: tuple[Candidate, ...]) -> list[Candidate]:
        """The least tried candidates, spread over blueprints and slots, ties by lot."""
        pool = list(candidates)
        self._random.shuffle(pool)
        chosen: list[Candidate] = []
        used: Counter[str] = Counter()
        while pool and len(chosen) < self._rules.trials:
            best = min(
                pool,
                key=lambda c: (
                    self._tried[c.slot, c.blueprint],
                    used[c.blueprint],
                    used[c.slot],
                ),
            )
            pool.remove(best)
            chosen.append(best)
            used.update((best.blueprint, best.slot))
            self._tried[best.slot, best.blueprint] += 1
        return chosen

    def _tournament(self, training: list[SeedView]) -> list[Proposal]:
        """Cull the worse half at every rung; ask the shadow gate for the one that is left."""
        free = [seed for seed in training if not seed.pending]
        if len(free) < len(training) or any(not seed.gains for seed in free):
            return []
        ranked = sorted(free, key=lambda seed: (-seed.gains[-1], seed.id))
        done = min(seed.shadow_steps for seed in ranked)
        if done >= self._rules.trial_steps:
            losers = ranked[1:]
            proposals: list[Proposal] = [Cull(s.id, "lost the tournament") for s in losers]
            if not losers:
                proposals += self._ask_or_cull(ranked[0])
            return proposals
        keep = self._survivors(len(ranked), done)
        return [Cull(seed.id, "fell behind in the tournament") for seed in ranked[keep:]]

    def _survivors(self, running: int, done: int) -> int:
        """How many may go on after ``done`` shadow steps: halved at each of evenly spaced rungs."""
        spacing = self._rules.trial_steps / (self._rules.rungs + 1)
        rungs_passed = int(done // spacing)
        allowed = math.ceil(self._rules.trials / (1 << rungs_passed))
        return max(1, min(running, allowed))

    def _ask_or_cull(self, seed: SeedView) -> list[Proposal]:
        if seed.refusals >= self._rules.max_refusals:
            return [Cull(seed.id, f"refused {seed.refusals} times by the shadow gate")]
        return [Advance(seed.id, "won the tournament")] if seed.ready else []


def has_plateaued(losses: list[float], patience: int, threshold: float) -> bool:
    """Whether the best of the last ``patience`` losses is less than the fraction ``threshold``
    better than the best before them.

    False while there are too few, and where none of the last is a number: a host that has
    diverged has not stopped falling.
    """
    if len(losses) <= patience:
        return False
    before, recent = _best(losses[:-patience]), _best(losses[-patience:])
    if math.isinf(before) or math.isinf(recent):
        return False
    return recent > before - threshold * abs(before)


def _best(losses: list[float]) -> float:
    return min(filter(math.isfinite, losses), default=math.inf)
