"""``esper keys rotate`` and ``revoke``, and the runs that go on under another key."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from esper.log import keyring, passphrase
from esper.log.errors import JournalError, LogError
from esper.log.event_log import EventLog
from esper.log.keyring import NEXT, ROOT, TRAINER
from esper.log.registry import open_registry
from esper.log.run import open_run_log, resume_run_log
from esper.log.workspace import Workspace
from esper_events import keys
from esper_events.events import KeyRotated, RunTakenOver
from esper_events.keys import PublicKey, SigningKey
from esper_events.reader import LogReader
from esper_events.verify import verify_path
from support.event_runs import ended, lattice, started

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (passphrase.VARIABLE, passphrase.FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ESPER_WORKSPACE", str(tmp_path / "area"))
    monkeypatch.setattr(keys, "KDF_ROUNDS", 2)
    return tmp_path


def run(*arguments: str) -> int:
    return failures.run(group, list(arguments))


def tell(log: EventLog) -> None:
    """What every run begins with, where the log does not hold it already."""
    if not log.records():
        told = log.credentials
        genesis = msgspec.structs.replace(
            started(SigningKey.generate()),
            trainer_key=told.trainer_key,
            certificate=told.certificate,
            next_key=told.next_key,
        )
        log.append(genesis, lattice("fc"))
    else:
        log.append(lattice(f"fc{len(log.records())}"))


def write(name: str) -> list[str]:
    """Begin the run ``name``, or go on with it; the fingerprints of the keys that have signed."""
    directory = Path(name)
    if directory.exists():
        log = resume_run_log(directory, workspace=Workspace())
    else:
        log = open_run_log(directory, log_id=name, workspace=Workspace())
    tell(log)
    log.close()
    assert log.failure is None
    reader = LogReader(directory)
    return list(
        dict.fromkeys(
            reader.verifier.signer.fingerprint
            for _ in reader.records()
            if reader.verifier.signer is not None
        )
    )


def fingerprint(name: str = TRAINER) -> str:
    return Workspace().keys.public(name).fingerprint


@pytest.mark.parametrize("rooted", [False, True])
def test_a_run_goes_on_under_each_key_that_came_since_it_was_left(
    rooted: bool, capsys: Captured
) -> None:
    if rooted:
        assert run("keys", "create", "--role", "root") == 0
    signed = [*write("r")]
    for _ in range(2):
        following = fingerprint(NEXT)
        capsys.readouterr()
        assert run("keys", "rotate") == 0
        told = capsys.readouterr().out
        assert f"signs from now on: {following}" in told
        assert f"signs no more:     {signed[-1]}" in told
        assert f"comes next:        {fingerprint(NEXT)}" in told
        signed.append(following)
    assert write("r") == signed
    assert write("r") == signed
    assert run("keys", "rotate") == 0
    signed.append(fingerprint())
    assert write("r") == signed
    assert write("other") == signed[-1:]
    events = [record.event for record in LogReader(Path("r")).records()]
    assert sum(isinstance(event, KeyRotated) for event in events) == 3
    pins = [signed[0], fingerprint(ROOT)] if rooted else [signed[0]]
    for pin in pins:
        assert run("verify", "r", "--fingerprint", pin) == 0
    assert run("verify", "r", "--fingerprint", signed[1]) == 1
    assert PublicKey.load(Path("r/trainer.pub")).fingerprint == signed[0]
    capsys.readouterr()
    assert run("keys", "show") == 0
    shown = capsys.readouterr().out
    assert shown.count("signs no more") == 3
    assert shown.index("signs the runs") < shown.index("comes next")
    assert run("show", "--all", "r") == 0
    assert f"trainer's key rotated to {signed[-1]}" in capsys.readouterr().out


def test_a_run_that_began_without_a_root_goes_on_without_one() -> None:
    (first,) = write("r")
    assert run("keys", "create", "--role", "root") == 0
    assert run("keys", "rotate") == 0
    assert write("r") == [first, fingerprint()]
    assert verify_path(Path("r")).root == ""
    assert verify_path(Path("r"), PublicKey.load(Path("r/trainer.pub"))).ok


def test_a_registry_without_a_root_is_written_on_under_the_next_key(
    capsys: Captured,
) -> None:
    with open_registry(Workspace()) as registry:
        (first,) = write("r")
        assert run("keys", "rotate") == 0
        assert write("r") == [first, fingerprint()]
        assert write("other") == [fingerprint()]
        registry.refresh()
        assert set(registry.runs) == {"r", "other"}


def test_rotated_keys_stay_under_their_pass_phrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(passphrase.VARIABLE, "open sesame")
    assert run("keys", "create", "--encrypt") == 0
    signed = write("r")
    assert run("keys", "rotate") == 0
    assert run("keys", "rotate") == 0
    assert len(write("r")) == 3
    files = sorted(Path("area/keys").rglob("*.key"))
    assert len(files) == 4
    monkeypatch.delenv(passphrase.VARIABLE)
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with pytest.raises(keys.KeyFileError, match="nothing here asks for its pass phrase"):
            SigningKey.load(file)
    monkeypatch.setenv(passphrase.VARIABLE, "open sesam")
    assert run("keys", "rotate") == 2
    assert fingerprint() not in signed


def test_what_cannot_be_rotated_is_told(capsys: Captured) -> None:
    assert run("keys", "rotate") == 2
    assert "there is nothing to rotate yet" in capsys.readouterr().err
    assert run("keys", "create") == 0
    for suffix in (".key", ".pub"):
        Workspace().keys.file(NEXT).with_suffix(suffix).unlink()
    without = write("without")
    assert run("keys", "rotate") == 2
    assert "`esper keys create --role next` makes it" in capsys.readouterr().err
    assert run("keys", "create", "--role", "next") == 0
    assert run("keys", "rotate") == 0
    with pytest.raises(JournalError, match=f"was written under {without[0]}, which the workspace"):
        write("without")


def test_a_run_of_another_workspace_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    write("r")
    monkeypatch.setenv("ESPER_WORKSPACE", "elsewhere")
    with pytest.raises(JournalError, match="was written under another key than that of"):
        write("r")
    Workspace().keys.file(NEXT)
    stranger = Workspace().keys
    own = Workspace(Path("area")).keys
    for suffix in (".key", ".pub"):  # It commits to a key that a thief made known.
        own.file(NEXT).with_suffix(suffix).replace(stranger.file(NEXT).with_suffix(suffix))
    assert run("keys", "rotate") == 0
    with pytest.raises(JournalError, match="was written under another key than that of"):
        write("r")


def test_a_root_lets_a_run_go_on_that_committed_to_no_key() -> None:
    assert run("keys", "create") == 0
    for suffix in (".key", ".pub"):
        Workspace().keys.file(NEXT).with_suffix(suffix).unlink()
    assert run("keys", "create", "--role", "root") == 0
    signed = write("r")
    assert run("keys", "create", "--role", "next") == 0
    assert run("keys", "rotate") == 0
    assert write("r") == [*signed, fingerprint()]
    last = [record.event for record in LogReader(Path("r")).records()][-2]
    assert isinstance(last, RunTakenOver)
    assert last.epoch == 1
    assert run("keys", "rotate") == 0
    assert write("r")[-1] == fingerprint()


def test_the_next_key_is_certified_before_it_comes(capsys: Captured) -> None:
    """The root lies elsewhere; it has to be there now and then, not when a key is rotated."""
    assert run("keys", "create", "--role", "root") == 0
    root = Workspace().keys.file(ROOT)
    write("r")
    root.rename("away.key")
    assert run("keys", "rotate") == 0
    assert "`esper keys certify` lets the root vouch for the next" in capsys.readouterr().out
    assert len(write("r")) == 2
    assert run("keys", "rotate") == 2
    assert "the root does not vouch for the next key" in capsys.readouterr().err
    Path("away.key").rename(root)
    assert run("keys", "certify") == 0
    root.rename("away.key")
    assert run("keys", "rotate") == 0
    assert len(write("r")) == 3
    assert verify_path(Path("r"), PublicKey.load(root.with_suffix(".pub"))).ok


class Killed(BaseException):
    """What a process gets that is killed."""


@pytest.mark.parametrize("rooted", [False, True])
@pytest.mark.parametrize("step", range(14))
def test_a_rotation_that_is_killed_is_done_or_not(
    step: int, rooted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file it was about to put in place when it died."""
    ring = Workspace().keys
    ring.create(TRAINER)
    if rooted:
        ring.create(ROOT)
        ring.certify()
    before, following = ring.public(TRAINER), ring.public(NEXT)
    left, moves, whole = step, Path.replace, keyring.whole_file

    def die() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    def replace(path: Path, target: Path) -> Path:
        die()
        return moves(path, target)

    def written(*arguments: Any, **named: Any) -> Any:
        die()
        return whole(*arguments, **named)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Path, "replace", replace)
        patch.setattr(keyring, "whole_file", written)
        patch.setattr(keys, "whole_file", written)
        ring.rotate()
    now = Workspace().key().public
    assert now == (before if ring.public(TRAINER) == before else following)
    assert [ring.load(name).public for name in (TRAINER, NEXT)] == [
        ring.public(name) for name in (TRAINER, NEXT)
    ]
    line = [ring.public(name) for name in ring.line()]
    assert list(dict.fromkeys(line)) == list(dict.fromkeys([before, now]))
    assert ring.credentials().next_key not in (before.digest, now.digest)
    if rooted:
        assert ring.certificate() is not None
        ring.certify()
    ring.rotate()
    assert [ring.public(name) for name in ring.line()][-2] == now


