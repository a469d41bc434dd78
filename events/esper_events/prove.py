"""Making proofs from a run that one has, without the key that signed it."""

from __future__ import annotations

from pathlib import Path

from esper_events.checkpoint import SignedCheckpoint
from esper_events.codec import encode_event
from esper_events.errors import ProofError
from esper_events.merkle import consistency_path, inclusion_path, leaf_hash
from esper_events.proof import ConsistencyProof, InclusionProof
from esper_events.reader import LogReader
from esper_events.tenure import Tenure


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


def _read(
    path: Path, kept: SignedCheckpoint | None, index: int | None
) -> tuple[Tenure, SignedCheckpoint, list[bytes], bytes]:
    """Whose key signed the checkpoint, that, the hashes of the leaves it counts, and an event."""
    reader, hashes, event = LogReader(path, kept=kept), [], b""
    for record in reader.records():
        data = encode_event(record.event)  # the bytes that were read: an event has one encoding
        hashes.append(leaf_hash(data))
        if record.index == index:
            event = data
    signed = reader.signed
    if signed is None:
        raise ProofError("no signed checkpoint: the run's writer signs one when the run closes")
    signer = reader.verifier.authority.tenure_at(signed.checkpoint.size)
    if signer is None:
        raise ProofError("the signed checkpoint is from before the log had a key")
    return signer, signed, hashes[: signed.checkpoint.size], event
