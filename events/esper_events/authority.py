"""Who may write in a log: the trainer that its first event names, and the root behind that."""

from __future__ import annotations

from msgspec import UNSET

from esper_events.certificate import Certificate, Role, check_certificate
from esper_events.errors import CertificateError
from esper_events.events import Event, RunStarted
from esper_events.keys import PublicKey


class Authority:
    """Follows one log from its first event, beside `esper_events.rules.Rules`; whoever appends and
    whoever audits ask the same.

    Attributes: ``root`` and ``certificate``, the root key that vouches for the trainer's and how it
    does; None before the first event, and in a log without a root.
    """

    def __init__(self) -> None:
        self.root: PublicKey | None = None
        self.certificate: Certificate | None = None

    def admit(self, event: Event, signer: PublicKey, log: str) -> str | None:
        """The reason why ``event``, signed by ``signer``, cannot stand in ``log``, else None."""
        if not isinstance(event, RunStarted):
            return None
        if event.trainer_key != signer.raw:
            return f"the log names another key as its trainer's than {signer.fingerprint}"
        if event.certificate is UNSET:
            return None
        try:
            self.root = check_certificate(event.certificate, signer, Role.TRAINER, log)
        except CertificateError as error:
            return str(error)
        self.certificate = event.certificate
        return None
