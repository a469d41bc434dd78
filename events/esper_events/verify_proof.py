"""Checking a proof offline, with nothing of the run at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from esper_events.anchor import Anchor
from esper_events.certificate import Role, check_certificate
from esper_events.checkpoint import SignedCheckpoint
from esper_events.codec import decode_event
from esper_events.distrust import Bound
from esper_events.errors import CertificateError, CodecError, ProofError, TrustError, cause
from esper_events.events import Event, Record
from esper_events.keys import PublicKey
from esper_events.merkle import consistent_roots, included_root, leaf_hash
from esper_events.proof import ConsistencyProof, InclusionProof, Proof, load_proof
from esper_events.revocation import Revocation, since_when
from esper_events.words import describe


@dataclass(frozen=True, slots=True)
class ProofReport:
    """What `verify_proof` found; where ``ok`` is False nothing but ``messages`` says anything.

    ``log`` is the log's id, ``events`` the number that the proof's checkpoint counts, ``key`` the
    fingerprint of its signer, ``root`` that of the root key whose certificate for the signer it
    carries ("" without one), ``kept`` the size of the checkpoint that the caller kept and that
    bears the proof out. An inclusion proof shows ``event``, its fields as in the JSON Schemas, at
    ``index`` of the log, in ``words``. The first of ``messages`` is the verdict; the others say
    what is not excluded.
    """

    ok: bool
    messages: tuple[str, ...]
    log: str = ""
    events: int = 0
    key: str = ""
    root: str = ""
    kept: int | None = None
    index: int | None = None
    event: dict[str, Any] | None = None
    words: str = ""

    @property
    def message(self) -> str:
        """The verdict in one line."""
        return self.messages[0]

    @property
    def details(self) -> tuple[str, ...]:
        """What is worth telling a person below the verdict."""
        return (f"event: {self.words}",) if self.words else ()


def verify_proof(
    path: Path,
    trusted: Anchor | None = None,
    kept: SignedCheckpoint | None = None,
    revoked: Sequence[Revocation] = (),
) -> ProofReport:
    """Check the proof in the file at ``path``.

    Args:
        path: an inclusion or a consistency proof.
        trusted: the key that is trusted to have signed the log, or a root's, or the fingerprint of
            either.
        kept: a checkpoint of the log from a source that the caller trusts: the one that a
            consistency proof goes on from; an inclusion proof has to be one in its very tree.
            Where nothing is ``trusted``, it has to be of the key that signed the proof's.
        revoked: keys that the caller knows to have been taken back, each checked.

    Never raises for what it finds in ``path``: a proof that does not hold is a report not ok.

    Raises:
        TrustError: there is nothing to hold the proof to: an inclusion proof needs ``trusted`` or
            ``kept``, a consistency proof ``kept``.
    """
    try:
        proof = load_proof(path)
    except ProofError as error:
        return ProofReport(False, (str(error),))
    except (OSError, ValueError) as error:
        return ProofReport(False, (f"cannot be read: {cause(error)}",))
    try:
        if isinstance(proof, ConsistencyProof):
            return _consistency(proof, trusted, kept, revoked)
        return _inclusion(proof, trusted, kept, revoked)
    except (ProofError, CertificateError) as error:
        return ProofReport(False, (str(error),))


def _inclusion(
    proof: InclusionProof,
    trusted: Anchor | None,
    kept: SignedCheckpoint | None,
    revoked: Sequence[Revocation],
) -> ProofReport:
    if trusted is None and kept is None:
        raise TrustError(
            "anybody can make a proof under a key of their own: name the fingerprint or the key "
            "that you trust, or a checkpoint that you kept (--fingerprint, --key, --checkpoint)"
        )
    root = _check_signer(proof, trusted, kept, revoked)
    event = _included(proof, kept)
    checkpoint, index = proof.signed.checkpoint, proof.index
    verdict = (
        f"proven: this is event {index} of log {checkpoint.log}, one of its first "
        f"{checkpoint.size}, signed by {_named(proof.key, root)}"
    )
    notes = [
        "nothing is shown of the log's other events, nor that it keeps the rules (verify the run "
        "or an export of it)"
    ]
    if kept is None:
        notes.append(
            "another history signed by the owner of the key is not excluded (compare with a "
            "checkpoint that was kept elsewhere)"
        )
    return replace(
        _proven(proof, root, kept, (verdict, *notes)),
        index=index,
        event=msgspec.json.decode(msgspec.json.encode(event)),
        words=describe(Record(index, event)).strip(),
    )


def _consistency(
    proof: ConsistencyProof,
    trusted: Anchor | None,
    kept: SignedCheckpoint | None,
    revoked: Sequence[Revocation],
) -> ProofReport:
    if kept is None:
        raise TrustError(
            "a consistency proof goes on from a checkpoint that you kept: name it (--checkpoint)"
        )
    root = _check_signer(proof, trusted, kept, revoked)
    _check_consistent(proof, kept)
    checkpoint = proof.signed.checkpoint
    verdict = (
        f"proven: log {checkpoint.log} went on from the kept checkpoint's {proof.old} events to "
        f"{checkpoint.size} and changed none of them, signed by {_named(proof.key, root)}"
    )
    notes = (
        "nothing is shown of what the events say, nor that the log keeps the rules (verify the "
        "run or an export of it)",
        f"a history rolled back or rewritten after event {checkpoint.size - 1} by the owner of the "
        "key is not excluded (keep the proof's own checkpoint for the next time)",
    )
    return _proven(proof, root, kept, (verdict, *notes))


def _proven(
    proof: Proof,
    root: PublicKey | None,
    kept: SignedCheckpoint | None,
    messages: tuple[str, ...],
) -> ProofReport:
    """What both kinds of proof show, once they hold."""
    if kept is not None and not kept.is_signed_by(proof.key):
        note = "the kept checkpoint is of another key: the log's of before, or a stranger's"
        messages = (*messages, note)
    return ProofReport(
        ok=True,
        messages=messages,
        log=proof.signed.checkpoint.log,
        events=proof.signed.checkpoint.size,
        key=proof.key.fingerprint,
        root="" if root is None else root.fingerprint,
        kept=None if kept is None else kept.checkpoint.size,
    )


def _named(key: PublicKey, root: PublicKey | None) -> str:
    certified = "" if root is None else f", certified by the root {root.fingerprint}"
    return f"{key.fingerprint}{certified}"


def _check_signer(
    proof: Proof,
    trusted: Anchor | None,
    kept: SignedCheckpoint | None,
    revoked: Sequence[Revocation],
) -> PublicKey | None:
    """The root key that vouches for the proof's signer, None where none does."""
    key, signed = proof.key, proof.signed
    log, hint = signed.checkpoint.log, signed.checkpoint.key_hint(key)
    root = None
    if proof.certificate is not None:
        root = check_certificate(proof.certificate, key, Role.TRAINER, log)
    vouched = (key,) if root is None else (key, root)
    since = since_when(revoked, key, log)
    reason = None
    if trusted is not None and not any(trusted.vouches_for(one) for one in vouched):
        reason = f"made under the key {_named(key, root)}, wanted {trusted.fingerprint}"
    elif signed.key_hint != hint:
        reason = (
            f"its checkpoint names the key {signed.key_hint.hex()}, wanted {hint.hex()} for "
            f"{key.fingerprint} in log {log}"
        )
    elif not signed.is_signed_by(key):
        reason = f"the signature does not fit its checkpoint's text and the key {key.fingerprint}"
    elif kept is not None and kept.checkpoint.log != log:
        reason = f"of log {log}, the kept checkpoint is of {kept.checkpoint.log}"
    elif trusted is None and kept is not None and not kept.is_signed_by(key):
        # Of two keys nothing shows that they are one log's but somebody's word for the newer.
        reason = (
            f"signed by {key.fingerprint}, the kept checkpoint is not; where the log's key was "
            "rotated since, name the one that you trust now, or the root's"
        )
    elif since is not None and signed.checkpoint.size > since:
        reason = f"its checkpoint counts {signed.checkpoint.size} events and is signed by "
        reason += str(Bound(key, since))
    if reason is not None:
        raise ProofError(reason)
    return root


