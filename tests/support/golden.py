"""A log with every kind of event, as the code of today writes it.

    PYTHONPATH=.:events:tests python -m support.golden VERSION

keeps it as ``tests/events/golden/VERSION.esper``, when a version is released or the catalogue has
grown since the last one. A log that is kept is never written again.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import UNSET, UnsetType

from esper_events import __version__
from esper_events.certificate import Role, certify
from esper_events.checkpoint import write_checkpoint
from esper_events.events import (
    BlueprintRegistered,
    BreakerChanged,
    CheckpointWritten,
    ControllerConsulted,
    Event,
    GateMeasured,
    HostRolledBack,
    KeyCertified,
    KeyRevoked,
    KeyRotated,
    LatticeDeclared,
    PassesSeparated,
    PlateauDetected,
    ReplicaChanged,
    RollbackDecided,
    RunEnded,
    RunStarted,
    RunTakenOver,
    SeedFolded,
    SlotDeclared,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
    WeightsRecorded,
)
from esper_events.export import export_run
from esper_events.keys import SigningKey
from esper_events.revocation import revoke
from esper_events.stages import Gate, Stage
from support.event_runs import BLUEPRINT, BODY, UP
from support.signed_logs import SignedLog

DIRECTORY = Path(__file__).parent.parent / "events" / "golden"
LOG = "golden"
DIGEST = hashlib.sha256(b"").hexdigest()


def key(name: str) -> SigningKey:
    """The same for the same name: nothing is signed with it but logs for tests."""
    seed = hashlib.sha256(f"golden {name}".encode()).digest()
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))


ROOT, FIRST, SECOND, THIRD, WORKER = map(key, ("root", "trainer", "second", "third", "worker"))


def committed(to: SigningKey) -> str:
    """What a log says beforehand of the key that comes next."""
    return hashlib.sha256(to.public.raw).hexdigest()


def write(file: Path) -> None:
    """The log, as an export."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        log = golden_log()
        log.lay(run)
        write_checkpoint(run, log.note(THIRD))
        export_run(run, file)


def golden_log() -> SignedLog:
    """A run that grows a seed, culls one, is rolled back, taken over, and changes its keys."""
    log = SignedLog(LOG)
    log.say(FIRST, *_beginning())
    log.say(ROOT, _certified(WORKER, Role.WORKER))
    log.say(WORKER, BlueprintRegistered(time=3.0, blueprint=BLUEPRINT, name="low_rank", body=BODY))
    log.say(FIRST, *_grown())
    log.say(SECOND, _rotated())
    log.say(SECOND, *_told(), *_rolled_back())
    log.say(THIRD, _taken_over(log.head), *_culled(), epoch=1)
    log.say(ROOT, _revoked(len(log.leaves)), epoch=1)
    log.say(THIRD, _ended(), epoch=1)
    return log


def _beginning() -> Iterator[Event]:
    yield RunStarted(
        time=1.0,
        run=LOG,
        trainer_key=FIRST.public.raw,
        host_weights=DIGEST,
        config="[run]\nsteps = 40\n",
        seed=7,
        version=__version__,
        platform={"python": "3.11.7", "torch": "2.13.0"},
        certificate=certify(ROOT, FIRST.public, Role.TRAINER),
        next_key=committed(SECOND),
    )
    places = ("a", "output"), ("b", "span")
    slots = tuple(
        SlotDeclared(
            id=name,
            source=source,  # type: ignore[arg-type]
            start=name,
            end=name,
            in_shape=(8,),
            out_shape=(8, 4),
            in_axis=0,
            out_axis=-1,
        )
        for name, source in places
    )
    yield LatticeDeclared(time=2.0, slots=slots, left_out={"c": "tied weights"})


def _certified(other: SigningKey, role: Role) -> Event:
    return KeyCertified(time=2.5, certificate=certify(ROOT, other.public, role, LOG))


