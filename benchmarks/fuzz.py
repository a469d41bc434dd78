"""Fuzzing every decoder of `esper_events`: spoilt input gets the declared error, and quickly.

An input is drawn from the seed, the decoder's name and its number, so that any of them can be drawn
again: ``python -m benchmarks.fuzz --seed S --only NAME --first N --inputs 1``. What counts as a
failure: any other exception than the declared one, more than `PATIENCE` seconds of processor time,
more memory than `MEMORY`, input that is accepted though it is spelt in another way than the encoder
spells it, and signed input that is accepted though a byte of it was changed.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.fuzz_inputs import (
    BEGINNING,
    BEGUN,
    CERTIFICATE,
    ENDING,
    ENTRIES,
    EVENTS,
    FIRST,
    JOURNAL_BYTES,
    KEPT,
    KEY,
    LOG,
    NOTE,
    REVOCATION,
    SECOND,
    SUBMITTED,
    Files,
    make_files,
    note,
    spoil,
)
from esper_events.anchor import Fingerprint
from esper_events.certificate import (
    Role,
    check_certificate,
    decode_certificate,
    encode_certificate,
)
from esper_events.chain import ChainVerifier
from esper_events.checkpoint import CHECKPOINT, parse_checkpoint
from esper_events.codec import MAX_EVENT_BYTES, decode_event, encode_event
from esper_events.errors import (
    CertificateError,
    ChainError,
    CheckpointError,
    CodecError,
    FingerprintError,
    KeyFileError,
    ProofError,
    PublicKeyError,
    RevocationError,
    SegmentError,
)
from esper_events.events import Record
from esper_events.framing import END, JOURNAL, frame, longest_valid_prefix, read_frames
from esper_events.keys import PublicKey, SigningKey
from esper_events.merkle import inclusion_path, leaf_hash
from esper_events.proof import InclusionProof, parse_proof
from esper_events.registry import REGISTRY, REGISTRY_CODEC
from esper_events.registry_chain import RegistryVerifier
from esper_events.revocation import check_revocation, decode_revocation, encode_revocation
from esper_events.segment import DOMAIN, GENESIS, open_segment, seal, segment_hash
from esper_events.verify import Report, verify_path
from esper_events.verify_proof import ProofReport, verify_proof
from esper_events.words import describe

PATIENCE = 5.0
"""Processor seconds that one input may take."""
MEMORY = 2 << 30
"""Bytes of address space that the campaign may take."""

Feed = Callable[[bytes], bool]


class WrongError(Exception):
    """A decoder accepted what it had to refuse."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """``feed`` says whether it accepted its input, and raises where something is wrong."""

    name: str
    good: Sequence[bytes]
    feed: Feed


@dataclass(slots=True)
class Outcome:
    """What a decoder did with its inputs; ``failure`` is a traceback, or empty."""

    name: str
    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    failure: str = ""


def decoders(place: Path, files: Files) -> list[Decoder]:
    """All decoders; those that read files find theirs in the directory ``place``."""
    reading = _FromFiles(place, files)
    return [
        Decoder("event", EVENTS, _event),
        Decoder("segment", [FIRST, SECOND], _segment),
        Decoder("segment in its chain", [FIRST, SECOND], _chain),
        Decoder("segment signed anew", [FIRST, SECOND], _signed_anew),
        Decoder("event under a good signature", EVENTS, _signed_event),
        Decoder("registry's event", ENTRIES, _entry),
        Decoder("registry's event under a good signature", [*ENTRIES, SUBMITTED], _signed_entry),
        Decoder("frames", [JOURNAL_BYTES, JOURNAL_BYTES + END], _frames),
        Decoder("checkpoint", [NOTE, KEPT], _checkpoint),
        Decoder("proof", files.proofs, reading.proof),
        Decoder("event in a good proof", EVENTS, reading.signed_proof),
        Decoder("journal", [JOURNAL_BYTES], reading.journal),
        Decoder("checkpoint of a run", [NOTE, KEPT], reading.checkpoint),
        Decoder("export", [files.export], reading.export),
        Decoder("public key", [KEY.public.raw, bytes(32), b"\xff" * 32], _public_key),
        Decoder("public key file", [files.public], reading.public_key),
        Decoder("private key file", [files.private], reading.private_key),
        Decoder("certificate", [encode_certificate(CERTIFICATE)], _certificate),
        Decoder("revocation", [encode_revocation(REVOCATION)], _revocation),
        Decoder("fingerprint", _FINGERPRINTS, _fingerprint),
    ]


def campaign(decoder: Decoder, seed: int, first: int, inputs: int) -> Outcome:
    """Feed a decoder the inputs from number ``first`` on, up to the first failure."""
    outcome = Outcome(decoder.name)
    for number in range(first, first + inputs):
        data = spoil(Random(f"{seed}/{decoder.name}/{number}"), decoder.good)
        start = time.process_time()
        try:
            with _patience():
                outcome.accepted += decoder.feed(data)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - a decoder of native code may panic past Exception
            again = f"--seed {seed} --only {decoder.name!r} --first {number} --inputs 1"
            outcome.failure = f"{again}\n{data[:2000]!r}\n{traceback.format_exc()}"
            return outcome
        outcome.inputs += 1
        outcome.slowest = max(outcome.slowest, time.process_time() - start)
    return outcome


@contextmanager
def _patience() -> Iterator[None]:
    def give_up(_number: int, _frame: object) -> None:
        raise TimeoutError(f"one input took more than {PATIENCE} s")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _want(holds: bool, what: str) -> None:
    if not holds:
        raise WrongError(what)


def _event(data: bytes) -> bool:
    try:
        event = decode_event(data)
    except CodecError:
        return False
    _want(encode_event(event) == data, "accepted another spelling")
    _want(describe(Record(0, event)).isprintable(), "words that are not printable")
    return True


def _segment(data: bytes) -> bool:
    try:
        segment = open_segment(data)
    except SegmentError:
        return False
    _want(segment.signed + segment.signature == data, "lost bytes")
    _want(not segment.is_signed_by(KEY.public) or data in (FIRST, SECOND), "a forged signature")
    return True


def _accepts(data: bytes) -> bool:
    verifier = ChainVerifier()
    verifier.accept(FIRST)
    try:
        verifier.accept(data)
    except ChainError:
        return False
    return True


def _chain(data: bytes) -> bool:
    accepted = _accepts(data)
    _want(accepted == (data == SECOND), "accepted what was changed, or refused what was not")
    return accepted


def _signed_anew(data: bytes) -> bool:
    signed = data[:-64]
    return _accepts(signed + KEY.sign(DOMAIN + signed))


def _signed_event(data: bytes) -> bool:
    if not 1 <= len(data) <= MAX_EVENT_BYTES:
        return False
    previous, at = segment_hash(FIRST), len(BEGINNING)
    accepted = _accepts(seal([data], log=LOG, first_index=at, previous=previous, key=KEY))
    _want(not accepted or _event(data), "accepted what is no event")
    return accepted


def _entry(data: bytes) -> bool:
    try:
        event = REGISTRY_CODEC.decode(data)
    except CodecError:
        return False
    _want(REGISTRY_CODEC.encode(event) == data, "accepted another spelling")
    return True


def _signed_entry(data: bytes) -> bool:
    if not 1 <= len(data) <= MAX_EVENT_BYTES:
        return False
    verifier = RegistryVerifier()
    verifier.accept(seal([BEGUN], log=REGISTRY, first_index=0, previous=GENESIS, key=KEY))
    try:
        verifier.accept(seal([data], log=REGISTRY, first_index=1, previous=verifier.head, key=KEY))
    except ChainError:
        return False
    _want(_entry(data), "accepted what is no event")
    return True


def _frames(data: bytes) -> bool:
    accepted = False
    for terminated in (False, True):
        with suppress(ChainError):
            found = b"".join(frame(segment) for _, segment in read_frames(data, 0, terminated))
            _want(data.startswith(found), "read what is not there")
            accepted = True
    return accepted


def _checkpoint(data: bytes) -> bool:
    try:
        signed = parse_checkpoint(data)
    except CheckpointError:
        return False
    _want(signed.note() == data, "accepted another spelling")
    _want(not signed.is_signed_by(KEY.public) or data in (NOTE, KEPT), "a forged signature")
    return True


def _public_key(data: bytes) -> bool:
    try:
        key = PublicKey(data)
    except PublicKeyError:
        return False
    _want(not key.verify(bytes(64), b""), "a key under which nothing is a signature")
    return True


def _certificate(data: bytes) -> bool:
    try:
        certificate = decode_certificate(data)
        check_certificate(certificate, KEY.public, Role.TRAINER, LOG)
    except CertificateError:
        return False
    _want(certificate == CERTIFICATE, "a forged certificate")
    return True


def _revocation(data: bytes) -> bool:
    try:
        revocation = decode_revocation(data)
        check_revocation(revocation)
    except RevocationError:
        return False
    _want(revocation == REVOCATION, "a forged revocation")
    return True


_FINGERPRINTS = [KEY.public.fingerprint.encode(), KEY.public.openssh_fingerprint.encode()]


def _fingerprint(data: bytes) -> bool:
    try:
        vouches = Fingerprint(data.decode("utf-8", "surrogateescape")).vouches_for(KEY.public)
    except FingerprintError:
        return False
    _want(vouches == (data in _FINGERPRINTS), "another fingerprint of the key")
    return True


def _whole(report: Report | ProofReport) -> bool:
    # The file is there and can be read: any other answer hides an error that nobody foresaw.
    _want(not report.message.startswith("cannot be read"), report.message)
    return report.ok


class _FromFiles:
    """The decoders that read files."""

    def __init__(self, place: Path, files: Files) -> None:
        self._files = files
        self._file = place / "file"
        self._run = place / "run"
        (self._run / JOURNAL).parent.mkdir(parents=True)
        self._key = place / "key"
        self._key.touch(0o600)

    def proof(self, data: bytes) -> bool:
        try:
            _want(parse_proof(data).text() == data, "accepted another spelling")
        except ProofError:
            return False
        self._file.write_bytes(data)
        accepted = _whole(verify_proof(self._file, KEY.public, parse_checkpoint(KEPT)))
        if data.startswith(b"c2sp.org/"):
            accepted |= _whole(verify_proof(self._file, KEY.public))
        _want(accepted == (data in self._files.proofs), "accepted what was changed")
        return accepted

    def signed_proof(self, data: bytes) -> bool:
        """An event that its owner put into the tree, whatever it is."""
        if not data:
            return False
        events = [*BEGINNING, data, *ENDING]
        path = tuple(inclusion_path([leaf_hash(event) for event in events], len(BEGINNING)))
        signed = parse_checkpoint(note(events))
        proof = InclusionProof(KEY.public, data, len(BEGINNING), path, signed)
        self._file.write_bytes(proof.text())
        accepted = _whole(verify_proof(self._file, KEY.public))
        _want(accepted == _event(data), "a proof of what is no event, or none of what is")
        return accepted

    def journal(self, data: bytes) -> bool:
        (self._run / CHECKPOINT).unlink(missing_ok=True)
        (self._run / JOURNAL).write_bytes(data)
        accepted = _whole(verify_path(self._run))
        _want(not accepted or data in (frame(FIRST), JOURNAL_BYTES), "accepted what was changed")
        _, valid = longest_valid_prefix(self._run / JOURNAL)
        _want(JOURNAL_BYTES.startswith(data[:valid]), "a valid beginning that was changed")
        return accepted

    def checkpoint(self, data: bytes) -> bool:
        (self._run / JOURNAL).write_bytes(JOURNAL_BYTES)
        (self._run / CHECKPOINT).write_bytes(data)
        accepted = _whole(verify_path(self._run))
        _want(accepted == (data in (NOTE, KEPT)), "accepted what was changed")
        return accepted

    def export(self, data: bytes) -> bool:
        self._file.write_bytes(data)
        accepted = _whole(verify_path(self._file))
        _want(accepted == (data == self._files.export), "accepted what was changed")
        return accepted

    def public_key(self, data: bytes) -> bool:
        self._file.write_bytes(data)
        try:
            PublicKey.load(self._file)
        except (KeyFileError, PublicKeyError):
            return False
        return True

    def private_key(self, data: bytes) -> bool:
        self._key.write_bytes(data)
        try:
            SigningKey.load(self._key)
        except (KeyFileError, PublicKeyError):
            return False
        return True


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; 1 if a decoder failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all decoders together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", metavar="NAME", help="one decoder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        chosen = decoders(Path(name), make_files())
        if options.only is not None:
            chosen = [decoder for decoder in chosen if decoder.name == options.only]
        if not chosen:
            parser.error(f"--only: got {options.only!r}, wanted the name of a decoder")
        each = -(-options.inputs // len(chosen))
        print(f"seed {options.seed}, {each:,} inputs from {options.first} for each decoder\n")
        print("| decoder | inputs | accepted | slowest |")
        print("|---|---:|---:|---:|")
        outcomes = [_tell(campaign(d, options.seed, options.first, each)) for d in chosen]
    total = sum(outcome.inputs for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.failure]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{total:,} inputs, {len(failed)} failures, at most {peak:.0f} MiB of memory")
    for outcome in failed:
        print(f"\n{outcome.name}: {outcome.failure}")
    return 1 if failed else 0


def _tell(outcome: Outcome) -> Outcome:
    state = "FAILED" if outcome.failure else f"{outcome.accepted:,}"
    slowest = f"{outcome.slowest * 1e3:.1f} ms"
    print(f"| {outcome.name} | {outcome.inputs:,} | {state} | {slowest} |", flush=True)
    return outcome


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.exit(main())
