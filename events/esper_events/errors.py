"""The errors that reading or proving a log can raise; all derive from `EsperEventsError`."""

from __future__ import annotations


class EsperEventsError(Exception):
    """Base of every error of this package."""


class CodecError(EsperEventsError):
    """Bytes that are not the canonical encoding of an event, or an event that has none."""


class SegmentError(EsperEventsError):
    """Bytes that are not a segment; ``byte`` is the offset in it at which that showed."""

    def __init__(self, message: str, byte: int = 0) -> None:
        super().__init__(message)
        self.byte = byte


class KeyFileError(EsperEventsError):
    """A key file that is missing, unreadable, open to others, or holds no Ed25519 key."""


class PublicKeyError(EsperEventsError):
    """A public key that no honest signer has: wrong length, small order, not canonical."""


class CertificateError(EsperEventsError):
    """Bytes that are no certificate, or one that does not vouch for the key in question."""


class RevocationError(EsperEventsError):
    """Bytes that are no revocation, or one that its root did not sign or that cannot count."""


class CheckpointError(EsperEventsError):
    """Bytes that are not a checkpoint in the form this package writes."""


class TextError(EsperEventsError):
    """Lines that are not spelt as their form has them: the reason of another of these errors."""


class FingerprintError(EsperEventsError):
    """Text that is not the fingerprint of a key."""


class TrustError(EsperEventsError):
    """A proof was to be checked without anything from outside that it could be held to."""


class ProofError(EsperEventsError):
    """A proof that does not hold, is not spelt as one, or that a log cannot give."""


class ExportError(EsperEventsError):
    """A run that cannot be exported to one file; the message says what to do."""


class ImportRefusedError(EsperEventsError):
    """An exported file that cannot become a run directory there; the message says what to do."""


def cause(error: OSError | ValueError) -> str:
    """Why a file cannot be used, for a line that a person reads."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error)


class ChainError(EsperEventsError):
    """A log that is not what its writer signed, with the place where that shows.

    ``segment`` counts from 0, ``byte`` is the offset in the file or bytes that were read, and
    ``event`` the index of the event in the log; each is None where it says nothing.
    """

    def __init__(
        self,
        message: str,
        segment: int | None = None,
        byte: int | None = None,
        event: int | None = None,
    ) -> None:
        places = (("segment", segment), ("byte", byte), ("event", event))
        where = ", ".join(f"{name} {value}" for name, value in places if value is not None)
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.segment = segment
        self.byte = byte
        self.event = event


class DistrustError(ChainError):
    """A log that is whole, and in which a key that was revoked signed behind the root's bound."""
