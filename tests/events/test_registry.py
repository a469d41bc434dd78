"""What a registry may say, who may write in it, and what is refused of somebody who knows how."""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from esper_events.certificate import Certificate, Role, certify
from esper_events.codec import RUN_CODEC
from esper_events.errors import ChainError, CodecError
from esper_events.keys import SigningKey
from esper_events.place import Place
from esper_events.registry import (
    REGISTRY,
    REGISTRY_CODEC,
    HeadRecorded,
    RegistryBegun,
    RegistryEvent,
    RunRegistered,
    WriterAdmitted,
    WriterRevoked,
    kind_of,
)
from esper_events.registry_chain import RegistryVerifier
from esper_events.registry_rules import RegistryRules
from esper_events.revocation import Revocation, revoke
from support.log_runs import started
from support.registries import (
    admitted,
    begun,
    cancelled,
    expired,
    granted,
    head,
    job_ended,
    parked,
    registered,
    released,
    revoked,
    sealed_next,
    submitted,
)

ANN, BOB, EVE, ROOT = (SigningKey.generate() for _ in range(4))
BEGUN = begun(ANN)
ONE, OTHER = bytes(32), bytes([1]) * 32


def refusal(*events: RegistryEvent) -> str | None:
    """Why the last of ``events`` cannot stand there; those before it can."""
    rules = RegistryRules()
    *before, last = events
    for event in before:
        assert rules.admit(event) is None
    return rules.admit(last)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ((registered(ANN),), "begins with registry.run_registered, wanted registry.begun"),
        ((BEGUN, BEGUN), "begins a second time"),
        ((BEGUN, registered(ANN), registered(ANN)), "run r is registered a second time"),
        (
            (BEGUN, registered(ANN), registered(ANN, genesis="cd" * 32)),
            "a second time, with another genesis or key",
        ),
        ((BEGUN, registered(ANN), registered(EVE)), "a second time, with another genesis or key"),
        ((BEGUN, registered(ANN, genesis="AB" * 32)), "no SHA-256 in hex"),
        ((BEGUN, registered(ANN, log="no/run")), "is no id of a run's log"),
        ((BEGUN, msgspec.structs.replace(registered(ANN), trainer_key=bytes(32))), "small order"),
        ((BEGUN, head(ANN, 3)), "which was never registered"),
        ((BEGUN, registered(ANN), msgspec.structs.replace(head(ANN, 3), note=b"x")), "not a check"),
        (
            (BEGUN, registered(ANN), msgspec.structs.replace(head(ANN, 3, "s"), log="r")),
            "is a checkpoint of log s",
        ),
        ((BEGUN, registered(ANN), head(ANN, 3), head(ANN, 2)), "goes from 3 events to 2"),
        ((BEGUN, registered(ANN), head(ANN, 3), head(ANN, 3)), "goes from 3 events to 3"),
        (
            (BEGUN, registered(ANN), head(ANN, 3), head(ANN, 3, root=OTHER)),
            "two histories of run r: its first 3 events differ",
        ),
        ((BEGUN, submitted(), submitted()), "job j is submitted a second time"),
        ((BEGUN, submitted("a b")), "is no id of a job"),
        ((BEGUN, submitted(memory=-1)), "wanted none below 0"),
        ((BEGUN, submitted(seconds=float("nan"))), "wanted none below 0"),
        ((BEGUN, granted(0)), "job j was never submitted"),
        ((BEGUN, submitted(), granted(1)), "gets lease epoch 1, wanted 0"),
        ((BEGUN, submitted(), granted(0), granted(1)), "is held by ann in lease epoch 0"),
        ((BEGUN, submitted(), granted(0), expired(0), granted(0)), "wanted 1"),
        (
            (BEGUN, submitted(), granted(0), expired(0), granted(1, log="s")),
            "is written in log r, not in s",
        ),
        (
            (BEGUN, submitted(), submitted("k"), granted(0), granted(0, job="k")),
            "log r is that of job j",
        ),
        ((BEGUN, submitted(), granted(0), expired(0, "bob")), "is held by ann, not by bob"),
        ((BEGUN, submitted(), expired(0)), "lease.expired: nobody holds job j"),
        (
            (BEGUN, submitted(), granted(0), expired(0), granted(1), job_ended(0)),
            "job.ended: job j is in lease epoch 1, not 0",
        ),
        ((BEGUN, submitted(), granted(0), job_ended(0, log="s")), "is written in log r, not in s"),
        ((BEGUN, submitted(), granted(0), job_ended(0), granted(1)), "is ended and takes no lease"),
        ((BEGUN, submitted(), granted(0), parked(0), granted(1)), "is parked and takes no lease"),
        ((BEGUN, submitted(), cancelled(), granted(0)), "is cancelled and takes no lease"),
        ((BEGUN, submitted(), granted(0), parked(1)), "job.parked: job j is in lease epoch 0"),
        ((BEGUN, parked(-1)), "job j was never submitted"),
        ((BEGUN, submitted(), cancelled(), cancelled()), "is cancelled already"),
        ((BEGUN, cancelled()), "job j was never submitted"),
    ],
)
def test_what_no_registry_says(events: tuple[RegistryEvent, ...], reason: str) -> None:
    assert reason in (refusal(*events) or "nothing")


