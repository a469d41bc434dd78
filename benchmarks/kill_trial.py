"""One trial of the kill campaign: a run that is killed a few times, resumed, and examined."""

from __future__ import annotations

import math
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from benchmarks.forks import Process, in_forks
from benchmarks.kill_checks import Violation, after_end, in_order, kept, on_server
from benchmarks.kill_place import Logged, Place, read_log, server_ended
from benchmarks.kill_points import Diary, Point, Strike, Victim, carry_out, read_diary
from benchmarks.kill_run import PATIENCE_SECONDS, Mode, Whole, start
from esper.log.locks import FileLock
from esper_events.events import RunEnded

_POLL_SECONDS = 0.003
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


class Draw:
    """Draws what happens in one trial."""

    def __init__(self, number: str, whole: Whole, mode: Mode) -> None:
        self.random = random.Random(number)
        self._seconds = whole.seconds
        self._points = whole.points_taken_over if mode.taken_over else whole.points

    def volleys(self) -> list[list[Strike]]:
        """The strikes at each process of a run: two to four whose trainer is to be killed, and one
        that may come to its end."""
        drawn: list[list[Strike]] = []
        for _ in range(self.random.choice((2, 2, 3, 4))):
            volley = self._server_strikes(later=bool(drawn))
            victim: Victim = self.random.choice(("trainer", "trainer", "both"))
            drawn.append([*volley, self.strike(victim, later=bool(drawn))])
        return [*drawn, self._server_strikes(later=True)]

    def _server_strikes(self, *, later: bool) -> list[Strike]:
        victims: Sequence[Victim] = ("server", "server", "supervisor")
        count = self.random.random() < 0.4
        return [self.strike(self.random.choice(victims), later=later) for _ in range(count)]

    def strike(self, victim: Victim, *, later: bool) -> Strike:
        """One at ``victim``, at a time or at a point that the whole run comes to; ``later`` in a
        process that goes on with what is done already, and so is shorter."""
        part = self.random.random() ** (2 if later else 1)
        if self.random.random() < _AT_A_TIME:
            return Strike(victim, part * self._seconds)
        # Between as likely as its calls are many, and as likely as every other kind.
        labels = sorted(self._points)
        [label] = self.random.choices(labels, [math.sqrt(self._points[label]) for label in labels])
        return Strike(victim, Point(label, 1 + int(part * self._points[label])))


class Trial:
    """A run on one machine, as it goes from kill to kill."""

    def __init__(self, place: Place, mode: Mode, whole: Whole, draw: Draw) -> None:
        self.kills: list[Kill] = []
        self.place = place
        self.mode = mode
        self.whole = whole
        self.random = draw.random
        self.volleys = draw.volleys()
        self._accompanied = self.random.random() < 0.5
        """Whether another run keeps the server alive all the while."""
        self._diary = Diary(place.diary)

    def violations(self) -> Iterator[Violation]:
        """What does not hold, as soon as it is found."""
        with FileLock(self.place.server / "attached.lock") as attached:
            if self._accompanied:
                attached.acquire(shared=True)
            found = list(self.live())
        yield from found
        if not found:
            yield from after_end(self.place, self.mode, self.whole, read_diary(self.place.diary))
        if not server_ended(self.place):
            yield Violation("not whole", "the server is still there")

    def live(self) -> Iterator[Violation]:
        """Every process of the run in turn, until one comes to its end."""
        logged = Logged((), 0)
        for volley in (*self.volleys, ()):
            before = len(read_diary(self.place.diary).resumed)
            process = start(
                self.place, self.mode, self.whole.seed, volley, resume=bool(logged.records)
            )
            self.attend(process, volley)
            self.note_way(before)
            if process.exitcode == 0:
                return
            if process.exitcode != -signal.SIGKILL:
                yield self.failure(process)
                return
            logged = self.note_kill(self.place)
            told = read_diary(self.place.diary)
            yield from kept(told, logged.events, "the journal")
            yield from in_order(told, logged)
            if logged.records and isinstance(logged.events[-1], RunEnded):
                return
            if logged.records and self.mode.ack == "jetstream":
                yield from self.ask_server(self.place)
            if not logged.records:
                shutil.rmtree(self.place.run, ignore_errors=True)
        yield Violation("not resumed", "the process that nobody killed did not come to its end")

    def attend(self, process: Process, volley: Sequence[Strike]) -> None:
        """Carry out the strikes that come at a time, until the process has ended; at a server that
        is not there as soon as it is."""
        begun, pid = time.perf_counter(), process.pid
        timed = [(s.moment, s) for s in volley if isinstance(s.moment, float)]
        while self.goes_on(process):
            passed = time.perf_counter() - begun
            timed = [
                (moment, strike)
                for moment, strike in timed
                if passed < moment or not carry_out(strike, self.place.server, self._diary, pid)
            ]
            time.sleep(_POLL_SECONDS)

    def goes_on(self, process: Process) -> bool:
        """Whether there is still somebody to attend to."""
        return process.is_alive()

    def note_kill(self, place: Place) -> Logged:
        """Keep in mind what a kill has left at ``place``, and tell."""
        told, logged = read_diary(place.diary), read_log(place.run)
        ended = bool(logged.records) and isinstance(logged.events[-1], RunEnded)
        way: Way = "had ended" if ended else "killed again" if logged.records else "anew"
        unacknowledged = sum(index not in told.acknowledged for index in range(len(logged.records)))
        self.kills.append(Kill(unacknowledged, logged.torn, way))
        return logged

    def note_way(self, before: int) -> None:
        """From where the process went on that came after the last kill."""
        resumed = read_diary(self.place.diary).resumed[before:]
        if self.kills and resumed:
            way: Way = "from a checkpoint" if resumed[0] else "from its start"
            self.kills[-1] = msgspec.structs.replace(self.kills[-1], way=way)

    def ask_server(self, place: Place) -> list[Violation]:
        """Every other time: starting the server changes what a run that is resumed meets."""
        if self.random.random() < 0.5:
            return []
        [missing] = in_forks(lambda told: on_server(place, told), [read_diary(place.diary)], 1)
        return missing

    def failure(self, process: Process) -> Violation:
        """That of a process that ended by itself, and not well."""
        lines = self.place.output.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"nothing printed within {PATIENCE_SECONDS:g} s"
        return Violation("not resumed", f"exit code {process.exitcode}: {last}")