def _included(proof: InclusionProof, kept: SignedCheckpoint | None) -> Event:
    """The event, if the tree of the checkpoint, which is the kept one's, holds it."""
    checkpoint = proof.signed.checkpoint
    size = checkpoint.size
    if kept is not None and kept.checkpoint.size != size:
        raise ProofError(
            f"its checkpoint counts {size} events, the kept one {kept.checkpoint.size}: only a "
            "consistency proof shows whether the one goes on from the other"
        )
    if kept is not None and kept.checkpoint.root != checkpoint.root:
        raise ProofError(f"its {size} events are not the kept checkpoint's: the log has forked")
    root = included_root(leaf_hash(proof.event), proof.index, size, proof.path)
    if root != checkpoint.root:
        raise ProofError(
            f"the path leads from this event at place {proof.index} of {size} to the root "
            f"{root.hex()}, the checkpoint has {checkpoint.root.hex()}"
        )
    try:
        return decode_event(proof.event)
    except CodecError as error:
        raise ProofError(f"event {proof.index}: {error}") from error


def _check_consistent(proof: ConsistencyProof, kept: SignedCheckpoint) -> None:
    old, new = kept.checkpoint, proof.signed.checkpoint
    if proof.old != old.size:
        raise ProofError(f"goes on from {proof.old} events, the kept checkpoint counts {old.size}")
    older, newer = consistent_roots(old.size, old.root, new.size, proof.path)
    for name, root, wanted in (("kept", older, old.root), ("proof's", newer, new.root)):
        if root != wanted:
            raise ProofError(
                f"the path leads to the root {root.hex()}, the {name} checkpoint has {wanted.hex()}"
            )
