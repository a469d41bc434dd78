"""A small causal transformer in plain modules, pre-norm, for one prediction at every position."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Causal self-attention, then an MLP at each position, each added to what it reads."""

    mask: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        context: int,
        activation: type[nn.Module],
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.act = activation()
        self.down = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)
        later = torch.ones(context, context, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", later, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [batch, context, width] to the same; no position reads a later one."""
        h = self.norm1(x)
        mixed, _ = self.attention(h, h, h, attn_mask=self.mask, need_weights=False)
        x = x + self.drop(mixed)
        h = self.down(self.act(self.up(self.norm2(x))))
        y: Tensor = x + self.drop(h)
        return y


class Transformer(nn.Module):
    """Tokens int64 [batch, ``context``] to logits [batch, ``context``, ``classes``], which at each
    position depend on the tokens up to it alone.

    Modules are named ``embed``, ``blocks.0`` and so on (in each ``norm1``, ``attention``,
    ``norm2``, ``up`` and ``down``), ``norm`` and ``head``. Initialised as torch does, from
    torch's global generator; positions are learnt and start at zero.
    """

    def __init__(
        self,
        context: int,
        classes: int,
        *,
        width: int,
        heads: int = 1,
        layers: int = 1,
        hidden: int | None = None,
        activation: type[nn.Module] = nn.GELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        units = 4 * width if hidden is None else hidden
        self.embed = nn.Embedding(classes, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(
            *(Block(width, heads, units, context, activation, dropout) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(tokens) + self.positions)))
        return logits
