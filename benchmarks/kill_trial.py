"""One trial of the kill campaign: a run that is killed a few times, resumed, and examined."""

from __future__ import annotations

import math
import random
import shutil
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.forks import Process, in_forks
from benchmarks.kill_checks import Violation, after_end, after_kill, on_server
from benchmarks.kill_points import Diary, Point, Strike, Victim, carry_out, read_diary
from benchmarks.kill_run import (
    PATIENCE_SECONDS,
    Logged,
    Place,
    Whole,
    read_log,
    server_ended,
    start,
)
from esper.log.locks import FileLock
from esper_events.events import RunEnded

_POLL_SECONDS = 0.002
_AT_A_TIME = 0.4
"""Part of the strikes that come at a random time; the others come at a point."""


Way = Literal["from a checkpoint", "from its start", "anew", "had ended", "killed again"]
"""How a killed run went on: anew where none of its events was on disk; killed again where that
came before it could tell."""


class Kill(msgspec.Struct, frozen=True):
    """What a kill of a trainer left: events that nobody was told are durable, bytes of a torn
    write; and how the run went on."""

    unacknowledged: int
    torn: int
    way: Way


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


@dataclass(frozen=True)
class Plan:
    """The strikes at each process of a run, drawn from the trial's number, and whether another
    run keeps the server alive all the while."""

    volleys: Sequence[Sequence[Strike]]
    accompanied: bool


def plan(draw: random.Random, whole: Whole) -> Plan:
    """Two to four processes whose trainer is to be killed, and a last one that may end."""
    volleys: list[list[Strike]] = []
    for _ in range(draw.choice((2, 2, 3, 4))):
        volleys.append(_server_strikes(draw, whole))
        volleys[-1].append(_strike(draw, whole, draw.choice(("trainer", "trainer", "both"))))
    volleys.append(_server_strikes(draw, whole))
    return Plan(volleys, accompanied=draw.random() < 0.5)


def _server_strikes(draw: random.Random, whole: Whole) -> list[Strike]:
    victims: Sequence[Victim] = ("server", "server", "supervisor")
    return [_strike(draw, whole, draw.choice(victims)) for _ in range(draw.random() < 0.4)]


def _strike(draw: random.Random, whole: Whole, victim: Victim) -> Strike:
    if draw.random() < _AT_A_TIME:
        return Strike(victim, draw.random() * whole.seconds)
    # Between as likely as its calls are many, and as likely as every other kind.
    labels = sorted(whole.census)
    [label] = draw.choices(labels, [math.sqrt(whole.census[label]) for label in labels])
    return Strike(victim, Point(label, draw.randint(1, whole.census[label])))


def run_trial(base: Path, number: int, seed: int, whole: Whole) -> Outcome:
    """Carry out the trial below ``base``, which stays where anything is violated."""
    begun = time.perf_counter()
    place = Place(base)
    shutil.rmtree(base, ignore_errors=True)
    place.server.mkdir(parents=True, mode=0o700)
    trial = _Trial(place, whole, random.Random(f"{seed}/{number}"))
    try:
        violations = list(trial.violations())
    except Exception:  # noqa: BLE001 - whatever it is, this run does not end as it must
        violations = [Violation("not whole", traceback.format_exc())]
    logged = read_log(place.run)
    if not violations:
        shutil.rmtree(base)
    return Outcome(
        number=number,
        mode=str(whole.mode),
        seed=whole.seed,
        strikes=trial.strikes,
        kills=trial.kills,
        applied=logged.applied,
        unanswered=logged.unanswered,
        violations=violations,
        seconds=time.perf_counter() - begun,
    )


class _Trial:
    """The run as it goes from kill to kill."""

    def __init__(self, place: Place, whole: Whole, draw: random.Random) -> None:
        self.strikes: list[Strike] = []
        self.kills: list[Kill] = []
        self._place = place
        self._whole = whole
        self._plan = plan(draw, whole)
        self._draw = draw
        self._diary = Diary(place.diary)

    def violations(self) -> Iterator[Violation]:
        """What does not hold, as soon as it is found."""
        with FileLock(self._place.server / "attached.lock") as attached:
            if self._plan.accompanied:
                attached.acquire(shared=True)
            found = list(self._live())
        self.strikes = read_diary(self._place.diary).strikes
        yield from found
        if not found:
            yield from after_end(self._place, self._whole, read_diary(self._place.diary))
        if not server_ended(self._place):
            yield Violation("not whole", "the server is still there")

    def _live(self) -> Iterator[Violation]:
        """Every process of the run in turn, until one comes to its end."""
        logged, place = Logged((), 0), self._place
        for volley in (*self._plan.volleys, ()):
            before = len(read_diary(place.diary).resumed)
            whole = self._whole
            process = start(place, whole.mode, whole.seed, volley, resume=bool(logged.records))
            self._strike_in_time(process, volley)
            process.join()
            self._note_way(before)
            if process.exitcode == 0:
                return
            told, logged = read_diary(place.diary), read_log(place.run)
            if process.exitcode != -signal.SIGKILL:
                yield Violation("not resumed", f"exit code {process.exitcode}: {self._last_words}")
                return
            yield from after_kill(told, logged)
            ended = bool(logged.records) and isinstance(logged.events[-1], RunEnded)
            unacknowledged = len(logged.records) - len(told.acknowledged)
            way: Way = "had ended" if ended else "killed again" if logged.records else "anew"
            self.kills.append(Kill(unacknowledged, logged.torn, way))
            if ended:
                return
            if logged.records and whole.mode.ack == "jetstream" and self._draw.random() < 0.5:
                [missing] = in_forks(lambda told: on_server(place, told), [told], 1)
                yield from missing
            if not logged.records:
                shutil.rmtree(place.run, ignore_errors=True)
        yield Violation("not resumed", "the process that nobody killed did not come to its end")

    def _strike_in_time(self, process: Process, volley: Sequence[Strike]) -> None:
        """The strikes that come at a time; at a server that is not there, as soon as it is."""
        begun, pid = time.perf_counter(), process.pid
        timed = [strike for strike in volley if isinstance(strike.moment, float)]
        while timed and process.is_alive():
            passed = time.perf_counter() - begun
            timed = [
                strike
                for strike in timed
                if passed < float(strike.moment)
                or not carry_out(strike, self._place.server, self._diary, pid)
            ]
            time.sleep(_POLL_SECONDS)

    def _note_way(self, before: int) -> None:
        """From where the process went on that came after the last kill."""
        resumed = read_diary(self._place.diary).resumed[before:]
        if self.kills and resumed:
            way: Way = "from a checkpoint" if resumed[0] else "from its start"
            self.kills[-1] = msgspec.structs.replace(self.kills[-1], way=way)

    @property
    def _last_words(self) -> str:
        lines = self._place.output.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"nothing printed within {PATIENCE_SECONDS:g} s"
