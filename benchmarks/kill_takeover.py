"""A trial of the kill campaign in which machines take the run over from each other.

A process that was killed, or that only stands still, is taken for dead: another one, here or on
another machine, goes on in a higher lease epoch with what the server has. One that stood still
wakes up beside it, and must find that it has lost the run.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.forks import Process, in_forks
from benchmarks.kill_checks import Violation, in_order, left_elsewhere, stream, thrown_away
from benchmarks.kill_place import Place, machines, segments
from benchmarks.kill_points import read_diary
from benchmarks.kill_run import ENDED, FENCED, Mode, Whole, start
from benchmarks.kill_trial import Draw, Trial
from esper.log.takeover import Lease

_MACHINES = 3
_AWAKE_SECONDS = 1.0
"""At most so long after another process has begun, one that stood still goes on."""


@dataclass(frozen=True)
class _Turn:
    """Who trains: in which lease epoch, on which machine."""

    epoch: int
    machine: int


class Takeovers(Trial):
    """A run on several machines, as it goes from kill to kill."""

    def __init__(self, place: Place, mode: Mode, whole: Whole, draw: Draw) -> None:
        super().__init__(place, mode, whole, draw)
        if self.random.random() < 0.5:
            number = self.random.randrange(len(self.volleys) - 1)
            self.volleys[number][-1] = draw.strike("pause", later=number > 0)
        self._places = machines(place.base, _MACHINES)
        self._held: dict[Place, set[bytes]] = {}
        self._asleep: Process | None = None
        self._asleep_on = -1
        self._wakes = math.inf

    def live(self) -> Iterator[Violation]:
        """Every process of the run in turn, until one comes to its end."""
        yield from self._turns()
        yield from self._wake_up()
        first = next(place for place in self._places if segments(place.run))
        [history] = in_forks(stream, [first], 1)
        for place in self._places:
            self._hold(place)
            if segments(place.run) == history:
                self.place = place
            elif segments(place.run):
                [found] = in_forks(lambda p: left_elsewhere(p, history), [place], 1)
                yield from found
            yield from thrown_away(place, self._held[place], history)

    def _hold(self, place: Place) -> None:
        """Keep in mind what the journal there holds: none of it may be lost."""
        self._held.setdefault(place, set()).update(segments(place.run))

    def _turns(self) -> Iterator[Violation]:
        turn = _Turn(0, 0)
        for volley in (*self.volleys, ()):
            place, before = self._places[turn.machine], len(read_diary(self.place.diary).resumed)
            lease = Lease(turn.epoch, f"machine {turn.machine}", "run", "the one before is silent")
            process = start(place, self.mode, self.whole.seed, volley, lease=lease)
            self.attend(process, volley)
            self.note_way(before)
            self._hold(place)
            if process.is_alive():
                self._asleep, self._asleep_on = process, turn.machine
                self._wakes = time.perf_counter() + self.random.random() * _AWAKE_SECONDS
            elif process.exitcode in (0, ENDED):
                return
            elif process.exitcode != -signal.SIGKILL:
                yield self.failure(process)
                return
            else:
                yield from in_order(read_diary(place.diary), self.note_kill(place))
                if segments(place.run):
                    yield from self.ask_server(place)
            turn = self._next(turn)
        yield Violation("not resumed", "the process that nobody killed did not come to its end")

    def _next(self, turn: _Turn) -> _Turn:
        """Mostly a new epoch somewhere; sometimes the same process again, where it was killed."""
        if turn.machine != self._asleep_on and self.random.random() < 0.25:
            return turn
        awake = [machine for machine in range(_MACHINES) if machine != self._asleep_on]
        return _Turn(turn.epoch + 1, self.random.choice(awake))

    def goes_on(self, process: Process) -> bool:
        """Until the process stands still; one that did so before is woken when it is time."""
        if self._asleep is not None and time.perf_counter() > self._wakes:
            _wake(self._asleep)
            self._wakes = math.inf
        return process.is_alive() and not _stands_still(process)

    def _wake_up(self) -> Iterator[Violation]:
        """Who stood still has lost the run; or had it to its end, or was killed, before that."""
        if self._asleep is not None:
            _wake(self._asleep)
            self._asleep.join()
            if self._asleep.exitcode not in (FENCED, ENDED, 0, -signal.SIGKILL):
                yield self.failure(self._asleep)


def _wake(process: Process) -> None:
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGCONT)


def _stands_still(process: Process) -> bool:
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] == "T"
