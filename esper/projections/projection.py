"""What every projection is: a pure fold of records into a state that has a canonical digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Generic, Protocol, TypeVar

import msgspec

from esper.projections.canonical import canonical_digest
from esper.projections.lattice import ProjectionError
from esper_events.events import Record
from esper_events.registry import RegistryRecord


class State(Protocol):
    """What a fold carries from record to record; never changed in place."""

    @property
    def records(self) -> int:
        """Number of records folded; also the index of the next one."""
        ...

    def digest(self) -> str:
        """SHA-256 in hex of what the state says, whatever its mappings' order and ``records``."""
        ...


S = TypeVar("S", bound=State)
R = TypeVar("R", bound=Record | RegistryRecord)


@dataclass(frozen=True)
class Folding(Generic[S, R]):
    """One reading of a log whose records are ``R``.

    ``fold`` takes a state and the next record to the next state, and raises ``ProjectionError``
    for a record that cannot stand there.
    """

    name: str
    initial: S
    fold: Callable[[S, R], S]

    def fold_all(self, records: Iterable[R], state: S | None = None) -> S:
        """Fold every record in order, from ``state`` or from the beginning.

        Raises:
            ProjectionError: a record cannot stand where it does; the message names its index.
        """
        return reduce(self._step, records, self.initial if state is None else state)

    def _step(self, state: S, record: R) -> S:
        try:
            return self.fold(state, record)
        except ProjectionError as error:
            raise ProjectionError(f"event {record.index}: {error}") from error


@dataclass(frozen=True)
class Projection(Folding[S, Record]):
    """One reading of a run's log.

    ``words`` says a state in lines for people; names and reasons in them are the log's own and may
    hold control characters.
    """

    words: Callable[[S], list[str]]


class FoldedState(msgspec.Struct, frozen=True):
    """Base of states; a subclass names itself by its ``tag``, which enters its digest."""

    records: int = 0

    def digest(self) -> str:
        """SHA-256 in hex of the canonical form, ``records`` counted as 0: events about other
        things do not change what the state says."""
        return canonical_digest(msgspec.structs.replace(self, records=0))


F = TypeVar("F", bound=FoldedState)


def count(state: F, record: Record | RegistryRecord) -> F:
    """``state`` with ``record`` counted.

    Raises:
        ProjectionError: it is not the next record.
    """
    if record.index != state.records:
        raise ProjectionError(
            f"got record {record.index}, wanted {state.records}: a gap in the log"
        )
    return msgspec.structs.replace(state, records=state.records + 1)
