"""The config: what it accepts, and the one line that each mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria.config import (
    CnnSettings,
    Config,
    ConfigError,
    FactorySettings,
    MlpSettings,
    TransformerSettings,
    parse,
    read,
    with_seed,
)

HEAD = '[run]\nsteps = 10\n[data]\nname = "digits"\n'
GOOD = HEAD + "[model]\nhidden = [8, 8]\n"
IMAGES = HEAD.replace("digits", "fashion_mnist")
TEXT = HEAD.replace("digits", "characters")
CNN = '[model]\nkind = "cnn"\nchannels = [4]\n'
TRANSFORMER = '[model]\nkind = "transformer"\nwidth = 8\nlayers = 1\n'
QUICK = HEAD.replace("[run]", "[run]\nquick = true") + "[model]\nhidden = [8, 8]\n"


def parsed(text: str) -> Config:
    return parse(text, Path())


def test_a_short_config_has_sane_defaults() -> None:
    config = parsed(GOOD)
    assert config.run.steps == 10
    assert config.run.threads == 1
    assert config.model == MlpSettings(hidden=(8, 8))
    assert config.optimizer.name == "adam"
    assert config.growth.objectives == ("shadow",)
    assert config.log.ack == "journal"
    assert config.text == GOOD


def test_every_section_can_be_set() -> None:
    config = parsed(
        '[run]\nsteps = 1_000\nseed = 7\nthreads = 2\nbatch_size = 16\n[data]\nname = "mnist1d"\n'
        '[model]\nkind = "mlp"\nhidden = [4]\nactivation = "gelu"\ndropout = 0.1\n'
        'batchnorm = true\n[optimizer]\nname = "sgd"\nlr = 1\nmomentum = 0.9\n'
        '[growth]\nmax_growths = 1\nblueprints = ["widen"]\nobjectives = ["next_layer", "shadow"]\n'
        '[log]\nack = "jetstream"\nnats = "tls://example.org:4222"\nworkspace = "here"\n'
    )
    assert config.optimizer.lr == 1.0
    assert config.growth.blueprints == ("widen",)
    assert config.growth.objectives == ("next_layer", "shadow")
    assert config.log.nats == "tls://example.org:4222"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "run.steps: missing, wanted a whole number from 1 to 1,000,000,000"),
        ("run = 3", "run: got 3, wanted a table, [run]"),
        ("[runs]", "runs: unknown key, did you mean 'run'?"),
        (GOOD + "[growth]\nmax_growth = 3", "growth.max_growth: unknown key, did you mean"),
        (GOOD + "[growth]\nmax_growths = -1", "growth.max_growths: got -1, wanted a whole number"),
        (GOOD + "[growth]\nmin_effect = 1.5", "growth.min_effect: got 1.5, wanted a number from 0"),
        (GOOD + '[growth]\nplateau = "x"', "growth.plateau: got 'x', wanted a number from 0 to 1"),
        (GOOD + '[growth]\nblueprints = ["wide"]', "growth.blueprints: unknown name 'wide', did"),
        (GOOD + "[growth]\nblueprints = [3]", "growth.blueprints[0]: got 3, wanted text"),
        (GOOD + '[growth]\nobjectives = ["foo"]', "growth.objectives[0]: got 'foo', wanted one of"),
        (
            GOOD + '[growth]\nobjectives = "shadow"',
            "growth.objectives: got 'shadow', wanted a list",
        ),
        (GOOD + "[growth]\nobjectives = []", "growth.objectives: got [], wanted a list"),
        (GOOD + '[growth]\n"a\\nb" = 1', "growth.a\\nb: unknown key"),
        (GOOD + "[optimizer]\nlr = nan", "optimizer.lr: got nan, wanted a number above 0"),
        (GOOD + "[optimizer]\nlr = inf", "optimizer.lr: got inf, wanted a number above 0"),
        (GOOD + "[optimizer]\nlr = true", "optimizer.lr: got true, wanted a number above 0"),
        (GOOD + "[optimizer]\nlr = 0", "optimizer.lr: got 0, wanted a number above 0"),
        (GOOD + '[optimizer]\nname = "adem"', "optimizer.name: got 'adem', wanted one of 'adam'"),
        (GOOD + "[optimizer]\nmomentum = 0.5", "optimizer.momentum: 'adam' has none"),
        (GOOD + '[optimizer]\nname = "sgd"\nbetas = [0.9, 0.9]', "optimizer.betas: 'sgd' has none"),
        (GOOD + "[optimizer]\nbetas = [0.9, 1.0]", "optimizer.betas[1]: got 1.0, wanted a number"),
        (GOOD + "[optimizer]\nbetas = [0.9, nan]", "optimizer.betas[1]: got nan, wanted a number"),
        (GOOD + '[log]\nnats = "example"', "log.nats: got 'example', wanted an address such as"),
        (GOOD + '[log]\nnats = "nats://me:secret@host"', "log.nats: holds a user or password"),
        (GOOD + '[log]\nnats = "nats://host:99999"', "log.nats: got 'nats://host:99999', wanted"),
        (GOOD + '[log]\nnats = "nats://[host"', "log.nats: got 'nats://[host', wanted"),
        (GOOD + '[log]\nack = "disk"', "log.ack: got 'disk', wanted one of"),
        (HEAD, "model.hidden: missing, wanted a list of items, each a whole number"),
        (HEAD + "[model]\nhidden = 8", "model.hidden: got 8, wanted a list"),
        (HEAD + "[model]\nhidden = [8, 0]", "model.hidden[1]: got 0, wanted a whole number from 1"),
        (HEAD + "[model]\nhiddn = [8]", "model.hiddn: unknown key, did you mean 'hidden'?"),
        (
            HEAD + '[model]\nkind = "rnn"\nhidden = []',
            "model.kind: got 'rnn', wanted one of 'cnn', 'mlp'",
        ),
        (HEAD + '[model]\nfactory = "x"', "model.factory: got 'x', wanted 'module:function'"),
        (HEAD + '[model]\nfactory = "x:y"\nhidden = [8]', "model.hidden: unknown key"),
        (HEAD + '[model]\nfactory = "x:y"\nkind = "mlp"', "model.kind: got a model.factory too"),
        (HEAD + CNN, "model.kind: 'cnn' cannot learn 'digits', wanted 'mlp'"),
        (IMAGES + "[model]\nhidden = []\nchannels = [4]", "model.channels: unknown key"),
        (IMAGES + CNN + "kernel = 2", "model.kernel: got 2, wanted one of 1, 3, 5, 7"),
        (IMAGES + '[model]\nkind = "cnn"\nchannels = []', "model.channels: got [], wanted a list"),
        (IMAGES + '[model]\nkind = "transformer"', "model.width: missing, wanted a whole number"),
        (TEXT + CNN, "model.kind: 'cnn' cannot learn 'characters', wanted 'transformer'"),
        (TEXT + TRANSFORMER + "heads = 3", "model.heads: got 3, wanted a divisor of the width 8"),
        (TEXT + "window = 1", "data.window: got 1, wanted a whole number from 2 to 1,024"),
        (TEXT + 'path = "x"\n' + TRANSFORMER, "data.path: 'characters' has none, only 'fashion"),
        (IMAGES + "window = 8\n" + CNN, "data.window: 'fashion_mnist' has none, only 'characters'"),
        (IMAGES + "examples = 1", "data.examples: got 1, wanted a whole number from 2"),
        ("[run]\nsteps = 0", "run.steps: got 0, wanted a whole number from 1"),
        ("[run]\nsteps = 1.0", "run.steps: got 1.0, wanted a whole number"),
        ("[run]\nsteps = " + "9" * 4000, "run.steps: got 9999"),
        ("[run\n", "not TOML: "),
        ("a = 1\na = 2", "not TOML: "),
        ("a = " + "[" * 5000, "not TOML: "),
    ],
)
def test_each_mistake_gets_one_line_that_names_the_key(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(text)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_quick_values_take_the_place_of_the_others_where_asked_for() -> None:
    tail = "[quick.run]\nsteps = 3\n[quick.data]\nexamples = 50\n[quick.growth]\nlead = 7\n"
    slow, quick = parsed(GOOD + tail), parsed(QUICK + tail)
    assert (slow.run.steps, slow.data.examples, slow.growth.lead) == (10, None, 20)
    assert (quick.run.steps, quick.data.examples, quick.growth.lead) == (3, 50, 7)
    assert quick.model == slow.model
    assert parsed(quick.text) == quick


@pytest.mark.parametrize("head", [GOOD, QUICK])
@pytest.mark.parametrize(
    ("tail", "line"),
    [
        ("[quick.run]\nstep = 3", "quick.run.step: unknown key, did you mean 'steps'?"),
        ("[quick.run]\nsteps = 0", "quick.run.steps: got 0, wanted a whole number from 1"),
        ("[quick.runs]\nsteps = 3", "quick.runs: unknown key, did you mean 'run'?"),
        ("[quick]\nrun = 3", "quick.run: got 3, wanted a table, [quick.run]"),
        ("[[quick]]\nsteps = 3", "quick: got [{'steps': 3}], wanted tables such as [quick.run]"),
        ("[quick.run]\nquick = false", "quick.run.quick: stands in [run] alone"),
        ("[quick.model]\nhidden = [0]", "quick.model.hidden[0]: got 0, wanted a whole number"),
        ('[quick.model]\nkind = "cnn"', "quick.model.channels: missing, wanted"),
        ("[quick.optimizer]\nmomentum = 0.5", "quick.optimizer.momentum: 'adam' has none"),
        ('[quick.growth]\nblueprints = ["wide"]', "quick.growth.blueprints: unknown name 'wide'"),
        ("[quick.data]\nwindow = 8", "quick.data.window: 'digits' has none"),
    ],
)
def test_quick_values_are_checked_in_any_case(head: str, tail: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(head + tail)
    assert str(error.value).startswith(line)


def test_quick_without_values_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.quick: true, but there is no \[quick\.run\]"):
        parsed(QUICK)


def test_a_cnn_and_a_transformer_can_be_set() -> None:
    cnn = parsed(IMAGES + "examples = 500\n" + CNN + 'kernel = 5\npooling = "average"').model
    assert cnn == CnnSettings(kind="cnn", channels=(4,), kernel=5, pooling="average")
    text = parsed(TEXT + "window = 32\n" + TRANSFORMER + "heads = 2\nhidden = 12")
    assert text.data.window == 32
    assert text.model == TransformerSettings(
        kind="transformer", width=8, layers=1, heads=2, hidden=12
    )


@given(st.text(max_size=300) | st.text(max_size=60).map(lambda tail: GOOD + tail))
def test_any_text_is_a_config_or_one_line(text: str) -> None:
    told = ""
    try:
        parsed(text)
    except ConfigError as error:
        told = str(error)
    assert len(told.splitlines()) <= 1


def test_a_file_is_read_and_its_mistakes_name_it(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(GOOD)
    assert read(path).directory == tmp_path
    path.write_text(GOOD + "[grow]")
    with pytest.raises(ConfigError, match=r"c\.toml: grow: unknown key"):
        read(path)
    path.write_bytes(b"# abc\xe9\n")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 5\)"):
        read(path)
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError, match="at most"):
        read(path)
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)


def test_the_seed_can_be_replaced() -> None:
    config = parsed(GOOD)
    assert with_seed(config, None) is config
    assert with_seed(config, 5).run.seed == 5
    with pytest.raises(ConfigError, match=r"run\.seed: got -1"):
        with_seed(config, -1)


def test_a_factory_takes_arguments() -> None:
    config = parsed(HEAD + '[model]\nfactory = "a.b:c"\narguments = {width = 3}')
    assert config.model == FactorySettings(factory="a.b:c", arguments={"width": 3})
