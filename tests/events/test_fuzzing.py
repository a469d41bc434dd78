"""The fuzzing campaign in short; ``make fuzz`` is the whole of it."""

from __future__ import annotations

import pytest

from benchmarks import fuzz
from benchmarks.fuzz import Decoder, campaign, decoders, main
from benchmarks.fuzz_inputs import make_files


@pytest.fixture(scope="module")
def all_decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    found = decoders(tmp_path_factory.mktemp("fuzz"), make_files())
    return {decoder.name: decoder for decoder in found}


NAMES = (
    "event",
    "segment",
    "segment in its chain",
    "segment signed anew",
    "event under a good signature",
    "registry's event",
    "registry's event under a good signature",
    "frames",
    "checkpoint",
    "proof",
    "event in a good proof",
    "journal",
    "checkpoint of a run",
    "export",
    "public key",
    "public key file",
    "private key file",
    "certificate",
    "revocation",
    "fingerprint",
)


def test_every_decoder_is_fed(all_decoders: dict[str, Decoder]) -> None:
    assert tuple(all_decoders) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_spoilt_input_gets_the_declared_error(all_decoders: dict[str, Decoder], name: str) -> None:
    outcome = campaign(all_decoders[name], seed=1, first=0, inputs=200)
    assert outcome.failure == ""
    assert outcome.inputs == 200
    assert 0 < outcome.accepted < 200  # what was not changed, and nothing like all


@pytest.mark.parametrize(
    "feed",
    [
        lambda data: bool(data.decode("ascii")) or True,
        lambda data: data[10] > 300,
        lambda _data: [][0],
    ],
)
def test_an_error_that_nobody_declared_is_a_failure(feed: fuzz.Feed) -> None:
    outcome = campaign(Decoder("odd", [b"\xff\x80 some bytes"], feed), 3, 5, 200)
    assert "Error" in outcome.failure
    number = 5 + outcome.inputs
    assert outcome.failure.startswith(f"--seed 3 --only 'odd' --first {number} --inputs 1\n")
    assert campaign(Decoder("odd", [b"\xff\x80 some bytes"], feed), 3, number, 1).failure


def test_an_input_that_takes_too_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_data: bytes) -> bool:
        while True:
            pass

    monkeypatch.setattr(fuzz, "PATIENCE", 0.05)
    assert (
        "one input took more than 0.05 s"
        in campaign(Decoder("slow", [b""], endless), 0, 0, 1).failure
    )


def test_the_command_prints_a_table_and_its_seed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--inputs", "5", "--seed", "9", "--only", "checkpoint"]) == 0
    told = capsys.readouterr().out
    assert "seed 9, 5 inputs from 0 for each decoder" in told
    assert "| checkpoint | 5 | " in told
    assert "5 inputs, 0 failures" in told

    def broken(_data: bytes) -> object:
        raise KeyError("nobody declared this")

    monkeypatch.setattr(fuzz, "parse_checkpoint", broken)
    assert main(["--inputs", "5", "--only", "checkpoint"]) == 1
    assert "KeyError: 'nobody declared this'" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])