def test_a_revoked_key_signs_no_more_and_its_run_goes_on_under_the_next(
    capsys: Captured,
) -> None:
    assert run("keys", "create", "--role", "root") == 0
    (stolen,) = write("r")
    capsys.readouterr()
    assert run("keys", "revoke", stolen, "r", "--reason", "stolen") == 0
    assert f"{stolen} is revoked in r from event 2 on" in capsys.readouterr().out
    assert run("verify", "r") == 0
    with pytest.raises(JournalError, match="may write no more: the root revoked it at event 2"):
        write("r")
    assert run("keys", "revoke", stolen) == 0
    everywhere = capsys.readouterr().out.splitlines()[-1].partition(":")[0]
    with pytest.raises(LogError, match=f"has revoked {stolen}: `esper keys rotate`"):
        write("other")
    assert run("keys", "show") == 0
    shown = capsys.readouterr().out
    assert f"revoked in every run: {stolen}" in shown
    assert f"revoked in r from event 2 on: {stolen}" in shown
    assert run("keys", "rotate") == 0
    assert write("r") == [stolen, fingerprint(ROOT), fingerprint()]
    assert run("verify", "r", "--fingerprint", fingerprint(ROOT), "--revoked", everywhere) == 0
    assert write("fresh") == [fingerprint()]
    capsys.readouterr()
    assert run("show", "--all", "r") == 0
    assert f"key {stolen} revoked from event 2 on (stolen)" in capsys.readouterr().out


