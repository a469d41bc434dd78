"""Models of Hugging Face's transformers, small and from a config: their slots, and a whole run."""

from __future__ import annotations

import copy
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # Before the import: nothing here may ask the network.

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import esper
from esper.kasmina.check import contract_violations
from esper.kasmina.isolation import seed_everything
from esper.kasmina.lattice import install_fossil
from esper.kasmina.signature import Slot
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.tolaria.growth import Growth
from esper.tolaria.trials import new_seed
from esper_events.keys import SigningKey
from esper_events.stages import Stage
from support.grown import fitting
from support.growth_runs import OneSeed, stages, with_
from support.hosts import sgd_seed


@pytest.fixture(autouse=True)
def quiet() -> None:
    """One thread, one random state."""
    torch.set_num_threads(1)
    seed_everything(0)


Batch = dict[str, Tensor]
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
WORDS = {"vocab_size": 30, "max_position_embeddings": 16, "intermediate_size": 24}


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=30, n_positions=16)
    )


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SMALL, **WORDS, num_key_value_heads=1))


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**SMALL, **WORDS))


def t5() -> nn.Module:
    config = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0
    )
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(**SMALL, intermediate_size=24, image_size=8, patch_size=4)
    )


def words() -> Batch:
    x = torch.randint(30, (3, 7))
    return {"input_ids": x, "labels": x}


def sentences() -> Batch:
    return {"input_ids": torch.randint(30, (3, 7)), "labels": torch.tensor([0, 1, 0])}


def pairs() -> Batch:
    return {"input_ids": torch.randint(30, (3, 7)), "labels": torch.randint(30, (3, 5))}


def images() -> Batch:
    return {"pixel_values": torch.randn(3, 3, 8, 8), "labels": torch.tensor([0, 1, 0])}


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], str]] = {
    "gpt2": (gpt2, words, "transformer.h.0"),
    "llama": (llama, words, "model.layers.0"),
    "bert": (bert, sentences, "bert.encoder.layer.0"),
    "t5": (t5, pairs, "decoder.block.0"),
    "vit": (vit, images, "vit.layers.0"),
}


def loss_of(model: nn.Module) -> Callable[[Batch], Tensor]:
    def loss_fn(batch: Batch) -> Tensor:
        loss: Tensor = model(**batch).loss
        return loss

    return loss_fn


def grown_in(model: nn.Module, slot: Slot) -> nn.Module:
    """``model`` with a fossil in ``slot`` that does something."""
    seed = new_seed(0, slot, fitting(slot)[0], 0)
    with torch.no_grad():
        for parameter in seed.parameters:
            parameter.normal_(0.0, 0.3)
    install_fossil(model, seed)
    return model


def results(model: nn.Module, batch: Batch) -> Iterator[Tensor]:
    """The loss and its gradients, in training and in evaluation, from one random state."""
    for mode in (True, False):
        model.train(mode)
        torch.manual_seed(5)
        loss = loss_of(model)(batch)
        yield loss.detach()
        yield from torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_are_found_on_layers_norms_embeddings_and_whole_blocks(family: str) -> None:
    make, batch, block = FAMILIES[family]
    model = make()
    found = esper.slots(model, batch())
    kinds = Counter(type(model.get_submodule(s.end)).__name__ for s in found.slots.values())
    blocks = {k for k in kinds if k.endswith(("Block", "Layer", "Attention", "FF"))}
    assert type(model.get_submodule(block)).__name__ in blocks
    slot = found.slots[block]
    assert slot.in_shape == slot.out_shape
    assert (slot.out_shape[1], slot.out_axis, slot.batch_axis) == (16, 1, 0)
    assert f"{block}..{block[:-1]}1" in found.slots or family == "t5"
    layers = {
        "gpt2": {"Conv1D", "LayerNorm", "Embedding", "Linear"},
        "llama": {"Linear", "LlamaRMSNorm", "Embedding"},
        "bert": {"Linear", "LayerNorm", "Embedding"},
        "t5": {"Linear", "T5LayerNorm", "Embedding"},
        "vit": {"Linear", "LayerNorm", "Conv2d"},
    }
    assert set(kinds) - blocks == layers[family]
    for reason in found.left_out.values():
        assert "looked up once for all" in reason or reason.startswith(
            ("no slots on", "not called")
        )
    assert len(str(found).splitlines()) < 0.8 * (len(found.slots) + len(found.left_out))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_takes_a_seed_and_is_exported_saved_and_loaded(family: str, tmp_path: Path) -> None:
    make, batch, block = FAMILIES[family]
    given = batch()
    slots = esper.slots(make(), given).slots
    for name in (block, f"{block}..{block}"):
        model = make()
        slot = slots[name]
        assert contract_violations(model, sgd_seed(slot), loss_of(model), given) == []
        grown_in(model, slot)
        assert list(esper.slots(model, given).slots) == list(slots)
        wanted = list(results(model, given))
        plain = esper.export(model)
        names = {name.replace(".host.", ".").partition(".seeds.")[0] for name in model.state_dict()}
        assert {n for n in names if n != block} <= set(plain.state_dict())
        esper.save(model, tmp_path / name)
        for twin in (
            plain,
            copy.deepcopy(plain),
            pickle.loads(pickle.dumps(plain)),
            esper.load(make(), tmp_path / name),
        ):
            assert all(map(torch.equal, results(twin, given), wanted))


