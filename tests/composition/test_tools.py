"""What torch has for models works on one that is growing or has grown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import esper
from esper.kasmina.errors import KasminaError
from esper.kasmina.graft import GraftedSeed
from esper_events.stages import Stage
from support.growth_runs import FAST, Loop, OneSeed, bits, same, stages
from support.ways import SLOT, Autocast, Way

BLENDED = [Stage.GRAFTING, Stage.EVALUATING]


def grown_until(stage: Stage, make: type[Way] = Way) -> Way:
    """A host that is growing, with its seed in ``stage``."""
    way = make()
    growth = way.grow(FAST, OneSeed(*SLOT), **way.given())
    while [row.stage for row in growth.seed_rows()] != [stage]:
        way.run(1)
    way.run(3)
    return way


@pytest.fixture(params=[*BLENDED, Stage.FOSSILIZED], ids=lambda stage: str(stage.value))
def growing(request: pytest.FixtureRequest) -> Iterator[Way]:
    way = grown_until(request.param)
    yield way
    assert way.growth is not None
    way.growth.close()


def gradients(way: Way) -> dict[str, Tensor]:
    """Those of one batch, in evaluation mode, by name."""
    named = dict(way.model.named_parameters())
    found = torch.autograd.grad(way.loss_fn(way.batches[0]), list(named.values()))
    return dict(zip(named, found, strict=True))


def test_torch_func_takes_gradients_of_a_grown_model(growing: Way) -> None:
    growing.model.eval()
    parameters = {n: p.detach() for n, p in growing.model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(functional_call(growing.model, values, (x,)), y)

    found, wanted = grad(loss)(parameters, *growing.batches[0]), gradients(growing)
    assert any("seeds" in name for name in found)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-8)


def test_a_model_compiled_while_something_grows_computes_the_same(growing: Way) -> None:
    growing.model.eval()
    graphs: list[torch.fx.GraphModule] = []
    torch.compiler.reset()

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(growing.model, backend=backend, fullgraph=True)
    x, _ = growing.batches[0]
    assert torch.equal(compiled(x), growing.model(x))
    assert len(graphs) == 1


def test_evaluation_mode_holds_for_what_has_grown(growing: Way) -> None:
    model = growing.model
    model.eval()
    assert not any(module.training for module in model.modules())
    x, _ = growing.batches[0]
    before = bits(growing)
    with torch.no_grad():
        first, second = model(x), model(x)
        alone = torch.cat([model(row) for row in x.split(1)])
    assert torch.equal(first, second)
    torch.testing.assert_close(alone, first)
    assert same(bits(growing), before)
    with torch.inference_mode():
        assert torch.equal(model(x), first)
    model.train()
    assert all(module.training for module in model.modules())


def test_a_grown_model_exports_for_every_batch_size(tmp_path: Path) -> None:
    way = Way()
    growth = way.through(OneSeed(*SLOT))
    assert stages(growth.records())[-1] == "fossilized"
    plain = esper.export(way.model).eval()
    way.model.eval()
    x, _ = way.batches[0]
    size = torch.export.Dim("size", min=2, max=4096)
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: size},))
    assert "esper" not in str(program.graph)
    torch.export.save(program, tmp_path / "grown.pt2")
    loaded = torch.export.load(tmp_path / "grown.pt2").module()
    for count in (2, 3, 64):
        x = torch.randn(count, 6)
        torch.testing.assert_close(loaded(x), way.model(x), rtol=1e-6, atol=1e-7)


def test_under_autocast_a_seed_keeps_its_weights_in_float32() -> None:
    way = grown_until(Stage.GRAFTING, Autocast)
    (seed,) = [m for m in way.model.modules() if isinstance(m, GraftedSeed)]
    seen: list[torch.dtype] = []
    way.model.get_submodule("head").register_forward_hook(lambda *a: seen.append(a[2].dtype))
    way.run(1)
    assert {p.dtype for p in seed.parameters()} == {torch.float32}
    assert seen[0] is torch.bfloat16
    assert way.growth is not None
    way.growth.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Distributed(Way):
    """DistributedDataParallel."""

    def prepare(self) -> None:
        self.call = DistributedDataParallel(self.model)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("cull_in", [None, Stage.EVALUATING])
def test_one_process_of_ddp_grows_as_a_plain_loop_does(cull_in: Stage | None) -> None:
    ends = []
    for make in (Way, Distributed):
        way = make()
        growth = way.through(OneSeed(*SLOT, cull_in))
        assert stages(growth.records())[-1] == ("dormant" if cull_in else "fossilized")
        ends.append(bits(way))
    assert same(*ends)


@pytest.mark.usefixtures("processes")
def test_several_processes_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(KasminaError, match="4 processes train this model together"):
        Loop().grow(FAST, OneSeed(*SLOT))


def test_several_devices_are_refused_with_the_reason() -> None:
    loop = Loop()
    wrapped = nn.DataParallel(loop.model)
    wrapped.device_ids = [0, 1]
    loop.model = wrapped
    with pytest.raises(KasminaError, match="DataParallel copies the model to 2 devices"):
        loop.grow(FAST, OneSeed(*SLOT))
