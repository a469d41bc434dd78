"""From where on which keys of a log are not trusted: what the log says of that, and what its reader
was told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper_events.errors import RevocationError
from esper_events.keys import PublicKey
from esper_events.place import Place
from esper_events.revocation import Revocation, check_revocation, since_when


@dataclass(frozen=True, slots=True)
class Bound:
    """What ``key`` signed from event ``since`` on is not to be trusted."""

    key: PublicKey
    since: int

    def __str__(self) -> str:
        return f"{self.key.fingerprint}, which the root revoked from event {self.since} on"


class Distrust:
    """Follows who signs in one log, and the revocations in it."""

    def __init__(self) -> None:
        self._log = ""
        self._last: dict[bytes, tuple[PublicKey, int]] = {}
        """The last event that each key signed."""
        self._on_record: list[Revocation] = []
        self._told: tuple[Revocation, ...] = ()

    def note(self, place: Place, index: int) -> None:
        """Event ``index`` stands in ``place``."""
        self._log = place.log
        self._last[place.signer.id] = place.signer, index

    def revoke(self, revocation: Revocation, root: PublicKey | None, index: int) -> PublicKey:
        """The key that ``revocation`` takes back at event ``index`` of a log of ``root``.

        Raises:
            RevocationError: that root did not sign it for this log, or its bound is still to come,
                or not before the one that the key had.
        """
        by, key = check_revocation(revocation)
        if by != root:
            raise RevocationError(
                f"{key.fingerprint} is revoked by {by.fingerprint}, which is not the log's root"
            )
        if key == root:
            raise RevocationError("the root revokes itself: nobody is above it")
        if revocation.log != self._log:
            raise RevocationError(
                f"the revocation is for log {revocation.log!r}, this is {self._log!r}"
            )
        before = since_when(self._on_record, key, self._log)
        if revocation.since > index or (before is not None and before <= revocation.since):
            known = "" if before is None else f", and was from event {before} on already"
            raise RevocationError(
                f"{key.fingerprint} is revoked from event {revocation.since} on at event {index}"
                f"{known}"
            )
        self._on_record.append(revocation)
        return key

    def heed(self, told: Sequence[Revocation]) -> None:
        """Hold the log to revocations that it does not hold itself, each checked before. Of which
        root they are is for who tells of them: a thief's log may have none."""
        self._told = tuple(told)

    def bound(self, key: PublicKey) -> Bound | None:
        """From where on ``key`` is not to be trusted, if it was revoked."""
        since = since_when((*self._on_record, *self._told), key, self._log)
        return None if since is None else Bound(key, since)

    def first(self) -> Bound | None:
        """The first bound behind which the log has events that the revoked key signed."""
        known = ((self.bound(key), last) for key, last in self._last.values())
        behind = [bound for bound, last in known if bound is not None and bound.since <= last]
        return min(behind, key=lambda bound: bound.since, default=None)
