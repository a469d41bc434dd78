"""The registry's fold says what its records say, with one digest however it is reached."""

from __future__ import annotations

import pytest

from esper.projections.lattice import ProjectionError
from esper.projections.registry import REGISTRY
from esper_events.certificate import Role, certify
from esper_events.keys import SigningKey
from esper_events.registry import RegistryEvent, RegistryRecord
from esper_events.revocation import revoke
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
    submitted,
)

KEY = SigningKey.generate()
STORY: tuple[RegistryEvent, ...] = (
    begun(KEY),
    registered(KEY),
    head(KEY, 3),
    head(KEY, 7, root=b"\1" * 32),
    submitted("j"),
    submitted("k"),
    submitted("l"),
    submitted("m"),
    granted(0, "ann", "j", "r"),
    granted(0, "ann", "k", "s"),
    expired(0, "ann", "j"),
    granted(1, "bob", "j", "r"),
    cancelled("j"),
    released(0, "k"),
    parked(-1, "l"),
    granted(0, "eve", "m", "t"),
    job_ended(0, "m", "t"),
)


def records(*story: RegistryEvent) -> list[RegistryRecord]:
    return [RegistryRecord(index, event) for index, event in enumerate(story)]


def test_the_state_says_what_happened() -> None:
    state = REGISTRY.fold_all(records(*STORY))
    assert state.writers == (KEY.public.raw,)
    run = state.runs["r"]
    assert (run.events, run.root, run.heads) == (7, "01" * 32, 2)
    jobs = {name: (job.state, job.epoch, job.holder) for name, job in state.jobs.items()}
    assert jobs == {
        "j": ("cancelled", 1, "bob"),
        "k": ("waiting", 0, ""),
        "l": ("parked", -1, ""),
        "m": ("ended", 0, ""),
    }
    assert (state.jobs["j"].expired, state.jobs["m"].outcome) == (1, "completed")
    assert state.jobs["k"].reason == "asked to stop"


@pytest.mark.parametrize("cut", range(len(STORY) + 1))
def test_the_digest_is_the_same_from_any_state_on(cut: int) -> None:
    every = records(*STORY)
    whole, part = REGISTRY.fold_all(every), REGISTRY.fold_all(every[:cut])
    again = REGISTRY.fold_all(every[cut:], part)
    assert (again, again.digest()) == (whole, whole.digest())
    if cut < len(STORY):
        assert part.digest() != whole.digest()


def test_the_digest_does_not_depend_on_the_order_of_what_is_unrelated() -> None:
    first = STORY[0]
    one = REGISTRY.fold_all(records(first, registered(KEY, "x"), registered(KEY, "y")))
    two = REGISTRY.fold_all(records(first, registered(KEY, "y"), registered(KEY, "x")))
    assert one.digest() == two.digest()


@pytest.mark.parametrize("story", [(head(KEY, 3),), (granted(0),)])
def test_what_names_nothing_known_is_refused(story: tuple[RegistryEvent, ...]) -> None:
    with pytest.raises(ProjectionError, match="event 1: . is not in the registry"):
        REGISTRY.fold_all(records(begun(KEY), *story))


def test_a_writer_that_was_taken_back_is_none() -> None:
    other = SigningKey.generate()
    story = (begun(KEY), admitted(certify(KEY, other.public, Role.TRAINER)))
    assert REGISTRY.fold_all(records(*story)).writers == (KEY.public.raw, other.public.raw)
    state = REGISTRY.fold_all(records(*story, revoked(revoke(KEY, other.public))))
    assert state.writers == (KEY.public.raw,)


def test_a_gap_is_refused() -> None:
    with pytest.raises(ProjectionError, match="a gap in the log"):
        REGISTRY.fold_all(records(*STORY)[1:])
