"""``esper keys``, and runs under a key with a pass phrase."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from esper.log import passphrase
from esper.log.errors import LogError
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.workspace import Workspace
from esper_events import keys
from esper_events.keys import PublicKey, SigningKey
from esper_events.verify import Report, verify_path
from support.event_runs import started

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (passphrase.VARIABLE, passphrase.FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ESPER_WORKSPACE", str(tmp_path / "area"))
    monkeypatch.setattr(keys, "KDF_ROUNDS", 2)
    return tmp_path


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, *rest: int) -> int:
        if path == "/dev/tty":
            raise OSError(6, "No such device or address")
        return real(path, *rest)

    monkeypatch.setattr(passphrase.os, "open", refuse)


def run(*arguments: str) -> int:
    return failures.run(group, list(arguments))


def test_a_key_is_made_once_and_shown_in_both_forms(place: Path, capsys: Captured) -> None:
    assert run("keys", "create") == 0
    made = capsys.readouterr().out
    file = place / "area" / "keys" / "trainer.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = Workspace().key().public
    assert PublicKey.load(file.with_suffix(".pub")) == key
    following = Workspace().keys.public("next")
    lines = [
        f"{file.with_suffix('.pub')}:", f"  {key.fingerprint}", f"  {key.openssh_fingerprint}",
        f"{file.with_name('next.pub')}:", f"  {following.fingerprint}",
        f"  {following.openssh_fingerprint}", "  comes next",
    ]  # fmt: skip
    assert made.splitlines() == lines
    assert run("keys", "show") == 0
    assert capsys.readouterr().out.splitlines() == [*lines[:3], "  signs the runs", *lines[3:]]
    told = subprocess.run(
        ["ssh-keygen", "-lf", file], capture_output=True, text=True, timeout=60, check=True
    )
    assert key.openssh_fingerprint in told.stdout
    before = file.read_bytes()
    assert run("keys", "create") == 2
    assert capsys.readouterr().err == f"esper: {file} exists already; a key is never overwritten\n"
    assert file.read_bytes() == before


def test_what_is_no_key_is_one_line_and_exit_code_2(place: Path, capsys: Captured) -> None:
    key = Workspace().key()
    (place / "noise").write_bytes(b"noise")
    (place / "small.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + "\n")
    key.save(place / "loose")
    (place / "loose").chmod(0o640)
    for name, reason in {
        "noise": "noise: no OpenSSH public key",
        "small.pub": "has small order",
        "loose": "loose has mode 0640, wanted 0600: chmod 600 loose",
    }.items():
        assert run("keys", "show", name) == 2
        told = capsys.readouterr()
        assert reason in told.err
        assert told.err.count("\n") == 1
        assert not told.out
    missing = Workspace(place / "empty").keys.file("trainer")
    assert run("keys", "show", "--workspace", "empty") == 2
    assert f"there is no {missing} yet" in capsys.readouterr().err


@pytest.mark.usefixtures("no_terminal")
def test_a_key_with_a_pass_phrase_signs_for_who_has_it(
    place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("keys", "create", "--encrypt") == 2
    assert "set ESPER_PASSPHRASE_FILE or ESPER_PASSPHRASE" in capsys.readouterr().err
    assert not Workspace().keys.file("trainer").exists()
    secret = place / "secret"
    secret.write_text("open sesame\n")
    monkeypatch.setenv(passphrase.FILE_VARIABLE, str(secret))
    secret.chmod(0o644)
    assert run("keys", "create", "--encrypt") == 2
    assert f"{secret} has mode 0644, wanted 0600" in capsys.readouterr().err
    secret.chmod(0o600)
    assert run("keys", "create", "--encrypt") == 0
    key = Workspace().key().public
    assert key.fingerprint in capsys.readouterr().out
    monkeypatch.delenv(passphrase.FILE_VARIABLE)
    with pytest.raises(LogError, match="is encrypted, and there is no terminal"):
        Workspace().key()
    monkeypatch.setenv(passphrase.VARIABLE, "open sesam")
    with pytest.raises(LogError, match="the pass phrase does not fit"):
        Workspace().key()
    monkeypatch.setenv(passphrase.VARIABLE, "open sesame")
    assert Workspace().key().public == key
    monkeypatch.setenv(passphrase.VARIABLE, "")
    assert run("keys", "create", "--encrypt", "--workspace", "other") == 2
    assert "got an empty pass phrase; nothing was written" in capsys.readouterr().err


def test_a_typed_pass_phrase_is_typed_twice(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["one", "two", "one", "one", "one"])
    monkeypatch.setattr(passphrase.os, "open", lambda *_: os.dup(0))
    monkeypatch.setattr(passphrase.getpass, "getpass", lambda _: next(typed))
    path = Workspace().keys.file("trainer")
    with pytest.raises(keys.KeyFileError, match="the two pass phrases differ"):
        passphrase.new_passphrase(path)
    assert passphrase.new_passphrase(path) == b"one"
    assert passphrase.passphrase(path) == b"one"


def test_a_public_key_file_is_shown(place: Path, capsys: Captured) -> None:
    Workspace().key().public.save(place / "trainer.pub")
    assert run("keys", "show", "trainer.pub") == 0
    assert PublicKey.load(place / "trainer.pub").fingerprint in capsys.readouterr().out


def test_a_root_vouches_for_the_runs_that_follow(
    place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key under its own pass phrase; the run asks for the trainer's alone."""
    asked = []
    secrets = {"root.key": b"for the root", "trainer.key": b""}

    def answer(path: Path) -> bytes:
        asked.append(path.name)
        return secrets[path.name]

    monkeypatch.setattr(passphrase, "new_passphrase", answer)
    monkeypatch.setattr("esper.log.keyring.passphrase", answer)
    assert begin(place / "before").root == ""
    assert run("keys", "create", "--role", "root", "--encrypt") == 0
    told = capsys.readouterr().out
    root = PublicKey.load(place / "area" / "keys" / "root.pub")
    assert root.fingerprint in told
    assert "the root vouches for the trainer's key in every run from now on" in told
    assert asked == ["root.key", "root.key"]
    assert begin(place / "after").root == root.fingerprint
    assert asked == ["root.key", "root.key"]
    assert run("verify", "after", "--fingerprint", root.fingerprint) == 0
    assert run("verify", "before", "--fingerprint", root.fingerprint) == 1
    assert run("verify", "after", "--key", str(place / "area" / "keys" / "root.pub")) == 0
    capsys.readouterr()
    assert run("prove", "after", "0") == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert following.endswith(f"--fingerprint {root.fingerprint}")
    assert run("verify", *following.split()[2:]) == 0
    assert run("keys", "show") == 0
    shown = capsys.readouterr().out
    assert root.fingerprint in shown
    assert Workspace().key().public.fingerprint in shown


