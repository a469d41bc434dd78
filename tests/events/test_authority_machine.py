"""Who may write next, as a model of a few lines has it, and as the chain has it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from esper_events.certificate import Role, certify
from esper_events.chain import ChainVerifier
from esper_events.errors import ChainError
from esper_events.events import Event, KeyCertified, PlateauDetected
from esper_events.keys import SigningKey
from support.authorities import begin, revoked, rotated, taken, trusted
from support.event_runs import LOG, blueprint
from support.signed_logs import SignedLog

ROOT, *POOL = (SigningKey.generate() for _ in range(6))
PLATEAU = PlateauDetected(time=1.0, step=9, figures={})
KEYS = st.sampled_from(range(len(POOL)))
SIGNERS = st.sampled_from([*range(len(POOL)), None])
"""Keys by their place in the pool; None is the root's."""
ROOT_MOSTLY = SIGNERS | st.none()


def key_of(place: int | None) -> SigningKey:
    return ROOT if place is None else POOL[place]


@dataclass
class Model:
    """Who may write, and what came of each key."""

    trainer: int = 0
    following: int | None = 1
    epoch: int = 0
    workers: set[int] = field(default_factory=set)
    displaced: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    bounds: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=lambda: {0: 1})
    tenures: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])

    def leads(self, place: int | None) -> bool:
        return place == self.trainer and place not in self.gone

    def appoint(self, place: int, index: int, following: int | None) -> None:
        self.displaced.discard(place)
        self.trainer, self.following = place, following
        self.tenures.append((place, index))


