"""``esper.save`` and ``esper.load``: a fresh model grows into a saved one."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import esper
from esper.kasmina.errors import SlotError
from esper.kasmina.graft import GraftPoint
from esper.kasmina.record import RecordError, decode_record
from esper.portable.errors import StateError
from esper.portable.storage import growth_of
from esper_events.stages import Stage
from support.grown import equal, grow, outputs
from support.growth_runs import FAST, Loop, OneSeed
from support.growth_runs import grow as run_growth
from support.hosts import HOSTS, bits, differing, mlp

pytestmark = pytest.mark.usefixtures("quiet")

GROWTH = {
    "mlp": (
        ("0", "low_rank"),
        ("0..4", "conv1d_stack"),
        ("0", "bottleneck_mlp"),
        ("1", "low_rank"),
    ),
    "cnn": (("3", "separable_conv"), ("0..3", "widen"), ("6..6", "conv2d_stack")),
    "tokens": (("norm..mix", "gated_widen"), ("head", "low_rank")),
}


def grown(name: str = "mlp") -> tuple[nn.Module, Tensor]:
    model, x = HOSTS[name]()
    return grow(model, x, *GROWTH[name]), x


def fresh(name: str = "mlp") -> nn.Module:
    torch.manual_seed(99)
    return HOSTS[name]()[0]


def through_torch(model: nn.Module) -> Any:
    """The ``state_dict`` of ``model`` after ``torch.save`` and ``torch.load`` without pickle."""
    kept = io.BytesIO()
    torch.save(model.state_dict(), kept)
    kept.seek(0)
    return torch.load(kept, weights_only=True)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("way", ["file", "state"])
def test_a_fresh_model_grows_into_the_saved_one(name: str, way: str, tmp_path: Path) -> None:
    model, x = grown(name)
    esper.save(model, tmp_path / "grown.safetensors")
    target = fresh(name)
    own = list(target.parameters())
    loaded = esper.load(
        target, tmp_path / "grown.safetensors" if way == "file" else through_torch(model)
    )
    assert loaded is target
    assert {id(p) for p in own} <= {id(p) for p in loaded.parameters()}
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert equal(list(loaded.state_dict().values()), list(model.state_dict().values()))
    assert equal(outputs(model, x), outputs(loaded, x))
    assert growth_of(loaded) == growth_of(model)
    assert equal(outputs(esper.export(loaded), x), outputs(loaded, x))


@pytest.mark.parametrize("slot", [("layer1..head", "widen"), ("layer1", "bottleneck_mlp")])
def test_a_run_is_saved_loaded_and_trained_on(slot: tuple[str, str], tmp_path: Path) -> None:
    _, loop = run_growth(FAST, OneSeed(*slot), 80)
    esper.save(loop.model, tmp_path / "run")
    again = Loop()
    esper.load(again.model, tmp_path / "run")
    again.optimizer = torch.optim.Adam(again.model.parameters(), lr=0.01)
    assert [record.slot for record in growth_of(again.model)] == [slot[0]]
    loop.growth = None
    again.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    again.steps = loop.steps
    for each in (loop, again):
        torch.manual_seed(1)
        each.run(10)
    assert equal(list(loop.model.parameters()), list(again.model.parameters()))


def test_a_model_grows_again_after_loading_and_is_saved_again(tmp_path: Path) -> None:
    model, x = grown()
    esper.save(model, tmp_path / "once")
    loaded = esper.load(fresh(), tmp_path / "once")
    grow(
        loaded,
        x,
        ("0", "low_rank"),
        ("0..4", "widen"),
        ("4", "low_rank"),
    )
    esper.save(loaded, tmp_path / "twice")
    assert [record.order for record in growth_of(loaded)] == list(range(7))
    again = esper.load(fresh(), tmp_path / "twice")
    assert equal(outputs(again, x), outputs(loaded, x))


def test_host_and_grown_models_load_plain_state_dicts_of_their_own_kind(tmp_path: Path) -> None:
    model, x = grown()
    twin = esper.load(fresh(), model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    twin.load_state_dict(through_torch(model))
    assert equal(outputs(model, x), outputs(twin, x))
    other = grow(fresh(), x, ("0", "low_rank"))
    stranger = grow(fresh(), x, ("0", "bottleneck_mlp"))
    with pytest.raises(SlotError, match="from another blueprint or place"):
        other.load_state_dict(stranger.state_dict())
    esper.save(fresh(), tmp_path / "host")
    assert growth_of(esper.load(HOSTS["mlp"]()[0], tmp_path / "host")) == ()


def test_copies_and_pickles_of_a_grown_model_are_grown_models() -> None:
    model, x = grown()
    model(x).sum().backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
        assert growth_of(twin) == growth_of(model)
        before = bits(model)
        twin(x).sum().backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2)
        assert differing(before, bits(model)) in ([], ["torch"])
    twin = copy.deepcopy(model)
    assert equal(outputs(twin, x), outputs(model, x))


def test_the_file_is_plain_safetensors_written_whole(tmp_path: Path) -> None:
    model, _ = grown()
    path = tmp_path / "grown"
    esper.save(model, path)
    esper.save(model, path)
    assert os.listdir(tmp_path) == ["grown"]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    with safe_open(path, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert names == {name for name in model.state_dict() if "_extra" not in name}
    assert set(metadata) == {"format", "esper", "esper.growth", "esper.digest"}
    with pytest.raises(FileNotFoundError):
        esper.save(model, tmp_path / "nowhere" / "grown")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_was_cast_loads_into_one_of_its_dtype(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, x = grown()
    esper.save(model.to(dtype), tmp_path / "cast")
    loaded = esper.load(fresh().to(dtype), tmp_path / "cast")
    assert equal(outputs(loaded, x.to(dtype)), outputs(model, x.to(dtype)))
    refused(fresh(), tmp_path / "cast", f"0.host.weight is {str(dtype)[6:]} .*float32")


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        model[2].weight = model[0].weight
        return model

    model, x = tied(), torch.randn(4, 6)
    grow(model, x, ("0..2", "widen"))
    esper.save(model, tmp_path / "tied")
    loaded = esper.load(tied(), tmp_path / "tied")
    assert loaded[0].host.weight is loaded[2].host.weight
    assert equal(outputs(model, x), outputs(loaded, x))
    assert equal(outputs(esper.export(model), x), outputs(model, x))


def test_a_seed_on_trial_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    loop = Loop()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen", Stage.EVALUATING))
    while not any(isinstance(m, GraftPoint) for m in loop.model.modules()):
        loop.run(1)
    state = loop.model.state_dict()
    with pytest.raises(StateError, match=r"this model was taken while seed 0 in slot layer1..head"):
        esper.save(loop.model, tmp_path / "early")
    with pytest.raises(StateError, match=r"the state was taken while seed 0 .*growth.close"):
        esper.load(Loop().model, state)
    growth.close()
    assert os.listdir(tmp_path) == []
    esper.save(loop.model, tmp_path / "late")


def refused(model: nn.Module, source: Any, reason: str) -> None:
    """Loading is refused for ``reason``, and leaves no trace."""
    before = bits(model)
    with pytest.raises(StateError, match=reason):
        esper.load(model, source)
    assert differing(before, bits(model)) == []
    assert not any(isinstance(module, GraftPoint) for module in model.modules())


def test_wrong_hosts_are_refused_and_stay_as_they_were() -> None:
    model, _ = grown()
    state = model.state_dict()
    refused(fresh("tokens"), state, "grew at 0, and this Tokens has no such module")
    narrow = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)
    )
    refused(narrow, state, r"4.host.weight is float32 \(3, 8\), the model's is float32 \(4, 8\)")
    refused(fresh().double(), state, r"0.host.weight is float32 .* float64 .* and \d+ more")
    refused(nn.Sequential(*fresh(), nn.Linear(3, 3)), state, "5.weight is missing; 5.bias is")
    with pytest.raises(StateError, match="has grown already, wanted a fresh instance"):
        esper.load(grown()[0], state)


def test_states_that_are_not_whole_are_refused() -> None:
    state = dict(grown()[0].state_dict())
    for name in list(state):
        rest = {key: value for key, value in state.items() if key != name}
        refused(fresh(), rest, "unknown to the model|is missing|weights there, its blueprint wants")
    refused(fresh(), state | {"more": torch.ones(1)}, "more is unknown to the model")
    refused(
        fresh(), state | {"0._extra_state": 3}, r"0._extra_state \(int\), wanted parameters and"
    )
    key = next(name for name in state if name.endswith("_extra_state"))
    refused(fresh(), state | {key: torch.zeros(0, dtype=torch.uint8)}, "does not say how 0.seeds.0")
    refused(fresh(), state | {key: torch.zeros(3)}, "wanted a uint8 tensor of one dimension")


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    model, _ = grown()
    torch.save(model.state_dict(), tmp_path / "pickle")
    save_file({"a": torch.ones(1)}, tmp_path / "plain")
    (tmp_path / "empty").touch()
    refused(fresh(), tmp_path / "pickle", r"no safetensors file .*torch.load\(path, weights_only=T")
    refused(fresh(), tmp_path / "empty", "no safetensors file")
    refused(fresh(), tmp_path / "plain", "does not say how its model has grown")
    with pytest.raises(FileNotFoundError):
        esper.load(fresh(), tmp_path / "missing")


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Write the file anew after ``change`` of its metadata (``growth`` decoded) and tensors."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["growth"] = msgspec.json.decode(metadata.pop("esper.growth"))
    change(metadata, tensors)
    metadata["esper.growth"] = msgspec.json.encode(metadata.pop("growth")).decode()
    save_file(tensors, path, metadata)


def test_tampering_is_found(tmp_path: Path) -> None:
    path = tmp_path / "grown"

    def tampered(change: Callable[[dict[str, Any], dict[str, Tensor]], object], why: str) -> None:
        esper.save(grown()[0], path)
        rewritten(path, lambda metadata, tensors: (change(metadata, tensors), None)[1])
        refused(fresh(), path, why)

    digest = "was changed after it was written"
    tampered(lambda _, tensors: tensors["4.host.bias"].add_(1e-3), digest)
    tampered(lambda _, tensors: tensors.pop("4.host.bias"), digest)
    tampered(lambda metadata, _: metadata["growth"]["growth"].pop(), digest)
    tampered(lambda metadata, _: metadata["growth"]["growth"].reverse(), digest)
    tampered(lambda metadata, _: metadata["growth"].update(aliases={"a": "b"}), digest)
    tampered(lambda metadata, _: metadata.update(esper="2"), "is of format '2', wanted '1'")
    tampered(lambda metadata, _: metadata.pop("esper.digest"), "does not say how its model")


def test_a_forged_digest_does_not_help_malformed_growth(tmp_path: Path) -> None:
    from esper.portable import state

    path = tmp_path / "grown"
    record = growth_of(grown()[0])[0]

    def forged(described: bytes, why: str) -> None:
        tensors = dict(fresh().state_dict())
        digest = state._digest(described.decode(), tensors)
        metadata = {"esper": "1", "esper.growth": described.decode(), "esper.digest": digest}
        save_file(tensors, path, metadata)
        refused(fresh(), path, why)

    def growing(times: int = 1, **changes: Any) -> bytes:
        text = msgspec.structs.replace(record, **changes).encode().decode()
        return msgspec.json.encode({"growth": [text] * times, "aliases": {}})

    forged(b"[]", "description of the growth is malformed")
    forged(b'{"growth": ["{}"], "aliases": {}}', "malformed: Object missing required field")
    forged(b'{"growth": [], "aliases": {"a": "b"}}', "malformed: 'b'")
    forged(growing(seed=-1), "malformed: Expected `int` >= 0")
    forged(growing(blueprint="{}"), "seed 0 in slot 0: Object missing required field")
    forged(growing(blueprint='{"__reduce__": 1}'), "seed 0 in slot 0: Object contains unknown")
    forged(growing(out_axis=3), "seed 0 in slot 0: .*feature axis 3")
    forged(growing(out_shape=(9,)), "seed 0 in slot 0: it reads a slot.s own output")
    forged(growing(end="7", start="7"), "grew at 7, and this Sequential has no such module")
    forged(growing(2), "seed 0 stands at 0 twice")
    forged(growing(end=""), "malformed: Expected `str` of length >= 1")
    forged(growing(source="span", start="4.more"), "grew at 4.more, and this Sequential has no")
    forged(growing(), "seed 0 in slot 0 has 0 weights there, its blueprint wants 32")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_flipped_byte_of_a_file_goes_unseen(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "grown"
    if not (tmp_path / "kept").exists():
        esper.save(grow(mlp(), torch.randn(8, 6), ("4", "low_rank")), tmp_path / "kept")
    raw = bytearray((tmp_path / "kept").read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    model = fresh()
    try:
        esper.load(model, path)
    except StateError:
        assert not any(isinstance(module, GraftPoint) for module in model.modules())
    else:
        kept = esper.load(fresh(), tmp_path / "kept").state_dict()
        assert equal(list(kept.values()), list(model.state_dict().values()))


@given(st.binary(max_size=200))
def test_no_bytes_but_a_records_own_are_a_record(raw: bytes) -> None:
    with contextlib.suppress(RecordError):
        assert decode_record(raw).encode() == raw
