"""``esper prove``, and its proofs checked by somebody who has nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from esper_events.checkpoint import parse_checkpoint
from esper_events.events import PlateauDetected
from support.command import ROOT
from support.event_runs import ended, make_run, opening
from support.histories import KEY

RUN = make_run(KEY, (*opening(KEY), (ended(),)))
FINGERPRINT = KEY.public.fingerprint
PROOF = "run-1-4.tlog-proof"
GROWN = "run-1-6-7.consistency-proof"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a run and a checkpoint that was kept of its beginning."""
    monkeypatch.chdir(tmp_path)
    RUN.write(tmp_path / "run")
    (tmp_path / "kept").write_bytes(make_run(KEY, RUN.groups[:-1]).note)
    return tmp_path


def run(*arguments: str) -> int:
    return failures.run(group, list(arguments))


def test_an_event_is_proven_to_who_has_only_the_fingerprint(
    place: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Captured
) -> None:
    """With nothing of Esper but the auditor's distribution, in a directory of its own."""
    assert run("prove", "run", "4") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{PROOF}: event 4 of the 7 of run-1"
    assert "decision 1: seed 1" in told[1]
    assert told[2] == f"next: esper-verify {PROOF} --fingerprint {FINGERPRINT}"
    alone = tmp_path_factory.mktemp("alone")
    (place / PROOF).rename(alone / PROOF)
    done = subprocess.run(
        [sys.executable, "-m", "esper_events", *told[2].split()[2:]],
        cwd=alone,
        env={"PYTHONPATH": str(ROOT / "events"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    verdict = f"proven: this is event 4 of log run-1, one of its first 7, signed by {FINGERPRINT}"
    assert done.stdout.startswith(f"{PROOF}: ok: {verdict}")
    assert "event: 4  step 10: decision 1: seed 1" in done.stdout
    assert done.stdout.count("note: ") == 2


def test_growth_is_proven_to_who_kept_a_checkpoint(place: Path, capsys: Captured) -> None:
    assert run("prove", "run", "--from", "kept") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{GROWN}: run-1 went on from 6 events to 7"
    assert told[1] == f"next: esper-verify {GROWN} --checkpoint kept"
    assert run("verify", GROWN, "--checkpoint", "kept", "--fingerprint", FINGERPRINT) == 0
    told = capsys.readouterr().out.splitlines()
    assert "went on from the kept checkpoint's 6 events to 7 and changed none" in told[0]
    # What follows the empty line is the newer checkpoint, to be kept for the next time.
    note = (place / GROWN).read_bytes().split(b"\n\n", 1)[1]
    assert parse_checkpoint(note).checkpoint.size == 7
    plateau = PlateauDetected(time=9.0, step=9, figures={})
    (place / "kept").write_bytes(make_run(KEY, (RUN.groups[0], (plateau, plateau, plateau))).note)
    assert run("verify", GROWN, "--checkpoint", "kept") == failures.VERIFICATION_FAILED
    assert "the kept checkpoint has" in capsys.readouterr().out


def test_a_log_that_was_rewritten_gives_no_proof_of_growth(place: Path, capsys: Captured) -> None:
    plateau = PlateauDetected(time=9.0, step=9, figures={})
    (place / "kept").write_bytes(make_run(KEY, (RUN.groups[0], (plateau,))).note)
    assert run("prove", "run", "--from", "kept") == failures.VERIFICATION_FAILED
    told = capsys.readouterr().err
    assert told.startswith("esper: run: FAILED: the first 4 events are not those the kept")
    assert not (place / GROWN).exists()


def test_a_verdict_as_json_holds_the_event(capsys: Captured) -> None:
    assert run("prove", "run", "6", "--out", "p") == 0
    capsys.readouterr()
    assert run("verify", "p", "--json", "--fingerprint", KEY.public.openssh_fingerprint) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["log"], found["index"], found["events"]) == (True, "run-1", 6, 7)
    assert found["event"]["kind"] == "run.ended"
    assert found["event"]["figures"] == {"loss": None}  # a NaN
    Path("p").write_bytes(Path("p").read_bytes().replace(b"index 6", b"index 5"))
    assert run("verify", "p", "--json", "--fingerprint", FINGERPRINT) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["event"], found["key"]) == (False, None, "")


def test_a_run_is_held_to_a_fingerprint_as_well(capsys: Captured) -> None:
    assert run("verify", "run", "--fingerprint", FINGERPRINT) == 0
    assert "taken from the log" not in capsys.readouterr().out
    assert run("verify", "run", "--fingerprint", "ed25519:" + "a" * 64) == 1
    assert f"the trainer's key is {FINGERPRINT}, wanted ed25519:aaa" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("prove run", "wanted either the number of an event or --from"),
        ("prove run 1 --from kept", "wanted either the number of an event or --from"),
        ("prove run 7", "run: got event 7, the signed checkpoint counts 7, from 0"),
        ("prove run 4 --out kept", "kept exists already; choose another name (--out)"),
        ("prove run --from run/journal/segments", "a checkpoint over 1024 bytes"),
        ("verify good", "anybody can make a proof under a key of their own"),
        ("verify good --fingerprint sha256:00", "got 'sha256:00', wanted ed25519: and 64 hex"),
        ("verify grown", "a consistency proof goes on from a checkpoint that you kept"),
        ("verify grown --fingerprint OURS", "name it (--checkpoint)"),
        ("verify good --key pub --fingerprint OURS", "--fingerprint: name one of them"),
    ],
)
def test_bad_usage_is_one_line(place: Path, capsys: Captured, arguments: str, line: str) -> None:
    KEY.public.save(place / "pub")
    assert run("prove", "run", "4", "--out", "good") == 0
    assert run("prove", "run", "--from", "kept", "--out", "grown") == 0
    before = sorted(place.iterdir())
    capsys.readouterr()
    assert run(*arguments.replace("OURS", FINGERPRINT).split()) == failures.BAD_USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert line in told.err
    assert len(told.err.splitlines()) == 1
    assert sorted(place.iterdir()) == before


def test_a_place_that_cannot_be_written_is_a_failure(capsys: Captured) -> None:
    assert run("prove", "run", "4", "--out", "missing/p") == failures.FAILED
    assert capsys.readouterr().err == "esper: cannot write missing/p: No such file or directory\n"


def test_names_in_a_proof_do_not_steer_the_terminal(place: Path, capsys: Captured) -> None:
    assert run("prove", "run", "4", "--out", "p") == 0
    forged = (place / "p").read_bytes().replace(b"esper/run-1\n", b"esper/\x1b[31m\n")
    (place / "p").write_bytes(forged)
    capsys.readouterr()
    assert run("verify", "p", "--fingerprint", FINGERPRINT) == 1
    assert "\x1b" not in capsys.readouterr().out
