"""Keys that are being made when the process is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.log.keyring import NEXT, TRAINER
from esper.log.workspace import Workspace
from esper_events.keys import PublicKey, SigningKey


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("half", [PublicKey, SigningKey])
def test_a_key_that_was_not_made_whole_is_made_anew(
    half: type[PublicKey] | type[SigningKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KilledError

    keys = Workspace(tmp_path).keys
    with monkeypatch.context() as patched:
        patched.setattr(half, "save", killed)
        with pytest.raises(KilledError):
            keys.create(TRAINER)
    keys.create(TRAINER)
    for name in (TRAINER, NEXT):
        assert keys.public(name) == keys.load(name).public


def test_a_public_half_that_is_missing_is_made_of_the_private_one(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    key = workspace.key()
    public = workspace.keys.file(TRAINER).with_suffix(".pub")
    before = public.read_bytes()
    public.unlink()
    assert workspace.keys.public(TRAINER) == key.public
    assert public.read_bytes() == before
    assert workspace.credentials().trainer_key == key.public.raw
