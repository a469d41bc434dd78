"""The shipped blueprints: what they are, that they compute what they say, and never look ahead."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper.blueprints.build import Graft, Signature, applies, build, parameter_count
from esper.blueprints.ir import (
    Attention,
    Blueprint,
    BlueprintError,
    CausalDepthwise,
    Conv,
    Linear,
    Node,
    Reinterpret,
    Size,
    Tokens,
)
from esper.blueprints.library import LIBRARY

PLACES = {
    "features": Signature((16,), 0, (16,), 0),
    "narrowing": Signature((64,), 0, (10,), 0),
    "uneven": Signature((37,), 0, (5,), 0),
    "signal": Signature((6, 11), 0, (6, 11), 0),
    "plane": Signature((8, 6, 5), 0, (8, 6, 5), 0),
    "tokens": Signature((7, 12), 1, (7, 12), 1),
    "heads": Signature((3, 7, 4), 2, (3, 7, 4), 2),
}
FITS = {
    "features": {"low_rank", "bottleneck_mlp", "gated_mlp"}
    | {"widen", "gated_widen", "conv1d_stack", "conv2d_stack", "attention"},
    "narrowing": {"widen", "gated_widen", "conv1d_stack", "conv2d_stack", "attention"},
    "uneven": {"widen", "gated_widen", "conv1d_stack", "attention"},
    "signal": {"low_rank", "bottleneck_mlp", "gated_mlp", "causal_conv", "widen", "gated_widen"},
    "plane": {"low_rank", "bottleneck_mlp", "gated_mlp", "separable_conv", "squeeze_excite"}
    | {"widen", "gated_widen"},
    "tokens": {"low_rank", "bottleneck_mlp", "gated_mlp", "causal_conv", "widen", "gated_widen"},
    "heads": {"low_rank", "bottleneck_mlp", "gated_mlp", "widen", "gated_widen"},
}
FITTING = [(name, place) for place, names in FITS.items() for name in sorted(names)]
IDS = {
    "low_rank": "8311cddf0fe10425",
    "bottleneck_mlp": "f13b73d266617538",
    "gated_mlp": "bb55e9a53c9d5173",
    "separable_conv": "849f031685d31557",
    "squeeze_excite": "eb71118004158358",
    "causal_conv": "2b0f2152abd42145",
    "widen": "bf4325505bdab3da",
    "gated_widen": "f0a2925bbdd70207",
    "conv1d_stack": "24364c95ef9bdfe7",
    "conv2d_stack": "c40f4013ea2fe167",
    "attention": "fc34713fc31eed73",
}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def awake(name: str, place: str) -> Graft:
    """A seed whose every parameter is away from its first value, so that all of it is used."""
    graft = build(LIBRARY[name], PLACES[place], seeded())
    with torch.no_grad():
        for parameter in graft.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(2)) * 0.2)
    return graft


def inputs(place: str, batch: int = 3) -> Tensor:
    return torch.randn(batch, *PLACES[place].in_shape, generator=seeded(3))


def test_ids_of_shipped_blueprints_never_change() -> None:
    assert {name: blueprint.id[:16] for name, blueprint in LIBRARY.items()} == IDS


def test_the_page_on_blueprints_lists_the_library() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/blueprints.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(LIBRARY)


@pytest.mark.parametrize("place", PLACES)
def test_which_blueprints_fit_which_kind_of_slot(place: str) -> None:
    fits = {n for n, b in LIBRARY.items() if applies(b, PLACES[place]) is None}
    assert fits == FITS[place]


@pytest.mark.parametrize(("name", "place"), FITTING)
def test_forward_and_gradients_agree_with_float64(name: str, place: str) -> None:
    graft = awake(name, place)
    reference = copy.deepcopy(graft).double()
    x = inputs(place)
    weights = torch.randn(3, *PLACES[place].out_shape, generator=seeded(4))
    found, wanted = graft(x), reference(x.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    (found * weights).sum().backward()
    (wanted * weights.double()).sum().backward()
    for own, true in zip(graft.parameters(), reference.parameters(), strict=True):
        assert own.grad is not None
        assert true.grad is not None
        scale = float(true.grad.abs().max())
        torch.testing.assert_close(own.grad.double(), true.grad, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(("name", "place"), FITTING)
def test_float64_gradients_agree_with_differences(name: str, place: str) -> None:
    graft = awake(name, place).double()
    x = inputs(place, batch=1).double().requires_grad_()
    torch.manual_seed(0)  # gradcheck's fast mode draws its directions from here.
    assert torch.autograd.gradcheck(graft, (x,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("name", "place"), FITTING)
def test_every_dtype_of_a_slot_is_kept_from_birth_to_training(
    name: str, place: str, dtype: torch.dtype
) -> None:
    given = PLACES[place]
    signature = Signature(given.in_shape, given.in_axis, given.out_shape, given.out_axis, dtype)
    graft = build(LIBRARY[name], signature, seeded())
    delta = graft(inputs(place).to(dtype))
    assert delta.dtype == dtype
    assert not delta.any()
    delta.sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in graft.parameters())
    count = sum(p.numel() for p in graft.parameters())
    assert count == parameter_count(LIBRARY[name], signature)


@pytest.mark.parametrize(("name", "place"), FITTING)
def test_torch_export_takes_every_seed_at_any_batch_size(name: str, place: str) -> None:
    graft = awake(name, place).eval()
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    exported = torch.export.export(graft, (inputs(place),), dynamic_shapes=(batch,)).module()
    x = inputs(place, batch=5)
    torch.testing.assert_close(exported(x), graft(x))


@pytest.mark.parametrize(
    ("name", "place"), [pair for pair in FITTING if pair[1] in ("tokens", "signal", "heads")]
)
def test_no_seed_looks_ahead_where_positions_may_be_time(name: str, place: str) -> None:
    graft, time = awake(name, place), {"tokens": 1, "signal": 2, "heads": 2}[place]
    x = inputs(place)
    y = x.clone()
    y.select(time, 4).add_(1.0)
    with torch.no_grad():
        changed = (graft(x) != graft(y)).movedim(time, 0).flatten(1).any(1)
    assert not changed[:4].any()
    assert changed[4]


def test_a_causal_convolution_reaches_three_steps_back() -> None:
    graft = awake("causal_conv", "tokens")
    x = inputs("tokens")
    y = x.clone()
    y[:, 2] += 1.0
    changed = (graft(x) != graft(y)).any(dim=(0, 2))
    assert changed.tolist() == [False, False, True, True, True, True, False]


def test_squeeze_excite_weighs_channels_by_the_whole_plane() -> None:
    graft = awake("squeeze_excite", "plane")
    x = inputs("plane")
    ratio = graft(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    y = x.clone()
    y[:, :, 0, 0] += 5.0
    assert (graft(x) != graft(y))[:, :, 1:].any()


def test_tokens_are_neighbouring_features_filled_up_with_zeros() -> None:
    pieces = Blueprint("pieces", "span", (Tokens(0, 4), Conv(1, Size("one"), 1, init="zero")))
    with pytest.raises(BlueprintError, match="the slot wants"):
        build(pieces, PLACES["uneven"], seeded())
    graft = build(LIBRARY["attention"], PLACES["uneven"], seeded())
    cut = graft.nodes[0](torch.arange(37.0)[None])
    assert cut.shape == (1, 5, 8)
    assert cut[0, :, 1].tolist() == [5, 6, 7, 8, 9]
    assert cut[0, :, 7].tolist() == [35, 36, 0, 0, 0]


def test_attention_is_that_of_torch() -> None:
    graft = awake("attention", "narrowing")
    attention = graft.nodes[2]
    x = torch.randn(3, 16, 8, generator=seeded(5))
    peer = nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(attention.queries_keys_values.weight)
        peer.in_proj_bias.zero_()
    peer.out_proj.load_state_dict(attention.join.state_dict())
    tokens = x.mT + attention.positions
    torch.testing.assert_close(attention(x), peer(tokens, tokens, tokens)[0].mT)


def ending(*nodes: Node) -> Blueprint:
    return Blueprint("trial", "span", (*nodes, Linear(len(nodes), Size("out"), init="zero")))


@pytest.mark.parametrize(
    ("nodes", "signature", "reason"),
    [
        (
            (Reinterpret(0, "signal"), Conv(1, Size("in"), 3), Reinterpret(2, "features")),
            PLACES["tokens"],
            "steps in time",
        ),
        (
            (Reinterpret(0, "grid"), Conv(1, Size("in"), 3), Reinterpret(2, "features")),
            PLACES["heads"],
            "steps in time",
        ),
        (
            (Reinterpret(0, "signal"), Attention(1, 2), Reinterpret(2, "features")),
            PLACES["signal"],
            "steps in time",
        ),
        ((Tokens(0, 8), Attention(1, 2)), PLACES["tokens"], "features of one position"),
        ((Tokens(0, 64),), PLACES["features"], "64 or more features"),
        ((Tokens(0, 8), Attention(1, 3)), PLACES["features"], "a multiple of 3 heads"),
        ((Attention(0, 1),), PLACES["features"], "signal or grid"),
        (
            (Reinterpret(0, "grid"), Attention(1, 2)),
            Signature((4, 17, 17), 0, (4, 17, 17), 0),
            "289 positions to attend to",
        ),
        ((Reinterpret(0, "grid"), CausalDepthwise(1, 3)), PLACES["plane"], "wanted signal"),
    ],
)
def test_what_an_operation_cannot_take_is_said(
    nodes: tuple[Node, ...], signature: Signature, reason: str
) -> None:
    assert reason in (applies(ending(*nodes), signature) or "")


def test_mixing_without_a_window_is_no_mixing() -> None:
    pointwise = ending(Reinterpret(0, "signal"), Conv(1, Size("in"), 1), Reinterpret(2, "features"))
    assert applies(pointwise, PLACES["tokens"]) is None