@pytest.mark.parametrize(
    "story",
    [
        (granted(0), expired(0), granted(1, "bob"), released(1), granted(2), job_ended(2)),
        (granted(0), cancelled(), job_ended(0)),
        (granted(0), cancelled(), expired(0)),
        (parked(-1), cancelled()),
        (granted(0), expired(0), parked(0)),
    ],
)
def test_what_becomes_of_a_job(story: tuple[RegistryEvent, ...]) -> None:
    assert refusal(BEGUN, submitted(), *story) is None


MOVES: list[Callable[[int], RegistryEvent]] = [
    granted,
    expired,
    released,
    parked,
    job_ended,
    lambda _: cancelled(),
    lambda _: submitted(),
]


@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(-1, 4)), max_size=25))
def test_a_job_has_one_holder_and_each_lease_is_the_next(
    moves: list[tuple[Callable[[int], RegistryEvent], int]],
) -> None:
    """Of what is admitted, every grant is the next and is given while none stands."""
    rules, epochs, standing = RegistryRules(), list[int](), False
    assert rules.admit(BEGUN) is None
    for make, epoch in moves:
        event, fork = make(epoch), rules.fork()
        if fork.admit(event) is not None:
            before = rules.fork()
            assert rules.admit(event) is not None, "a fork says what the rules say"
            assert (rules.runs, rules._jobs) == (before.runs, before._jobs)
            continue
        assert rules.admit(event) is None
        match kind_of(event):
            case "lease.granted":
                assert not standing
                epochs.append(epoch)
                standing = True
            case "lease.expired" | "job.released" | "job.ended" | "job.parked":
                standing = False
    assert epochs == list(range(len(epochs)))


def accepted(*segments: tuple[SigningKey, tuple[RegistryEvent, ...]]) -> RegistryVerifier:
    """A registry of these segments; raises ``ChainError`` for what is not to stand in it."""
    chain = RegistryVerifier()
    for key, events in segments:
        chain.accept(sealed_next(chain, key, events))
    return chain


CERTIFIED = begun(ANN, certify(ROOT, ANN.public, Role.TRAINER))


def test_writers_come_in_by_a_certificate_of_the_root() -> None:
    chain = accepted(
        (ANN, (CERTIFIED, registered(ANN))),
        (BOB, (admitted(certify(ROOT, BOB.public, Role.TRAINER)), registered(BOB, "s"))),
        (ANN, (head(ANN, 3),)),
        (BOB, (head(BOB, 5),)),  # who may have taken the run over
    )
    assert list(chain.admission.rules.runs) == ["r", "s"]
    assert chain.admission.rules.runs["r"].events == 5


def test_without_a_root_the_first_writer_admits() -> None:
    chain = accepted(
        (ANN, (BEGUN,)), (BOB, (admitted(certify(ANN, BOB.public, Role.TRAINER, REGISTRY)),))
    )
    assert chain.admission.writer(BOB.public.id) == BOB.public


def test_a_key_that_the_root_took_back_writes_no_more() -> None:
    for log in ("", REGISTRY):
        chain = accepted(
            (ANN, (CERTIFIED, registered(ANN), registered(BOB, "s"), head(BOB, 3, "s"))),
            (BOB, (admitted(certify(ROOT, BOB.public, Role.TRAINER)), registered(BOB, "t"))),
            (ANN, (revoked(revoke(ROOT, BOB.public, log)),)),
        )
        assert not chain.admission.may_write(BOB.public)
        assert list(chain.admission.rules.runs) == ["r", "s", "t"], "what it wrote stands"
        for key, event, reason in (
            (BOB, registered(BOB, "u"), "was taken back and may not write any more"),
            (ANN, head(BOB, 5, "s"), "signed neither by its trainer's key nor"),
            (ANN, revoked(revoke(ROOT, BOB.public, log)), "was taken back before"),
            (ANN, admitted(certify(ROOT, BOB.public, Role.TRAINER)), "has been admitted before"),
        ):
            reason_got = chain.admission.fork().admit(
                event, Place(REGISTRY, key.public, 0, chain.events, chain.head)
            )
            assert reason in (reason_got or "nothing")