def _change(
    number: int,
    seed: int,
    slot: str,
    source: Stage,
    target: Stage,
    *,
    removal: str = "",
    consulted: int | UnsetType = UNSET,
) -> tuple[TransitionDecided, TransitionApplied]:
    step = 10 + number
    first = target is Stage.GERMINATED
    decided = TransitionDecided(
        time=4.0,
        decision=number,
        step=step,
        at_step=step + 1,
        seed=seed,
        slot=slot,
        blueprint=BLUEPRINT,
        source=source,
        target=target,
        reason="golden",
        removal=removal,  # type: ignore[arg-type]
        objective="reconstruction" if first else UNSET,
        consulted=consulted,
    )
    applied = TransitionApplied(time=4.5, decision=number, step=step + 1, seed_weights=DIGEST)
    return decided, applied


def _grown() -> Iterator[Event]:
    yield PlateauDetected(time=3.5, step=10, figures={"held_out_loss": float("inf")})
    yield ControllerConsulted(
        time=3.5, step=10, controller="rules", policy=DIGEST, consultation=DIGEST
    )
    ways = zip(count(1), pairwise(UP), (*Gate, *Gate), strict=False)
    for number, (source, target), gate in ways:
        yield GateMeasured(
            time=4.0, step=11, seed=0, gate=gate, passed=True, reason="", figures={"gain": 0.25}
        )
        yield from _change(number, 0, "a", source, target, consulted=10 if number == 1 else UNSET)
        if target is Stage.TRAINING:
            figures = {"gain": -0.0, "loss": float("nan")}
            yield TrialMeasured(time=4.75, step=13, seed=0, figures=figures)
    yield SeedFolded(
        time=5.0,
        step=18,
        seed=0,
        slot="a",
        module="a",
        before=DIGEST,
        after=DIGEST,
        difference=1e-7,
        largest=2.0,
    )


def _rotated() -> Event:
    return KeyRotated(
        time=6.0,
        trainer_key=SECOND.public.raw,
        certificate=certify(ROOT, SECOND.public, Role.TRAINER),
        next_key=committed(THIRD),
    )


def _told() -> Iterator[Event]:
    yield WeightsRecorded(time=7.0, step=19, tensors={"a.weight": DIGEST, "a.bias": DIGEST})
    yield CheckpointWritten(time=7.0, step=19, file=DIGEST, weights=DIGEST)
    yield BreakerChanged(time=7.0, step=19, breaker="log", state="half-open", reason="tries")
    yield PassesSeparated(time=7.0, step=19, purpose="measuring", reason="vmap")
    yield ReplicaChanged(time=7.0, replica="embedded", state="lagging", behind=3, reason="away")


def _rolled_back() -> Iterator[Event]:
    yield RollbackDecided(time=8.0, step=20, to_step=19, file=DIGEST, reason="no numbers")
    yield HostRolledBack(time=8.0, step=20, to_step=19, weights=DIGEST)


def _taken_over(after: str) -> Event:
    return RunTakenOver(
        time=9.0,
        epoch=1,
        holder="another machine",
        after=after,
        trainer_key=THIRD.public.raw,
        reason="the lease ended",
        certificate=certify(ROOT, THIRD.public, Role.TRAINER),
    )


def _culled() -> Iterator[Event]:
    yield from _change(7, 1, "b", Stage.DORMANT, Stage.GERMINATED)
    yield from _change(8, 1, "b", Stage.GERMINATED, Stage.CULLED, removal="removed")
    yield from _change(9, 1, "b", Stage.CULLED, Stage.EMBARGOED)
    decided, _ = _change(10, 1, "b", Stage.EMBARGOED, Stage.DORMANT)
    yield decided
    yield TransitionLapsed(
        time=10.0, decision=decided.decision, step=decided.at_step, reason="not acknowledged"
    )


def _revoked(since: int) -> Event:
    return KeyRevoked(
        time=11.0, revocation=revoke(ROOT, FIRST.public, LOG, since), reason="it was lost"
    )


def _ended() -> Event:
    return RunEnded(
        time=12.0,
        step=40,
        outcome="completed",
        reason="",
        final_weights=DIGEST,
        lattice=DIGEST,
        figures={"test_accuracy": 0.9575},
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m support.golden VERSION")
    write(DIRECTORY / f"{sys.argv[1]}.esper")
