"""Only the log's own writer, in order and without a gap, gets a segment accepted."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from esper_events.chain import ChainVerifier
from esper_events.codec import encode_event
from esper_events.errors import ChainError
from esper_events.events import PlateauDetected
from esper_events.keys import SigningKey
from esper_events.segment import GENESIS, seal, segment_hash
from support.event_runs import Run, ended, seal_all, started

PLATEAU = PlateauDetected(time=0.0, step=1, figures={})


def refuses(verifier: ChainVerifier, data: bytes, reason: str) -> ChainError:
    with pytest.raises(ChainError, match=reason) as caught:
        verifier.accept(data)
    return caught.value


def test_a_whole_run_is_accepted_and_counted(run: Run) -> None:
    verifier = ChainVerifier()
    indices = [r.index for data in run.segments for r in verifier.accept(data)]
    assert indices == list(range(7))
    assert (verifier.events, verifier.segments, verifier.log) == (7, 3, "run-1")
    assert verifier.head == segment_hash(run.segments[-1])
    assert verifier.ended
    assert verifier.key == run.key.public


def test_a_verifier_before_the_first_segment_knows_nothing() -> None:
    verifier = ChainVerifier()
    assert (verifier.events, verifier.segments, verifier.log) == (0, 0, "")
    assert (verifier.head, verifier.key, verifier.ended) == (GENESIS, None, False)


def test_a_pinned_key_is_required_of_every_segment(run: Run) -> None:
    ChainVerifier(run.key.public).accept(run.segments[0])
    other = SigningKey.generate()
    error = refuses(ChainVerifier(other.public), run.segments[0], "signed by key")
    assert error.segment == 0


def test_dropped_doubled_and_swapped_segments_are_refused(run: Run) -> None:
    first, second, third = run.segments
    for order, wrong in (
        ((second,), 0),
        ((first, third), 1),
        ((first, first), 1),
        ((first, second, second), 2),
        ((first, second, first), 2),
        ((second, first), 0),
    ):
        verifier = ChainVerifier()
        for data in order[:wrong]:
            verifier.accept(data)
        with pytest.raises(ChainError) as caught:
            verifier.accept(order[wrong])
        assert caught.value.segment == wrong


def test_the_first_segment_must_be_a_genesis(key: SigningKey) -> None:
    data = [encode_event(started(key))]
    late = seal(data, log="r", first_index=3, previous=GENESIS, key=key)
    refuses(ChainVerifier(), late, "begins with event 3, wanted 0")
    child = seal(data, log="r", first_index=0, previous=b"\1" * 32, key=key)
    refuses(ChainVerifier(), child, "hashes differ")
    headless = seal([encode_event(PLATEAU)], log="r", first_index=0, previous=GENESIS, key=key)
    refuses(ChainVerifier(), headless, "does not begin with run.started")
    refuses(ChainVerifier(key.public), headless, "begins with plateau.detected")


def test_a_segment_of_another_key_is_refused(run: Run) -> None:
    """A worker's key, or a thief's, signs in the trainer's place."""
    verifier, thief = ChainVerifier(), SigningKey.generate()
    verifier.accept(run.segments[0])
    data = [encode_event(PLATEAU)]
    forged = seal(data, log="run-1", first_index=3, previous=verifier.head, key=thief)
    refuses(verifier, forged, "signed by key")


def test_a_forged_key_id_does_not_help(run: Run) -> None:
    verifier, thief = ChainVerifier(), SigningKey.generate()
    verifier.accept(run.segments[0])
    data = [encode_event(PLATEAU)]
    forged = seal(data, log="run-1", first_index=3, previous=verifier.head, key=thief)
    forged = forged.replace(thief.public.id, run.key.public.id)
    refuses(verifier, forged, "signature does not fit")


def test_a_segment_of_another_run_of_the_same_trainer_is_refused(run: Run, key: SigningKey) -> None:
    other = seal_all(key, run.groups, log="run-2")
    verifier = ChainVerifier()
    verifier.accept(run.segments[0])
    refuses(verifier, other[1], "belongs to log 'run-2', not to 'run-1'")


