"""Following the log of a run segment by segment: its chain, its rules, and who may write it."""

from __future__ import annotations

from esper_events import __version__
from esper_events.admission import Admission
from esper_events.anchor import Anchor
from esper_events.any_chain import Chain, Founder
from esper_events.authority import Authority
from esper_events.codec import RUN_CODEC, Codec
from esper_events.errors import CodecError
from esper_events.events import Event, KeyRotated, Record, RunStarted, RunTakenOver
from esper_events.keys import PublicKey
from esper_events.place import Place
from esper_events.versions import is_newer, version_in


class ChainVerifier(Chain[Event, Record]):
    """The chain of a run's log.

    Attributes, besides those of every chain: ``admission`` (what may stand in it next), ``key``
    (the trainer's), ``authority`` (who may write what), ``version`` (of the Esper that wrote it,
    "" before the first event), ``epoch`` (lease epoch of the last segment) and ``ended`` (the
    run's last event was seen).
    """

    genesis = "run.started"

    def __init__(self, trusted: Anchor | None = None) -> None:
        super().__init__(trusted)
        self.admission = Admission()
        self.version = ""

    @property
    def key(self) -> PublicKey | None:
        """The trainer's key, revoked or not; before the first segment the one that is pinned."""
        tenures = self.authority.tenures
        return tenures[-1].key if tenures else self._pinned

    @property
    def authority(self) -> Authority:
        """Who may write what."""
        return self.admission.authority

    @property
    def epoch(self) -> int:
        """Lease epoch of the last segment, 0 before the first."""
        return self.admission.lease.epoch or 0

    @property
    def ended(self) -> bool:
        """Whether the last accepted event is the end of the run."""
        return self.admission.rules.ended

    @property
    def codec(self) -> Codec[Event]:
        """That of runs."""
        return RUN_CODEC

    def founder(self, event: Event) -> Founder | None:
        """The trainer that ``run.started`` names."""
        return (
            Founder(event.trainer_key, event.certificate) if isinstance(event, RunStarted) else None
        )

    def introduced(self, event: Event) -> bytes | None:
        """The trainer that ``key.rotated`` or ``run.taken_over`` names."""
        return event.trainer_key if isinstance(event, KeyRotated | RunTakenOver) else None

    def writer(self, key_id: bytes) -> PublicKey | None:
        """The key with this id that has or had a role in the log."""
        return self.authority.key(key_id)

    def unread(self, data: bytes) -> Event | None:
        """Refuses, and names the versions where the reader is older than the log."""
        try:
            return super().unread(data)
        except CodecError as error:
            if not self.of_newer_version(data):
                raise
            raise CodecError(
                f"{error}; the log was written by Esper {self.version or version_in(data)}, read "
                f"it with that or a later one: this is {__version__}"
            ) from error

    def of_newer_version(self, data: bytes) -> bool:
        """Whether the log, of which ``data`` is the next event, is of a version after this."""
        started = self.admission.rules.started
        return is_newer(self.version if started else version_in(data))

    @property
    def findings(self) -> tuple[str, ...]:
        """What to tell whoever reads the verdict, a line each."""
        return ()

    def admit(self, event: Event, place: Place, index: int) -> str | None:
        """Hold ``event`` to rules, lease and authority."""
        if isinstance(event, RunStarted):
            self.version = event.version
        return self.admission.admit(event, place, index)

    def record(self, index: int, event: Event) -> Record:
        """``event`` with its place in the log."""
        return Record(index, event)