def test_a_key_that_took_another_s_place_is_not_vouched_for(place: Path, capsys: Captured) -> None:
    assert run("keys", "create", "--role", "root") == 0
    file = Workspace().keys.file("trainer")
    file.unlink()
    with pytest.raises(LogError, match=r"of another key than .*; `esper keys certify` writes"):
        begin(place / "run")
    file.unlink()
    file.with_suffix(".pub").unlink()
    assert run("keys", "create") == 0
    assert "the root vouches" in capsys.readouterr().out
    assert begin(place / "again").root
    file.with_suffix(".cert").unlink()
    assert begin(place / "without").root == ""
    assert run("keys", "certify") == 0
    assert begin(place / "with").root
    Workspace().keys.file("root").unlink()
    assert run("keys", "certify") == 2
    assert "root.key: cannot be read" in capsys.readouterr().err


def test_the_root_certifies_a_worker_in_a_run_that_nobody_writes(
    place: Path, capsys: Captured
) -> None:
    worker = SigningKey.generate().public
    worker.save(place / "worker.pub")
    begin(place / "before")
    assert run("keys", "create", "--role", "root") == 0
    begin(place / "after")
    capsys.readouterr()
    assert run("keys", "certify", "after", "worker.pub", "--role", "worker") == 0
    told = f"{worker.fingerprint} is a worker's key from here on"
    assert capsys.readouterr().out == f"after: {told}\n"
    report = verify_path(place / "after")
    assert (report.ok, report.events, report.checkpoint) == (True, 2, 1)
    assert run("show", "--all", "after") == 0
    assert f"key {worker.fingerprint} certified as worker" in capsys.readouterr().out
    again = ("keys", "certify", "after", "worker.pub", "--role", "controller")
    assert run(*again) == 2
    assert f"{worker.fingerprint} has a role in this log already" in capsys.readouterr().err
    assert run("keys", "certify", "before", "worker.pub", "--role", "worker") == 1
    assert "before: FAILED: " in capsys.readouterr().err
    assert run("keys", "certify", "after", "--role", "worker") == 2
    journal = JournalStore(place / "after" / "journal")
    assert run(*again) == 2
    assert "is being written by another process" in capsys.readouterr().err
    journal.close()
    (place / "after" / "journal" / "segments").write_bytes(b"")
    assert run(*again) == 1


def begin(directory: Path) -> Report:
    """A run that ends as it begins, and what the auditor says of it."""
    log = EventLog(
        JournalStore(directory / "journal"),
        key := Workspace().key(),
        directory.name,
        run_dir=directory,
        credentials=Workspace().credentials(),
    )
    told = log.credentials
    log.append(
        msgspec.structs.replace(started(key), certificate=told.certificate, next_key=told.next_key)
    )
    log.close()
    report = verify_path(directory)
    assert report.ok, report.message
    return report