def test_a_rewritten_middle_breaks_the_link_behind_it(
    run: Run, key: SigningKey, make: Callable[..., Run]
) -> None:
    """Even the key's owner cannot exchange a segment without signing all that follow anew."""
    *before, last = run.groups[0]
    other = make((*before, msgspec.structs.replace(last, time=9.0)), *run.groups[1:])
    verifier = ChainVerifier()
    verifier.accept(other.segments[0])
    refuses(verifier, run.segments[1], "hashes differ")


def test_a_genesis_that_names_another_trainer_is_refused(key: SigningKey) -> None:
    thief = SigningKey.generate()
    data = [encode_event(started(key))]
    forged = seal(data, log="r", first_index=0, previous=GENESIS, key=thief)
    refuses(ChainVerifier(), forged, "signed by key")
    refuses(ChainVerifier(thief.public), forged, "names another key")


def test_a_trainer_key_of_small_order_is_refused(key: SigningKey) -> None:
    weak = msgspec.structs.replace(started(key), trainer_key=b"\1" + bytes(31))
    data = seal([encode_event(weak)], log="r", first_index=0, previous=GENESIS, key=key)
    refuses(ChainVerifier(), data, "small order")


def test_a_lease_epoch_never_goes_back(key: SigningKey) -> None:
    verifier = ChainVerifier()
    data = [encode_event(started(key))]
    verifier.accept(seal(data, log="r", first_index=0, previous=GENESIS, key=key, epoch=2))
    data = [encode_event(PLATEAU)]
    stale = seal(data, log="r", first_index=1, previous=verifier.head, key=key, epoch=1)
    refuses(verifier, stale, "lease epoch 1 after epoch 2")


def test_nothing_follows_the_end(key: SigningKey, make: Callable[..., Run]) -> None:
    run = make((started(key), ended()), (PLATEAU,))
    verifier = ChainVerifier()
    verifier.accept(run.segments[0])
    assert verifier.ended
    refuses(verifier, run.segments[1], "after the end of the run")


def test_an_event_that_is_not_canonical_is_refused_under_a_good_signature(run: Run) -> None:
    verifier = ChainVerifier()
    verifier.accept(run.segments[0])
    bad = encode_event(PLATEAU).replace(b"\xa4step\x01", b"\xa4step\xcc\x01")
    data = seal([bad], log="run-1", first_index=3, previous=verifier.head, key=run.key)
    error = refuses(verifier, data, "canonical")
    assert (error.segment, error.event) == (1, 3)


def test_of_two_faults_in_a_segment_the_first_is_named(run: Run) -> None:
    twice, bad = encode_event(started(run.key)), encode_event(PLATEAU)[:-1]
    for events, reason in (([twice, bad], "second time"), ([bad, twice], "not an event")):
        verifier = ChainVerifier()
        verifier.accept(run.segments[0])
        data = seal(events, log="run-1", first_index=3, previous=verifier.head, key=run.key)
        error = refuses(verifier, data, reason)
        assert (error.segment, error.event) == (1, 3)


def test_a_verifier_that_refused_accepts_nothing_more(run: Run) -> None:
    verifier = ChainVerifier()
    verifier.accept(run.segments[0])
    refuses(verifier, run.segments[2], "begins with event")
    refuses(verifier, run.segments[1], "earlier segment was refused")


def test_the_root_at_a_watched_size_is_kept(run: Run) -> None:
    whole = run.verifier()
    for size in range(1, 9):
        verifier = ChainVerifier()
        verifier.watch(size)
        for data in run.segments:
            verifier.accept(data)
        assert verifier.tree.root() == whole.tree.root()
        assert (size in verifier.watched_roots) == (size <= 7)
        assert (verifier.watched_roots.get(size) == whole.tree.root()) == (size == 7)
