"""Torch's own transformer layers, written so that they can be traced.

An encoder layer asks in each pass whether a fused kernel may do its work, which a trace cannot
answer. With growth inside none may: what is left is the straight computation. Masks go to attention
as they came; it brings them into their canonical form itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class _EncoderLayer(nn.TransformerEncoderLayer):
    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        masks = (src_mask, src_key_padding_mask)
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), *masks, is_causal=is_causal)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, *masks, is_causal=is_causal))
        return self.norm2(x + self._ff_block(x))  # type: ignore[no-any-return]


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.TransformerEncoderLayer: _EncoderLayer,
    nn.TransformerDecoderLayer: nn.TransformerDecoderLayer,
}
"""Layers without control flow over their optional arguments, or their twins without it."""


def passes_options(module: nn.Module) -> bool:
    """Whether the forward of ``module`` hands its optional arguments on without looking at them."""
    return type(module) in _TWINS or type(module) in _TWINS.values()


@contextmanager
def straight(module: nn.Module) -> Iterator[None]:
    """Let ``module``, where it is a stock layer, compute in the way that can be traced."""
    kind = type(module)
    module.__class__ = _TWINS.get(kind, kind)
    try:
        yield
    finally:
        module.__class__ = kind