FORGERIES = {
    "which admits nobody here": ((ANN, (CERTIFIED, revoked(revoke(EVE, ANN.public)))),),
    "the revocation is for log 'r'": ((ANN, (CERTIFIED, revoked(revoke(ROOT, BOB.public, "r")))),),
    "does not fit the revocation": (
        (ANN, (CERTIFIED, revoked(replace(revoke(ROOT, BOB.public), key=EVE.public.raw)))),
    ),
    f"signed by key {EVE.public.id.hex()}": ((ANN, (BEGUN,)), (EVE, (registered(EVE),))),
    "who admits writers here is": (
        (ANN, (CERTIFIED,)),
        (EVE, (admitted(certify(EVE, EVE.public, Role.TRAINER)),)),
    ),
    "for log 'r', this is 'registry'": (
        (ANN, (CERTIFIED,)),
        (EVE, (admitted(certify(ROOT, EVE.public, Role.TRAINER, "r")),)),
    ),
    "certified as worker, not as trainer": (
        (ANN, (CERTIFIED,)),
        (EVE, (admitted(certify(ROOT, EVE.public, Role.WORKER)),)),
    ),
    f"signed by key {BOB.public.id.hex()}": ((BOB, (BEGUN,)),),
    "has been admitted before": (
        (ANN, (CERTIFIED, admitted(certify(ROOT, ANN.public, Role.TRAINER)))),
    ),
    "signed neither by its trainer's key nor by that of a writer": (
        (ANN, (BEGUN, registered(ANN), head(EVE, 3))),
    ),
    "with another genesis or key": ((ANN, (BEGUN, registered(ANN), registered(EVE))),),
    "does not fit the certificate": (
        (ANN, (begun(ANN, msgspec.structs.replace(CERTIFIED.certificate, signature=bytes(64))),)),
    ),
}


# Keys are drawn anew by every process, which all have to collect the same tests.
@pytest.mark.parametrize("reason", FORGERIES, ids=range(len(FORGERIES)))
def test_forgeries_are_refused_each_with_its_reason(reason: str) -> None:
    with pytest.raises(ChainError) as refused:
        accepted(*FORGERIES[reason])
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"log": "other"}, "a registry is log 'registry', this is 'other'"),
        ({"epoch": 1}, "lease epoch 1 in the registry, which has none"),
        ({"previous": bytes(32)}, "does not follow"),
        ({"first_index": 7}, "begins with event 7, wanted 1"),
    ],
)
def test_segments_out_of_place_are_refused(changes: dict[str, object], reason: str) -> None:
    chain = accepted((ANN, (BEGUN,)))
    segment = sealed_next(chain, ANN, (registered(ANN),), **changes)
    if "log" in changes:
        chain = RegistryVerifier()
        segment = sealed_next(chain, ANN, (BEGUN,), **changes)
    with pytest.raises(ChainError, match=reason):
        chain.accept(segment)


def test_each_log_holds_its_own_kinds_only() -> None:
    with pytest.raises(CodecError):
        REGISTRY_CODEC.decode(RUN_CODEC.encode(started(ANN)))
    with pytest.raises(CodecError):
        RUN_CODEC.decode(REGISTRY_CODEC.encode(BEGUN))


FIXED = Certificate(root=bytes(32), key=bytes(32), role=Role.TRAINER, log="", signature=bytes(64))
TAKEN_BACK = Revocation(root=bytes(32), key=bytes(32), log="", since=0, signature=bytes(64))
EVENTS = (
    RegistryBegun(time=1.0, writer=bytes(32)),
    RegistryBegun(time=1.0, writer=bytes(32), certificate=FIXED),
    WriterAdmitted(time=1.0, certificate=FIXED),
    WriterRevoked(time=1.0, revocation=TAKEN_BACK),
    RunRegistered(time=1.0, log="r", trainer_key=bytes(32), genesis="ab" * 32),
    HeadRecorded(time=1.0, log="r", note=b"note"),
    submitted(),
    granted(1),
    expired(1),
    released(1),
    parked(1),
    cancelled(),
    job_ended(1),
)
GOLDEN = [
    "3f7996fec56fbb3c",
    "60d4edf790dc918c",
    "5f670e61c194e7fe",
    "6c87ad1e392e22f8",
    "41f7d7ba0b4a757c",
    "aa0882ee215bc35b",
    "c6b07f0713ce20d8",
    "4985906e9420b4bf",
    "f7e2a76dc55cfc78",
    "ffb5be63f1ca765f",
    "cd8b92fee141ed0d",
    "b154058802c920c2",
    "b6f0716dfb37e3a8",
]
"""The first 8 bytes of the SHA-256 of each of them."""


def test_events_keep_their_bytes() -> None:
    encoded = [REGISTRY_CODEC.encode(event) for event in EVENTS]
    assert [REGISTRY_CODEC.decode(data) for data in encoded] == list(EVENTS)
    assert {type(event) for event in EVENTS} == set(typing.get_args(RegistryEvent))
    assert [hashlib.sha256(data).hexdigest()[:16] for data in encoded] == GOLDEN
