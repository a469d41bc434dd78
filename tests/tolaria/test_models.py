"""Hosts made from a config and its data, factories of the user's own included."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from esper.tolaria.config import ConfigError, parse
from esper.tolaria.data import Part, Splits
from esper.tolaria.models import cnn, create, mlp
from esper.tolaria.training import classification_loss, evaluate
from esper.tolaria.transformer import Transformer

HEAD = '[run]\nsteps = 10\n[data]\nname = "digits"\n[model]\n'
IMAGES = HEAD.replace("digits", "fashion_mnist")
TEXT = HEAD.replace("digits", "characters")
_numbers = itertools.count()


def splits_of(x: torch.Tensor, y: torch.Tensor, classes: int = 10) -> Splits:
    part = Part(x, y)
    return Splits(part, part, part, part, classes)


FLAT = splits_of(torch.zeros(3, 64), torch.zeros(3, dtype=torch.int64))
PLANES = splits_of(torch.zeros(3, 1, 28, 28), torch.zeros(3, dtype=torch.int64))
TOKENS = splits_of(*torch.zeros(2, 3, 16, dtype=torch.int64), classes=20)


def factory_model(directory: Path, code: str, arguments: str = "") -> nn.Module:
    """The host of a config whose factory is ``make`` in a module with ``code``."""
    name = f"esper_test_factory_{next(_numbers)}"
    (directory / f"{name}.py").write_text("from torch import nn\nimport torch\n" + code)
    return create(parse(f'{HEAD}factory = "{name}:make"\n{arguments}', directory), FLAT)


def test_an_mlp_has_named_layers_and_the_asked_parts() -> None:
    model = mlp(64, [8, 6], 10, activation="gelu", dropout=0.5, batchnorm=True)
    assert [name for name, _ in model.named_children()] == [
        "layer1",
        "norm1",
        "act1",
        "drop1",
        "layer2",
        "norm2",
        "act2",
        "drop2",
        "head",
    ]
    assert model(torch.zeros(3, 64)).shape == (3, 10)
    assert [name for name, _ in mlp(64, [], 10).named_children()] == ["head"]


def test_a_config_makes_its_mlp() -> None:
    model = create(parse(HEAD + "hidden = [8, 8]", Path()), FLAT)
    assert sum(p.numel() for p in model.parameters()) == 682


def test_a_factory_beside_the_config_is_found_and_given_arguments(tmp_path: Path) -> None:
    path = list(sys.path)
    model = factory_model(
        tmp_path,
        "def make(width):\n"
        "    return nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.Dropout(),"
        " nn.Linear(width, 10))\n",
        "arguments = {width = 5}",
    )
    assert model.training
    assert sum(p.numel() for p in model.parameters()) == 64 * 5 + 5 + 10 + 60
    assert sys.path == path


def test_asking_a_factorys_model_costs_no_randomness(tmp_path: Path) -> None:
    torch.manual_seed(1)
    factory_model(tmp_path, "def make():\n    return nn.Sequential(nn.Linear(64, 10))\n")
    after = torch.rand(1)
    torch.manual_seed(1)
    nn.Linear(64, 10)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("make = 3\n", "has no function 'make'"),
        ("def make(: pass\n", r"importing '\w+' failed \(SyntaxError"),
        ("1 / 0\n", "failed .ZeroDivisionError: division by zero"),
        ("def make():\n    raise RuntimeError('no\\nway')\n", "failed .RuntimeError: no way"),
        ("def make():\n    return 3\n", "returned int, wanted a torch.nn.Module"),
        ("def make():\n    return nn.Flatten()\n", "no parameters to train, wanted at least one"),
        ("def make():\n    return nn.Linear(3, 10)\n", "the model fails on a batch of shape"),
        ("def make():\n    return nn.Linear(64, 9)\n", r"maps \[2, 64\] to \(2, 9\), wanted"),
    ],
)
def test_a_failing_factory_is_told_in_one_line(tmp_path: Path, code: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as error:
        factory_model(tmp_path, code)
    assert str(error.value).startswith("model.factory: ")
    assert "\n" not in str(error.value)


def test_a_missing_module_is_told(tmp_path: Path) -> None:
    config = parse(HEAD + 'factory = "no_such_module_here:make"', tmp_path)
    with pytest.raises(
        ConfigError, match=r"model\.factory: importing 'no_such_module_here' failed"
    ):
        create(config, FLAT)


def test_a_cnn_has_named_stages_that_halve_the_image() -> None:
    model = cnn(1, 28, [2, 4], [6], 10, kernel=5, pooling="average", batchnorm=True)
    stage = ("conv", "norm", "act", "pool")
    names = [f"{name}{number}" for number in (1, 2) for name in stage]
    assert [name for name, _ in model.named_children()] == [*names, "flatten", "mlp"]
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert model[:8](torch.zeros(3, 1, 28, 28)).shape == (3, 4, 7, 7)


def test_images_go_to_a_cnn_or_flat_to_an_mlp() -> None:
    for text in ('kind = "cnn"\nchannels = [2, 4]', "hidden = [8]"):
        model = create(parse(IMAGES + text, Path()), PLANES)
        assert model(PLANES.train.x).shape == (3, 10)


def test_more_stages_than_an_image_has_halves_are_refused() -> None:
    config = parse(IMAGES + 'kind = "cnn"\nchannels = [1, 1, 1, 1, 1]', Path())
    with pytest.raises(ConfigError, match=r"model\.channels: got 5 stages, wanted at most 4"):
        create(config, PLANES)


def test_no_position_of_the_transformer_sees_a_later_one() -> None:
    torch.manual_seed(0)
    text = 'kind = "transformer"\nwidth = 8\nlayers = 2\nheads = 2'
    model = create(parse(TEXT + text, Path()), TOKENS)
    x = torch.randint(20, (5, 16))
    for position in (1, 7, 15):
        changed = x.clone()
        changed[:, position:] = (changed[:, position:] + 1) % 20
        before, after = model(x), model(changed)
        assert torch.equal(before[:, :position], after[:, :position])
        assert not torch.equal(before[:, position], after[:, position])


def test_the_transformer_learns_what_an_earlier_position_tells() -> None:
    torch.manual_seed(0)
    x = torch.randint(8, (64, 12))
    y = torch.cat([x[:, :1], x[:, :-1]], dim=1)  # the token before
    model = Transformer(12, 8, width=16, heads=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        classification_loss(model)((x, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert evaluate(model, Part(x, y)).accuracy > 90.0


def test_a_score_counts_every_position_whatever_the_batches() -> None:
    torch.manual_seed(0)
    model = Transformer(6, 5, width=4)
    part = Part(torch.randint(5, (1203, 6)), torch.randint(5, (1203, 6)))
    score = evaluate(model, part)
    with torch.no_grad():
        logits = model(part.x).double()
    right = (logits.argmax(-1) == part.y).double().mean()
    loss = -logits.log_softmax(-1).gather(-1, part.y[..., None]).mean()
    assert score.accuracy == pytest.approx(100.0 * float(right))
    assert score.loss == pytest.approx(float(loss), rel=1e-5)
    assert classification_loss(model)(part).item() == pytest.approx(float(loss), rel=1e-5)
