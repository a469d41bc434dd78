"""Hosts made from a config, factories of the user's own included."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from esper.tolaria.config import ConfigError, parse
from esper.tolaria.models import create, mlp

HEAD = '[run]\nsteps = 10\n[data]\nname = "digits"\n[model]\n'
_numbers = itertools.count()


def factory_model(directory: Path, code: str, arguments: str = "") -> nn.Module:
    """The host of a config whose factory is ``make`` in a module with ``code``."""
    name = f"esper_test_factory_{next(_numbers)}"
    (directory / f"{name}.py").write_text("from torch import nn\nimport torch\n" + code)
    return create(parse(f'{HEAD}factory = "{name}:make"\n{arguments}', directory), 64, 10)


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
    model = create(parse(HEAD + "hidden = [8, 8]", Path()), 64, 10)
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
        create(config, 64, 10)
