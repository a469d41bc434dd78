"""The learning rate of ``esper train``, and the place in the data that a resumed run starts at."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from esper.tolaria.config import ConfigError, parse
from esper.tolaria.data.parts import Part
from esper.tolaria.schedule import make_scheduler, share_of_rate
from esper.tolaria.sections import ScheduleSettings
from esper.tolaria.training import endless_batches

RUN = '[run]\nsteps = 10\n[data]\nname = "digits"\n[model]\nhidden = [4]\n[schedule]\n'


def shares(settings: ScheduleSettings, steps: int = 12) -> list[float]:
    return [share_of_rate(settings, steps, done) for done in range(steps + 1)]


def test_a_warm_up_rises_in_a_line_to_the_whole_rate() -> None:
    assert shares(ScheduleSettings(warmup=3))[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert set(shares(ScheduleSettings())) == {1.0}


def test_a_cosine_falls_from_the_whole_rate_to_its_last_share() -> None:
    found = shares(ScheduleSettings(kind="cosine", warmup=2, final=0.1))
    assert found[2] == 1.0
    assert found[7] == pytest.approx(0.55)
    assert found[-1] == pytest.approx(0.1)
    assert found[2:] == sorted(found[2:], reverse=True)


def test_steps_multiply_the_rate() -> None:
    found = shares(ScheduleSettings(kind="step", warmup=2, every=4, factor=0.5))
    assert found[2:11] == [1.0] * 4 + [0.5] * 4 + [0.25]


def test_a_constant_schedule_leaves_the_rate_as_it_is_in_every_bit() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    scheduler = make_scheduler(optimizer, ScheduleSettings(), 5)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("final = 0.1", "schedule.final: 'constant' has none, only 'cosine' has"),
        ('kind = "cosine"\nevery = 5', "schedule.every: 'cosine' has none, only 'step' has"),
        ('kind = "linear"', "schedule.kind: got 'linear'"),
        ('kind = "step"\nfactor = 0.0', "schedule.factor: got 0.0"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse(RUN + text, Path())


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9, 23])
def test_batches_from_a_number_on_are_those_of_the_whole_order(start: int) -> None:
    part = Part(torch.arange(17.0).reshape(17, 1), torch.arange(17))
    whole = list(islice(endless_batches(part, 4, seed=3), start, start + 6))
    found = list(islice(endless_batches(part, 4, seed=3, start=start), 6))
    assert all(torch.equal(one[1], two[1]) for one, two in zip(whole, found, strict=True))
