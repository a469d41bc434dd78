"""What a newer version wrote, for an auditor who has an older one.

A version after this one may know further kinds of event, and further fields of a kind: never
another meaning of what there is (ADR 37). Form, signature, chain and place of such an event are
checked as those of any other; what it says is passed over. In a log of this version, or of an older
one, the same bytes are damage.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, cast

import msgspec

from esper_events import __version__
from esper_events.anchor import Anchor
from esper_events.chain import ChainVerifier
from esper_events.codec import MAX_EVENT_BYTES
from esper_events.errors import CodecError
from esper_events.events import Event
from esper_events.place import Place
from esper_events.schemas import kinds
from esper_events.versions import is_newer

_KIND = re.compile(r"[a-z_]{1,40}(\.[a-z_]{1,40})+")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, Any])
_KINDS = kinds()


class AuditVerifier(ChainVerifier):
    """The chain of a run's log, of a newer version too: for whoever checks or copies it, and draws
    nothing from what it means.

    Attribute, besides its: ``passed_over``, how many events there are of each kind that this
    version does not know.
    """

    def __init__(self, trusted: Anchor | None = None) -> None:
        super().__init__(trusted)
        self.passed_over: Counter[str] = Counter()

    def unread(self, data: bytes) -> Event | None:
        """The event without the fields that this version does not know; None for another kind."""
        if not self.of_newer_version(data):
            return super().unread(data)
        fields = _fields(data)
        known = _KINDS.get(fields["kind"])
        return None if known is None else _without_others(fields, known)

    def pass_over(self, data: bytes, place: Place, index: int) -> str | None:
        """Only the trainer may write what nobody can look up in a table of roles."""
        kind = str(_fields(data)["kind"])
        self.passed_over[kind] += 1
        if self.ended:
            return "an event after the end of the run"
        if place.signer != self.authority.trainer:
            return f"{place.signer.fingerprint} is not the trainer's key and may not write {kind}"
        return self.admission.pass_over(place, index)

    @property
    def findings(self) -> tuple[str, ...]:
        """What to tell whoever reads the verdict of it, a line each."""
        if not is_newer(self.version):
            return ()
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.passed_over.items()))
        return (
            f"the log was written by Esper {self.version}, this is {__version__}: it is whole, but "
            f"what this version does not know was passed over (events: {kinds or 'none'})",
        )


def _fields(data: bytes) -> dict[str, Any]:
    """The fields of what may be an event of a newer version: canonical, as far as can be told of
    a kind that is not known, and with a kind and a time.

    Raises:
        CodecError: it is none.
    """
    try:
        if len(data) > MAX_EVENT_BYTES:
            raise CodecError(f"an event of {len(data)} bytes, at most {MAX_EVENT_BYTES}")
        fields = _decoder.decode(data)
        canonical = _encoder.encode(fields)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise CodecError(f"not an event: {error}") from error
    kind = fields.get("kind")
    if canonical != data or next(iter(fields), "") != "kind":
        raise CodecError("not the canonical encoding of an event")
    if not (isinstance(kind, str) and _KIND.fullmatch(kind)):
        raise CodecError("not an event: its kind is no name")
    if not isinstance(fields.get("time"), float):
        raise CodecError(f"{kind} without a time")
    return fields


def _without_others(fields: dict[str, Any], known: type[msgspec.Struct]) -> Event:
    names = {field.encode_name for field in msgspec.structs.fields(known)} | {"kind"}
    ours = {name: value for name, value in fields.items() if name in names}
    try:
        return cast("Event", msgspec.convert(ours, known, builtin_types=(bytes,)))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CodecError(f"not an event: {error}") from error
