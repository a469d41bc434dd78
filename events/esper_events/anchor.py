"""What a verifier trusts before it reads anything: a key, or no more than its fingerprint."""

from __future__ import annotations

import re
from dataclasses import dataclass

from esper_events.errors import FingerprintError
from esper_events.keys import PublicKey
from esper_events.lines import shown

_FINGERPRINT = re.compile(r"ed25519:[0-9a-f]{64}|SHA256:[A-Za-z0-9+/]{43}")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The fingerprint of a key, as Esper prints it or as ``ssh-keygen -lf trainer.pub`` does.

    Raises:
        FingerprintError: ``fingerprint`` is spelt like neither.
    """

    fingerprint: str

    def __post_init__(self) -> None:
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise FingerprintError(
                f"got {shown(self.fingerprint)}, wanted ed25519: and 64 hex digits, or SHA256: and "
                "43 of base64"
            )

    def vouches_for(self, key: PublicKey) -> bool:
        """Whether this is the fingerprint of ``key``."""
        return self.fingerprint in (key.fingerprint, key.openssh_fingerprint)


Anchor = PublicKey | Fingerprint
"""Says through ``vouches_for`` whether a key that turns up is the one that is trusted, and through
``fingerprint`` which one is."""