def test_a_run_is_not_continued_behind_what_is_not_trusted(capsys: Captured) -> None:
    assert run("keys", "create", "--role", "root") == 0
    write("r")
    (stolen,) = write("r")
    assert run("keys", "revoke", stolen, "r", "--from", "2") == 0
    assert run("keys", "rotate") == 0
    capsys.readouterr()
    assert run("verify", "r") == 1
    assert "event 2: not to be trusted from here on" in capsys.readouterr().out
    with pytest.raises(JournalError, match="from event 2 on it is not to be trusted"):
        write("r")
    assert run("keys", "revoke", stolen, "r", "--from", "1") == 0
    assert run("keys", "revoke", stolen, "r", "--from", "1") == 2
    assert "and was from event 1 on already" in capsys.readouterr().err


def test_what_was_revoked_after_the_end_is_told_by_a_file(capsys: Captured) -> None:
    assert run("keys", "create", "--role", "root") == 0
    log = open_run_log(Path("r"), log_id="r", workspace=Workspace())
    tell(log)
    log.append(ended())
    log.close()
    key = fingerprint()
    capsys.readouterr()
    assert run("keys", "revoke", key, "r") == 0
    file, _, told = capsys.readouterr().out.strip().partition(": ")
    assert told == (f"{key} is revoked in r from event 3 on, which has ended: only this file tells")
    assert run("keys", "revoke", key) == 0
    everywhere = capsys.readouterr().out.partition(":")[0]
    assert run("verify", "r") == 0
    assert run("verify", "r", "--revoked", everywhere) == 1
    assert "event 0: not to be trusted from here on" in capsys.readouterr().out
    assert run("verify", "r", "--revoked", everywhere, "--revoked", file) == 0


def test_a_next_key_that_was_stolen_gives_way(capsys: Captured) -> None:
    assert run("keys", "create", "--role", "root") == 0
    (first,) = write("r")
    assert run("keys", "revoke", fingerprint(NEXT)) == 0
    assert run("keys", "rotate") == 2
    assert "`esper keys create --role next` makes it" in capsys.readouterr().err
    assert run("keys", "create", "--role", "next") == 0
    assert run("keys", "rotate") == 0
    assert write("r") == [first, fingerprint()]


def test_what_cannot_be_revoked_is_told(capsys: Captured) -> None:
    (key,) = write("r")
    assert run("keys", "revoke", key) == 2
    assert "root.key: cannot be read" in capsys.readouterr().err
    assert run("keys", "create", "--role", "root") == 0
    assert run("keys", "revoke", f"ed25519:{'0' * 64}", "r") == 2
    assert "no key of the workspace or r has the fingerprint" in capsys.readouterr().err
    assert run("keys", "revoke", "noise") == 2
    assert "wanted ed25519: and 64 hex digits" in capsys.readouterr().err
    assert run("keys", "revoke", key, "--from", "3") == 2
    assert "are about a run: name it" in capsys.readouterr().err
    assert run("keys", "revoke", key, "r") == 1
    assert "r: FAILED: " in capsys.readouterr().err
