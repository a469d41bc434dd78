"""Making proofs from a run that one has, without the key that signed it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from esper_events.certificate import Certificate
from esper_events.checkpoint import SignedCheckpoint
from esper_events.codec import encode_event
from esper_events.errors import ProofError
from esper_events.keys import PublicKey
from esper_events.merkle import consistency_path, inclusion_path, leaf_hash
from esper_events.proof import ConsistencyProof, InclusionProof
from esper_events.reader import LogReader


def prove_event(path: Path, index: int) -> InclusionProof:
    """That event ``index`` stands in the run at ``path``, a run directory or an exported file.

    Raises:
        ProofError: the run's signed checkpoint does not count such an event, or there is none.
        ChainError: the run is damaged.
        OSError: the run cannot be read.
    """
    signer, signed, hashes, event = _read(path, None, index)
    if not 0 <= index < signed.checkpoint.size:
        raise ProofError(
            f"got event {index}, the signed checkpoint counts {signed.checkpoint.size}, from 0 "
            "(the run's writer signs the next one when the run closes, at the latest)"
        )
    nodes = tuple(inclusion_path(hashes, index))
    return InclusionProof(signer.key, event, index, nodes, signed, signer.certificate)


def prove_growth(path: Path, kept: SignedCheckpoint) -> ConsistencyProof:
    """That the run at ``path`` went on from the checkpoint ``kept``.

    Raises:
        ProofError: the run's own checkpoint is older than ``kept``, or there is none.
        ChainError: the run is damaged, or does not bear out ``kept``.
        OSError: the run cannot be read.
    """
    signer, signed, hashes, _ = _read(path, kept, None)
    old, size = kept.checkpoint.size, signed.checkpoint.size
    if old > size:
        raise ProofError(
            f"the kept checkpoint counts {old} events, the run's own only {size}: ask for a proof "
            "when the run's writer has signed the next one"
        )
    nodes = tuple(consistency_path(hashes, old))
    return ConsistencyProof(signer.key, old, nodes, signed, signer.certificate)


class _Signer(NamedTuple):
    key: PublicKey
    certificate: Certificate | None


def _read(
    path: Path, kept: SignedCheckpoint | None, index: int | None
) -> tuple[_Signer, SignedCheckpoint, list[bytes], bytes]:
    """Who signed, the checkpoint, the hashes of all leaves that it counts, and event ``index``."""
    reader, hashes, event = LogReader(path, kept=kept), [], b""
    for record in reader.records():
        data = encode_event(record.event)  # the bytes that were read: an event has one encoding
        hashes.append(leaf_hash(data))
        if record.index == index:
            event = data
    key, signed = reader.verifier.key, reader.signed
    if key is None or signed is None:
        raise ProofError("no signed checkpoint: the run's writer signs one when the run closes")
    signer = _Signer(key, reader.verifier.authority.certificate)
    return signer, signed, hashes[: signed.checkpoint.size], event
