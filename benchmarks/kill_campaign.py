"""The kill campaign: trainer, server, or both killed with SIGKILL at any moment, again and again.

A trial trains a small network that grows, in a process of its own with a nats-server of its own.
Up to four times the process is killed, at a random time or at a random one of the calls by which
it touches files and server; the server, or the server's supervisor, is killed too. Each time the
run is resumed. Then nothing that was ever acknowledged may be lost, changed or doubled, log,
stream and proofs must agree, and weights and lattice must have the bits that a re-run of the log
gives; where decisions wait for the log, those of a run that nobody killed, and its events too.

Every process is a fork of this one, which has loaded torch and trained nothing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import torch
import torch._dynamo  # What an optimizer loads at its first use: once, for all forks.

from benchmarks.forks import in_forks
from benchmarks.kill_checks import Promise, Violation
from benchmarks.kill_place import Place, read_log
from benchmarks.kill_points import Strike, read_diary
from benchmarks.kill_run import MODES, Mode, Whole, whole
from benchmarks.kill_takeover import Takeovers
from benchmarks.kill_trial import Draw, Kill, Trial
from esper.tolaria.data import load


class Outcome(msgspec.Struct, frozen=True):
    """One trial; how many changes its run ``applied``, and how many lapsed ``unanswered``."""

    number: int
    mode: str
    seed: int
    strikes: list[Strike]
    kills: list[Kill]
    applied: int
    unanswered: int
    violations: list[Violation]
    seconds: float

    @property
    def killed(self) -> int:
        """Number of kills."""
        return sum(strike.victim != "pause" for strike in self.strikes)


def run_trial(base: Path, number: int, seed: int, mode: Mode, whole: Whole) -> Outcome:
    """Carry out the trial below ``base``, which stays where anything is violated."""
    begun = time.perf_counter()
    place = Place(base)
    shutil.rmtree(base, ignore_errors=True)
    place.server.mkdir(parents=True, mode=0o700)
    kind = Takeovers if mode.taken_over else Trial
    trial = kind(place, mode, whole, Draw(f"{seed}/{number}", whole, mode))
    try:
        violations = list(trial.violations())
    except Exception:  # noqa: BLE001 - whatever it is, this run does not end as it must
        violations = [Violation("not whole", traceback.format_exc())]
    strikes, logged = read_diary(place.diary).strikes, read_log(trial.place.run)
    if not violations:
        shutil.rmtree(base)
    return Outcome(
        number=number,
        mode=str(mode),
        seed=whole.seed,
        strikes=strikes,
        kills=trial.kills,
        applied=logged.applied,
        unanswered=logged.unanswered,
        violations=violations,
        seconds=time.perf_counter() - begun,
    )


class Figures(msgspec.Struct, frozen=True):
    """What a campaign came to. Counts: ``kills`` by victim, besides
    ``pauses`` of a trainer that was only taken for dead, of which ``at_calls`` came at a call
    of one of ``kinds_of_calls``; ``ways`` in which runs went on after a kill of the trainer;
    ``unacknowledged`` and ``torn``, kills that left events that nobody had been promised, and a
    half-written segment; ``runs`` by mode, the changes ``applied`` in them and those that lapsed
    ``unanswered``; and broken promises, one by one."""

    seed: int
    kills: dict[str, int]
    pauses: int
    at_calls: int
    kinds_of_calls: int
    ways: dict[str, int]
    unacknowledged: int
    torn: int
    runs: dict[str, int]
    applied: int
    unanswered: int
    broken: dict[str, int]

    @property
    def good(self) -> bool:
        """Whether no promise was broken."""
        return not any(self.broken.values())

    def __str__(self) -> str:
        lines = [
            f"{sum(self.kills.values())} kills ({_listed(self.kills)}) and {self.pauses} pauses in "
            f"{sum(self.runs.values())} runs ({_listed(self.runs)}) with {self.applied} changes, "
            f"{self.unanswered} more lapsed unanswered",
            f"at a call: {self.at_calls}, of {self.kinds_of_calls} kinds; at any time: "
            f"{sum(self.kills.values()) - self.at_calls}",
            f"killed trainers went on {_listed(self.ways)}; {self.unacknowledged} of these kills "
            f"left events that were not acknowledged yet, {self.torn} a torn write",
            f"broken promises: {_listed(self.broken)}",
        ]
        return "\n".join(lines)


def figures(seed: int, outcomes: list[Outcome]) -> Figures:
    """The figures of a campaign."""
    all_strikes = [strike for outcome in outcomes for strike in outcome.strikes]
    strikes = [strike for strike in all_strikes if strike.victim != "pause"]
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    calls = [strike.label for strike in strikes if not isinstance(strike.moment, float)]
    broken = Counter(v.promise for outcome in outcomes for v in outcome.violations)
    return Figures(
        seed=seed,
        kills=dict(Counter(strike.victim for strike in strikes)),
        pauses=len(all_strikes) - len(strikes),
        at_calls=len(calls),
        kinds_of_calls=len(set(calls)),
        ways=dict(Counter(kill.way for kill in kills)),
        unacknowledged=sum(kill.unacknowledged > 0 for kill in kills),
        torn=sum(kill.torn > 0 for kill in kills),
        runs=dict(Counter(outcome.mode for outcome in outcomes)),
        applied=sum(outcome.applied for outcome in outcomes),
        unanswered=sum(outcome.unanswered for outcome in outcomes),
        broken={promise: broken[promise] for promise in get_args(Promise)},
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; exit 1 when any promise was broken."""
    chosen = _options().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="esper-kills-") as scratch:
        outcomes = list(_campaign(chosen, Path(scratch)))
    found = figures(chosen.seed, outcomes)
    print(found)
    print(f"{_processor_seconds():.0f} seconds of processor time, those of the servers left out")
    if chosen.json is not None:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return 0 if found.good else 1