class Run:
    """A loop of one's own: a transformer learns to go on with a text, and may grow."""

    def __init__(self, make: Callable[[], nn.Module], checkpointing: bool = False) -> None:
        seed_everything(0)
        self.model = make()
        if checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(0)
        text = torch.tensor([(i * i + 3 * i) % 29 for i in range(400)])
        starts = torch.randint(380, (95, 4), generator=generator).tolist()
        rows = [torch.stack([text[i : i + 12] for i in four]) for four in starts]
        self.batches = [{"input_ids": row, "labels": row} for row in rows]
        self.loss_fn = loss_of(self.model)

    def grow(self, controller: Any = None, **more: Any) -> Growth:
        """All of it, with growth; closed."""
        if "rerun" not in more and "run_dir" not in more:
            more["log"] = EventLog(MemoryStore(), SigningKey.generate(), "test")
        growth = esper.Growth(
            self.model,
            self.optimizer,
            self.loss_fn,
            probe=self.batches[:6],
            confirm=self.batches[6:10],
            settings=SETTINGS,
            controller=controller,
            **more,
        )
        self.train(growth)
        growth.close()
        return growth

    def train(self, growth: Growth | None = None) -> None:
        for batch in self.batches[10:]:
            loss = self.loss_fn(batch)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if growth is not None:
                growth.step(batch, loss)

    def bits(self) -> list[Tensor]:
        return [*self.model.state_dict().values(), torch.default_generator.get_state()]


SETTINGS = with_(shadow_confidence=0.001)
"""What a seed promises is of no interest here, so that every one of them is grafted."""

WAY_UP = ["germinated", "training", "grafting", "stabilizing", "evaluating"]


@pytest.mark.parametrize(
    ("make", "slot", "blueprint", "checkpointing"),
    [
        (gpt2, "transformer.h.0", "bottleneck_mlp", False),
        (gpt2, "transformer.wte", "low_rank", True),
        (llama, "model.layers.1", "bottleneck_mlp", True),
    ],
)
def test_a_transformer_grows_in_a_loop_of_ones_own_and_trains_again_to_the_same_bits(
    make: Callable[[], nn.Module], slot: str, blueprint: str, checkpointing: bool, tmp_path: Path
) -> None:
    run = Run(make, checkpointing)
    growth = run.grow(OneSeed(slot, blueprint), run_dir=tmp_path / "run", workspace=tmp_path)
    passed = stages(growth.records())
    assert passed[:5] == WAY_UP
    assert passed[5] in ("fossilized", "culled")
    again = Run(make, checkpointing)
    report = again.grow(rerun=tmp_path / "run").rerun_report()
    assert report.difference is None
    assert all(map(torch.equal, run.bits()[:-1], again.bits()[:-1]))


def test_a_seed_that_was_culled_before_its_graft_has_left_no_trace() -> None:
    grown = Run(gpt2)
    growth = grown.grow(OneSeed("transformer.h.1", "bottleneck_mlp", Stage.TRAINING, start=40))
    assert stages(growth.records())[:3] == ["germinated", "training", "culled"]
    found = grown.bits()
    plain = Run(gpt2)
    plain.train()
    assert all(map(torch.equal, found, plain.bits()))


def test_tied_weights_carry_slots_on_both_sides_and_keep_what_grows_there() -> None:
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    slots = esper.slots(model, words()).slots
    assert {"transformer.wte", "lm_head"} < set(slots)
    for name in ("transformer.wte", "lm_head"):
        model = grown_in(gpt2(), slots[name])
        plain = esper.export(model)
        assert plain.lm_head.weight is plain.transformer.wte.weight
