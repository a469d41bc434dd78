"""The state of each projection in lines for people.

Names and reasons are the log's own: whoever prints a line takes control characters out of it.
"""

from __future__ import annotations

import math
from collections import Counter

from esper.projections.audit import AuditState, Ending
from esper.projections.compiler import BlueprintState, CompilerState
from esper.projections.controller import ControllerState, Tournament, TrialState
from esper.projections.lattice import LatticeState, OpenDecision
from esper_events.stages import Gate

_SHORT = 12


def lattice_words(state: LatticeState) -> list[str]:
    """Slots, every seed where it stands, and what is under way."""
    lines = [f"slots: {', '.join(state.slots) or 'none declared'}"]
    for number, seed in sorted(state.seeds.items()):
        weights = f", tensors {seed.weights[:_SHORT]}" if seed.weights else ""
        body = seed.blueprint[:_SHORT]
        module = state.folded.get(number)
        folded = f", folded into a module of digest {module[:_SHORT]}" if module else ""
        learns = f", objective {seed.objective}" if seed.objective else ""
        lines.append(
            f"seed {number}: {seed.stage.value}, {body} in {seed.slot}{learns}{weights}{folded}"
        )
    lines += _open(state.open)
    if state.lapsed:
        lines.append(f"decisions lapsed: {state.lapsed}")
    return lines


def controller_words(state: ControllerState) -> list[str]:
    """Plateaus, tournaments, trials and the decisions about each place."""
    lines = [f"step {p.step}: held-out loss {p.loss:.4g}, a plateau" for p in state.plateaus]
    lines += [_tournament(state, tournament) for tournament in state.tournaments]
    lines += [_trial(state, number, trial) for number, trial in sorted(state.trials.items())]
    for slot, blueprints in sorted(state.decisions.items()):
        for digest, tally in sorted(blueprints.items()):
            lines.append(
                f"{_name(state, digest)} in {slot}: {_count(tally.taken, 'decision')}, "
                f"{tally.applied} applied, {tally.lapsed} lapsed"
            )
    lines += _open(state.open)
    for name, breaker in sorted(state.breakers.items()):
        opened = _count(breaker.opened, "time")
        lines.append(
            f"circuit breaker {name}: {breaker.state} since step {breaker.step}, opened {opened}"
        )
    tests, spent = _count(state.fork_tests, "fork test"), state.error_spent
    lines.append(f"{tests}, error budget spent: {spent:.4g}, host steps lost: {state.steps_lost}")
    return lines


def compiler_words(state: CompilerState) -> list[str]:
    """A line for each blueprint, in order of their names."""
    ordered = sorted(state.blueprints.items(), key=lambda item: (item[1].name, item[0]))
    return [_blueprint(digest, blueprint) for digest, blueprint in ordered] or ["no blueprints"]


def audit_words(state: AuditState) -> list[str]:
    """Who wrote the log, what is in it, what was not done, how it ended."""
    lines = ["the run has not begun"]
    if state.genesis is not None:
        genesis = state.genesis
        lines = [
            f"run {genesis.run}, Esper {genesis.version}, seed {genesis.seed}",
            f"written by {genesis.key}",
            f"host at the start {genesis.host_weights}",
            f"config {genesis.config}",
            *(f"platform {name}: {text}" for name, text in sorted(genesis.platform.items())),
        ]
    for kind, seen in sorted(state.kinds.items()):
        steps = "" if seen.last_step is None else f", steps {seen.first_step} to {seen.last_step}"
        lines.append(f"{kind}: {seen.count}, events {seen.first} to {seen.last}{steps}")
    slots = _count(len(state.lattice.slots), "slot")
    lines.append(f"{slots}, {_count(state.left_out, 'module')} of the host without one")
    for gate, asked in sorted(state.gates.items()):
        lines.append(f"gate {gate}: passed {asked.passed}, refused {asked.refused}")
    for stage, times in sorted(state.applied.items()):
        lines.append(f"seeds that became {stage}: {times}")
    lines.append(f"host steps lost: {state.steps_lost}")
    for lapse in state.lapses:
        lines.append(
            f"event {lapse.index}: decision {lapse.decision} lapsed at step {lapse.step}: "
            f"{lapse.reason}"
        )
    for note in state.replicas:
        why = f": {note.reason}" if note.reason else ""
        lines.append(
            f"event {note.index}: copy on {note.replica} {note.state}, "
            f"{_count(note.behind, 'segment')} behind{why}"
        )
    lines += _open(state.lattice.open)
    return lines + _ending(state.end)


def _ending(end: Ending | None) -> list[str]:
    if end is None:
        return ["the run has not ended in this log"]
    why = f": {end.reason}" if end.reason else ""
    figures = "".join(f", {name} {value:.4g}" for name, value in sorted(end.figures.items()))
    verdict = "agrees with" if end.lattice_agrees else "is NOT that of"
    return [
        f"{end.outcome} at step {end.step}{why}{figures}",
        f"final weights {end.final_weights}",
        f"its own digest of the lattice {verdict} its history: {end.lattice}",
    ]


def _tournament(state: ControllerState, tournament: Tournament) -> str:
    seeds = ", ".join(map(str, tournament.seeds))
    asked = [n for n in tournament.seeds if _passed(state.trials[n], Gate.SHADOW)]
    won = f", won by seed {', '.join(map(str, asked))}" if asked else ""
    return f"step {tournament.step}: tournament of seeds {seeds}{won}"


def _trial(state: ControllerState, number: int, trial: TrialState) -> str:
    where = f" {_name(state, trial.blueprint)} in {trial.slot}" if trial.slot else ""
    parts = [f"seed {number}:{where} {trial.stage.value}" if where else f"seed {number}: refused"]
    if trial.objective:
        parts.append(f"objective {trial.objective}")
    if trial.gains:
        gains = [gain.gain for gain in trial.gains]
        best = max((gain for gain in gains if not math.isnan(gain)), default=math.nan)
        times = _count(len(gains), "measurement")
        parts.append(f"{times}, last gain {gains[-1]:+.1%}, best {best:+.1%}")
    refused = Counter(answer.gate.value for answer in trial.gates if not answer.passed)
    parts += [f"{gate} gate refused {_count(n, 'time')}" for gate, n in sorted(refused.items())]
    return "; ".join(parts)


def _passed(trial: TrialState, gate: Gate) -> bool:
    return any(answer.gate is gate and answer.passed for answer in trial.gates)


def _name(state: ControllerState, digest: str) -> str:
    return state.blueprints.get(digest, digest[:_SHORT])


def _blueprint(digest: str, blueprint: BlueprintState) -> str:
    seeds = (
        f": {_count(blueprint.germinated, 'seed')}, {blueprint.live} live, "
        f"{blueprint.kept} kept, {blueprint.culled} culled"
    )
    told = seeds if blueprint.germinated else ""
    name = blueprint.name or "unnamed"
    return f"{name} ({digest[:_SHORT]}, {blueprint.body_bytes} bytes) {blueprint.standing}{told}"


def _open(decisions: dict[int, OpenDecision]) -> list[str]:
    return [
        f"decision {number} is open: seed {entry.seed} from {entry.source.value} "
        f"to {entry.target.value}"
        for number, entry in sorted(decisions.items())
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