def _prepare() -> None:
    """Load what every fork needs, and train nothing."""
    torch.set_num_threads(1)
    load(MODES[0].config().data)
    gc.freeze()  # Forks would copy pages only to note that nothing there is garbage.


def _campaign(chosen: argparse.Namespace, scratch: Path) -> Iterator[Outcome]:
    """The outcomes of all trials, those of an earlier call in the file of progress included."""
    began, killed = time.perf_counter(), 0
    done: set[int] = set()
    for outcome in _earlier(chosen.progress):
        done.add(outcome.number)
        killed += outcome.killed
        yield outcome
    if killed >= chosen.kills:
        return
    _prepare()
    wholes = list(
        in_forks(lambda seed: whole(scratch / str(seed), seed), range(chosen.seeds), chosen.jobs)
    )

    def numbers() -> Iterator[int]:
        for number in itertools.count(chosen.first):
            if killed >= chosen.kills:
                return
            if number not in done:
                yield number

    def one(number: int) -> Outcome:
        base = chosen.keep.absolute() / f"kill-{chosen.seed}-{number}"
        mode = MODES[number % len(MODES)]
        return run_trial(
            base, number, chosen.seed, mode, wholes[number // len(MODES) % len(wholes)]
        )

    for outcome in in_forks(one, numbers(), chosen.jobs):
        killed += outcome.killed
        _tell(outcome, chosen, killed, time.perf_counter() - began)
        if chosen.progress is not None:
            with chosen.progress.open("ab") as file:
                file.write(msgspec.json.encode(outcome) + b"\n")
        yield outcome


def _processor_seconds() -> float:
    own, forks = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + forks.ru_utime + forks.ru_stime


def _earlier(progress: Path | None) -> list[Outcome]:
    if progress is None or not progress.exists():
        return []
    return [msgspec.json.decode(line, type=Outcome) for line in progress.open("rb")]


def _tell(outcome: Outcome, chosen: argparse.Namespace, killed: int, seconds: float) -> None:
    strikes = "; ".join(map(str, outcome.strikes)) or "nobody"
    print(
        f"trial {outcome.number} ({outcome.mode}, seed {outcome.seed}), killed {strikes}: "
        f"{'NOT as it must' if outcome.violations else 'ends as it must'} "
        f"({outcome.seconds:.1f} s; {killed} of {chosen.kills} kills, {seconds:.0f} s)",
        flush=True,
    )
    for violation in outcome.violations:
        print(f"  {violation}", flush=True)
    if outcome.violations:
        again = f"--seed {chosen.seed} --seeds {chosen.seeds} --first {outcome.number} --kills 1"
        print(
            f"  kept in {chosen.keep / f'kill-{chosen.seed}-{outcome.number}'}; its strikes once "
            f"more: python -m benchmarks.kill_campaign {again}",
            flush=True,
        )


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    options.add_argument("--kills", type=int, default=1000, help="at least so many")
    options.add_argument("--seed", type=int, default=0, help="of what is drawn")
    options.add_argument("--seeds", type=int, default=3, help="different runs that are killed")
    options.add_argument("--first", type=int, default=0, help="number of the first trial")
    options.add_argument("--jobs", type=int, default=2, help="trials at a time")
    options.add_argument(
        "--keep", type=Path, default=Path("build/kills"), help="where runs are, and bad ones stay"
    )
    options.add_argument("--progress", type=Path, help="a file of trials, to go on with later")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    return options


if __name__ == "__main__":
    sys.exit(main())