class Authorities(RuleBasedStateMachine):
    """Every step is one segment, by any key; the chain takes it where the model does."""

    def __init__(self) -> None:
        super().__init__()
        self.rooted = True
        self.model = Model()
        self.log = self.begin()

    def begin(self) -> SignedLog:
        return begin(POOL[0], POOL[1], ROOT)

    @property
    def index(self) -> int:
        return len(self.log.leaves)

    def chain(self, log: SignedLog) -> ChainVerifier:
        chain = ChainVerifier()
        for segment in log.segments:
            chain.accept(segment)
        return chain

    def attempt(self, signer: int | None, event: Event, epoch: int, *, allowed: bool) -> bool:
        log = self.log.copy().say(key_of(signer), event, epoch=epoch)
        if not allowed:
            with pytest.raises(ChainError):
                self.chain(log)
            return False
        self.chain(log)
        if signer is not None:
            self.model.last[signer] = self.index
        self.log = log
        return True

    @rule(signer=SIGNERS)
    def write_what_trainers_write(self, signer: int | None) -> None:
        self.attempt(signer, PLATEAU, self.model.epoch, allowed=self.model.leads(signer))

    @rule(signer=SIGNERS)
    def write_what_workers_write(self, signer: int | None) -> None:
        allowed = self.model.leads(signer) or signer in self.model.workers
        self.attempt(signer, blueprint(), self.model.epoch, allowed=allowed)

    @precondition(lambda self: self.model.following is not None)
    @rule(following=KEYS)
    def rotate_as_committed(self, following: int) -> None:
        if self.model.following is not None:
            self.rotate(self.model.following, self.model.following, following, True)

    @rule(following=st.none() | KEYS)
    def take_over_as_certified(self, following: int | None) -> None:
        others = set(range(len(POOL))) - self.model.gone - self.model.workers
        for place in sorted(others - {self.model.trainer})[:1]:
            self.take_over(place, 1, self.rooted, following)

    @rule(named=KEYS, following=KEYS, honest=st.booleans())
    def rotate_to_any(self, named: int, following: int, honest: bool) -> None:
        self.rotate(named, named, following, honest)

    @rule(signer=SIGNERS, named=KEYS, following=KEYS, honest=st.booleans())
    def rotate(self, signer: int | None, named: int, following: int, honest: bool) -> None:
        model, index = self.model, self.index
        certified = honest == self.rooted
        event = rotated(POOL[named], POOL[following], ROOT if certified else None)
        allowed = (
            honest and signer == named and named == model.following and named != model.trainer
            and named not in model.gone | model.workers
        )  # fmt: skip
        if self.attempt(signer, event, model.epoch, allowed=allowed):
            model.gone.add(model.trainer)
            model.appoint(named, index, following)

    @rule(
        signer=SIGNERS,
        rise=st.integers(-1, 2),
        certified=st.booleans(),
        following=st.none() | KEYS,
    )
    def take_over(
        self, signer: int | None, rise: int, certified: bool, following: int | None
    ) -> None:
        model, index = self.model, self.index
        key, epoch = key_of(signer), max(0, model.epoch + rise)
        event = taken(self.log, key, epoch, **self.fields(key, certified, following))
        own = signer == model.trainer
        entitled = (
            following is None and (self.rooted or not certified)
            if own
            else certified if self.rooted else not certified and signer == model.following
        )  # fmt: skip
        allowed = (
            signer is not None and epoch > model.epoch and entitled
            and signer not in model.gone | model.workers
        )  # fmt: skip
        if self.attempt(signer, event, epoch, allowed=allowed) and signer is not None:
            model.epoch = epoch
            if not own:
                if model.trainer not in model.gone:
                    model.displaced.add(model.trainer)
                model.appoint(signer, index, following)

    def fields(self, key: SigningKey, certified: bool, following: int | None) -> dict[str, object]:
        told: dict[str, object] = {}
        if certified:
            told["certificate"] = trusted(key, ROOT)
        if following is not None:
            told["next_key"] = POOL[following].public.digest
        return told

    @rule(signer=ROOT_MOSTLY, worker=KEYS)
    def certify_a_worker(self, signer: int | None, worker: int) -> None:
        model = self.model
        certificate = certify(ROOT, POOL[worker].public, Role.WORKER, LOG)
        allowed = (
            self.rooted and (signer is None or model.leads(signer)) and worker != model.trainer
            and worker not in model.workers | model.displaced | model.gone
        )  # fmt: skip
        event = KeyCertified(time=1.0, certificate=certificate)
        if self.attempt(signer, event, model.epoch, allowed=allowed):
            model.workers.add(worker)

    @rule(signer=ROOT_MOSTLY, by=ROOT_MOSTLY, subject=KEYS, back=st.integers(-1, 4))
    def revoke(self, signer: int | None, by: int | None, subject: int, back: int) -> None:
        model, since = self.model, self.index - back
        allowed = (
            self.rooted and by is None and (signer is None or model.leads(signer))
            and 0 <= since <= self.index and since < model.bounds.get(subject, self.index + 1)
        )  # fmt: skip
        event = revoked(POOL[subject], key_of(by), since)
        if self.attempt(signer, event, model.epoch, allowed=allowed):
            model.bounds[subject] = since
            model.gone.add(subject)
            model.workers.discard(subject)
            model.displaced.discard(subject)

    @precondition(lambda self: self.index > 2)
    @rule()
    def replay_the_last_segment(self) -> None:
        log = self.log.copy()
        log.segments.append(log.segments[-1])
        with pytest.raises(ChainError):
            self.chain(log)

    @invariant()
    def they_agree(self) -> None:
        model, authority = self.model, self.chain(self.log).authority
        leader = POOL[model.trainer].public
        assert authority.trainer == (leader if model.leads(model.trainer) else None)
        for size in range(1, self.index + 1):
            place = [place for place, since in model.tenures if since < size][-1]
            tenure = authority.tenure_at(size)
            assert tenure is not None
            assert tenure.key == POOL[place].public
        behind = [s for place, s in model.bounds.items() if model.last.get(place, -1) >= s]
        bound = authority.distrust.first()
        assert (None if bound is None else bound.since) == min(behind, default=None)


class Unvouched(Authorities):
    """The same in a log without a root."""

    def __init__(self) -> None:
        super().__init__()
        self.rooted = False

    def begin(self) -> SignedLog:
        return begin(POOL[0], POOL[1])


CALM = settings(
    max_examples=60,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRooted = Authorities.TestCase
TestRooted.settings = CALM
TestUnvouched = Unvouched.TestCase
TestUnvouched.settings = CALM
