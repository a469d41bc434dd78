"""Work in forks of this process, some at a time."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

FORK = multiprocessing.get_context("fork")
Process = multiprocessing.context.ForkProcess
Argument = TypeVar("Argument")
Result = TypeVar("Result")


def in_forks(
    work: Callable[[Argument], Result], arguments: Iterable[Argument], jobs: int
) -> Iterator[Result]:
    """What ``work`` gives for each of the arguments, as it comes, each from a process of its own.

    An argument is asked for when it is its turn. Raises ``RuntimeError`` where this process has
    more threads than one, a fork of which could hang, and with the traceback of work that failed.
    """
    waiting, running = iter(arguments), dict[Connection, Process]()
    while True:
        while len(running) < jobs:
            try:
                connection, process = _begin(work, next(waiting))
            except StopIteration:
                break
            running[connection] = process
        if not running:
            return
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            yield _end(ready, running.pop(ready))


def _begin(work: Callable[[Argument], object], argument: Argument) -> tuple[Connection, Process]:
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("this process has threads: set OMP_NUM_THREADS=1")
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_answer, args=(theirs, work, argument))
    process.start()
    theirs.close()
    return ours, process


def _answer(connection: Connection, work: Callable[[Argument], object], argument: Argument) -> None:
    try:
        answer = work(argument), ""
    except Exception:  # noqa: BLE001 - it is raised where the answer is read
        answer = None, traceback.format_exc()
    connection.send(answer)


def _end(connection: Connection, process: Process) -> Any:
    try:
        result, error = connection.recv()
    except EOFError:
        result, error = None, "it ended without an answer"
    process.join()
    connection.close()
    if error:
        raise RuntimeError(f"in a fork: {error}")
    return result
