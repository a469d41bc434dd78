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
