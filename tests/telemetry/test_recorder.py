from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.kasmina.digest import model_digest
from esper.kasmina.slots import find_slots
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.telemetry.errors import TelemetryError
from esper.telemetry.layers import Layer, layers_of
from esper.telemetry.recorder import FIGURES, StepRecorder
from esper_events.keys import SigningKey

Batch = tuple[Tensor, Tensor]


def host() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3))


def batches(count: int) -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(16, 5), torch.randint(3, (16,))) for _ in range(count)]


class Training:
    """A host, its optimizer and, where asked for, its recorder."""

    def __init__(self, capacity: int = 100, staged: int = 32, watched: bool = True) -> None:
        self.model = host()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.gradients: list[Tensor] = []
        self.recorder: StepRecorder | None = None
        self.steps = 0
        if watched:
            self.recorder = StepRecorder(self.layers(), capacity, staged)
            self.recorder.attach(self.layers(), self.optimizer)
            self.recorder.open = True

    def layers(self) -> list[Layer]:
        x = torch.zeros(2, 5)
        return layers_of(self.model, find_slots(self.model, lambda: self.model(x)).slots.values())

    def step(self, batch: Batch) -> None:
        self.steps += 1
        cross_entropy(self.model(batch[0]), batch[1]).backward()
        self.gradients.append(self.model[0].weight.grad.clone())  # type: ignore[union-attr]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.recorder is not None:
            self.recorder.commit(self.steps)

    def history(self) -> Any:
        assert self.recorder is not None
        return self.recorder.history()


def reference(x: Tensor) -> list[float]:
    d = x.double()
    return [
        float(d.mean()),
        float(d.var(correction=0)),
        float(d.abs().max()),
        float((d == 0).double().mean()),
        0.0,
    ]


def test_every_step_has_the_figures_of_its_tensors() -> None:
    training, data = Training(), batches(3)
    for batch in data:
        training.step(batch)
    steps, records = training.history()
    assert steps.tolist() == [1, 2, 3] and records.shape == (3, 3, 2, len(FIGURES))
    for record, batch, gradient in zip(records, data, training.gradients, strict=True):
        np.testing.assert_allclose(record[0, 0], reference(batch[0]), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(record[0, 1], reference(gradient), rtol=1e-5, atol=1e-9)
    assert training.recorder is not None
    steps, zeros = training.recorder.series("2", "input", "zeros")
    assert steps.tolist() == [1, 2, 3] and (zeros > 0.2).all()


def test_being_recorded_changes_no_bit() -> None:
    watched, alone = Training(), Training(watched=False)
    for batch in batches(20):
        watched.step(batch)
        alone.step(batch)
    assert model_digest(watched.model) == model_digest(alone.model)


@pytest.mark.parametrize("staged", [1, 3, 7])
def test_rows_that_wait_on_the_device_are_the_same(staged: int) -> None:
    direct, waiting = Training(6), Training(6, staged)
    for batch in batches(10):
        direct.step(batch)
        waiting.step(batch)
    for one, other in zip(direct.history(), waiting.history(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert waiting.history()[0].tolist() == [5, 6, 7, 8, 9, 10]


def test_only_the_open_host_itself_is_seen() -> None:
    training, data = Training(), batches(2)
    training.step(data[0])
    assert training.recorder is not None
    copy.deepcopy(training.model)(data[0][0])
    pickle.loads(pickle.dumps(training.model))(data[0][0])
    with torch.no_grad():
        training.model(data[0][0])
    training.recorder.open = False
    training.model(data[0][0])
    training.recorder.commit(2)
    training.recorder.detach()
    assert np.isnan(training.history()[1][1]).all()
    assert not any(m._forward_hooks for m in training.model.modules())


def test_the_last_pass_of_a_step_counts() -> None:
    training, (first, last) = Training(), batches(2)
    cross_entropy(training.model(first[0]), first[1]).backward()
    training.step(last)
    _, records = training.history()
    np.testing.assert_allclose(records[0, 0, 0], reference(last[0]), rtol=1e-6, atol=1e-9)


def test_a_module_in_anothers_place_is_followed() -> None:
    training, data = Training(), batches(3)
    training.step(data[0])
    training.model[3] = nn.Linear(8, 3)
    assert training.recorder is not None
    training.recorder.attach(training.layers(), training.optimizer)
    training.step(data[1])
    _, records = training.history()
    assert np.isfinite(records[1, 2, 0]).all()


def test_what_is_not_there_is_named() -> None:
    recorder = Training().recorder
    assert recorder is not None
    with pytest.raises(TelemetryError, match="got layer 'x', wanted one of 0, 2, 3"):
        recorder.series("x", "input", "mean")


def test_a_host_that_is_never_seen_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Training().recorder
    assert recorder is not None
    with caplog.at_level(logging.WARNING, "esper.telemetry"):
        recorder.commit(1)
        recorder.commit(2)
    assert [r.message[:40] for r in caplog.records] == ["at step 1 no layer was seen to run: comp"]


def grown(**settings: Any) -> tuple[esper.Growth, nn.Module]:
    model, data = host(), batches(40)
    optimizer = torch.optim.Adam(model.parameters())

    def loss_fn(batch: Batch) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    chosen = esper.GrowthSettings(observe_every=5, warmup=10, patience=1, plateau=1.0, **settings)
    log = EventLog(MemoryStore(), SigningKey.generate(), "telemetry")
    growth = esper.Growth(model, optimizer, loss_fn, batches(6), settings=chosen, log=log)
    for batch in data:
        loss = loss_fn(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step(batch, loss)
    return growth, model


def test_growth_keeps_telemetry_and_the_hosts_bits() -> None:
    growth, model = grown(step_statistics=True, sample_every=10, sync_decisions=True)
    plain, alone = grown(sync_decisions=True)
    assert growth.telemetry is not None and growth.telemetry.steps is not None
    steps, records = growth.telemetry.steps.history()
    # Trials and held-out passes run between two steps, and are nobody's step.
    assert steps.tolist() == list(range(1, 41))
    np.testing.assert_allclose(
        records[:, 0, 0, 0], [float(x.double().mean()) for x, _ in batches(40)], atol=1e-6
    )
    layers = growth.telemetry.layers()
    assert [layer.name for layer in layers] == ["0", "2", "3"]
    assert 0.0 < layers[0].unreachable <= 1.0
    growth.close()
    plain.close()
    assert plain.telemetry is None
    assert model_digest(model) == model_digest(alone)
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_need_a_sample_and_compiled_hosts_refuse_hooks() -> None:
    growth, _ = grown(step_statistics=True)
    assert growth.telemetry is not None
    with pytest.raises(TelemetryError, match="set sample_every"):
        growth.telemetry.layers()
    growth.close()
    model = host()
    model.compile()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TelemetryError, match="sees no hooks"):
        esper.Growth(
            model,
            optimizer,
            lambda batch: cross_entropy(model(batch[0]), batch[1]),
            batches(6),
            settings=esper.GrowthSettings(step_statistics=True),
            log=EventLog(MemoryStore(), SigningKey.generate(), "compiled"),
        )
