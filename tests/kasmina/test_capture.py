"""What a pass has at slots, and the gradients of its loss there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.activation import activation
from esper.kasmina.capture import capturing
from esper.kasmina.isolation import HostGuard
from esper.kasmina.slots import find_slots
from support.hosts import HOSTS, Checkpointed, bits, classify, differing

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("name", HOSTS)
def test_a_pass_captures_what_bodies_read_and_its_gradients_and_leaves_no_trace(name: str) -> None:
    model, x = HOSTS[name]()
    batch, loss_fn = (x, torch.randint(3, (len(x),))), classify(model)
    slots = find_slots(model, lambda: model(x)).slots
    before = bits(model)
    with HostGuard(model), capturing(model, slots.values(), gradients=True) as capture:
        torch.manual_seed(1)
        loss = loss_fn(batch)
        capture.differentiate(loss)
    assert differing(before, bits(model)) == []
    assert set(capture.at) == set(slots)
    kept: dict[str, Tensor] = {}
    for slot in slots.values():
        model.get_submodule(slot.end).register_forward_hook(_keep(slot.id, kept))
    torch.manual_seed(1)
    plain = loss_fn(batch)
    assert torch.equal(plain, loss)
    for id, gradient in zip(kept, torch.autograd.grad(plain, list(kept.values())), strict=True):
        captured = capture.at[id]
        assert torch.equal(captured.h, kept[id]) and not captured.h.requires_grad
        assert torch.equal(captured.gradient, gradient)
        assert list(captured.x.shape[1:]) == list(slots[id].in_shape)


def _keep(slot: str, kept: dict[str, Tensor]) -> Callable[..., None]:
    def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept[slot] = activation(output)

    return hook


def test_what_the_host_writes_in_place_later_is_not_captured() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(8, 4)
    slots = find_slots(model, lambda: model(x)).slots
    with torch.no_grad(), capturing(model, slots.values()) as capture:
        model(x)
        assert torch.equal(capture.at["0"].h, model[0](x))
    assert (capture.at["0"].h < 0).any()


def test_a_checkpointed_host_is_captured_once_and_gives_its_gradients() -> None:
    model, x = Checkpointed(), torch.randn(8, 4)
    slots = [find_slots(model, lambda: model(x)).slots[name] for name in ("a.0", "b.2")]
    found = []
    for model.saving in (False, True):
        with HostGuard(model), capturing(model, slots, gradients=True) as capture:
            capture.differentiate(model(x.clone().requires_grad_()).square().mean())
        found.append([captured.gradient for captured in capture.at.values()])
    for plain, saving in zip(*found, strict=True):
        assert torch.equal(plain, saving)
