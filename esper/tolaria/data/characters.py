"""Characters of a text that every Python carries: its own language reference.

``pydoc_data.topics`` is what ``help("LAMBDA")`` shows, some 465,000 characters. The text differs
between versions of Python; the run's log holds a digest of the data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esper.tolaria.data.parts import Part, Splits, dealt, part

BLOCK_WINDOWS = 16
"""Neighbouring windows that stay in one part, so that a held-out one is not surrounded by text
that the host has learnt."""

UNKNOWN = 0
"""The class of every character that the training part does not have."""

_SHARES = (0.08, 0.12, 0.10)
"""Of the blocks: probe, confirm, test; the rest is learnt from."""


def characters(window: int) -> Splits:
    """The next character at each of ``window`` positions: ``x`` and ``y`` [rows, ``window``].

    The alphabet is that of the training part. No character is in two parts.
    """
    return split_text(reference(), window)


def reference() -> str:
    """The text, each of its paragraphs once (some topics repeat parts of others)."""
    from pydoc_data.topics import topics

    paragraphs = (p.strip("\n") for name in sorted(topics) for p in topics[name].split("\n\n"))
    return "\n\n".join(dict.fromkeys(filter(None, paragraphs)))


def split_text(text: str, window: int) -> Splits:
    """``text`` cut into blocks of windows that are dealt out to the four parts.

    Raises:
        ValueError: the text is too short for a block in each part.
    """
    length = BLOCK_WINDOWS * window + 1
    count = len(text) // length
    held_out = [max(1, round(share * count)) for share in _SHARES]
    if count <= sum(held_out):
        raise ValueError(
            f"got {len(text)} characters, wanted at least {(sum(held_out) + 1) * length}"
        )
    blocks = [text[i * length : (i + 1) * length] for i in range(count)]
    probe, confirm, test, train = np.split(dealt(count), np.cumsum(held_out))
    alphabet = sorted(set().union(*(blocks[i] for i in train)))
    codes = {character: code for code, character in enumerate(alphabet, start=UNKNOWN + 1)}

    def windows(chosen: NDArray[np.int64]) -> Part:
        coded = [[codes.get(c, UNKNOWN) for c in blocks[i]] for i in chosen]
        rows = np.array(coded, dtype=np.int64)
        return part(rows[:, :-1].reshape(-1, window), rows[:, 1:].reshape(-1, window))

    return Splits(
        windows(train), windows(probe), windows(confirm), windows(test), classes=1 + len(alphabet)
    )
