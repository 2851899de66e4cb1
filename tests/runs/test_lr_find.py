"""The learning-rate finder: a ramp on the real loop, what its curve suggests, and that it leaves nothing."""

from __future__ import annotations

import json
import math
import shlex

import pytest

from mlxforge.cli.main import run as command
from mlxforge.core.errors import ConfigError
from mlxforge.core.settings import CptConfig, LoraSettings
from mlxforge.runs.lr_find import curve_of, diverges, lr_find, running_mean
from mlxforge.runs.space import dimensions


@pytest.fixture(scope="module")
def config(documents):
    return CptConfig(
        data=[str(documents / "05.txt")], max_length=32, batch_tokens=256, lora=LoraSettings(rank=4, alpha=8.0), valid_split=0
    )


def test_the_running_mean_by_hand():
    assert running_mean([4.0]) == [4.0]
    assert running_mean([4.0, 1.0])[1] == pytest.approx((0.8 * 4 + 1) / 1.8)
    assert running_mean([3.0] * 5) == pytest.approx([3.0] * 5)


def test_the_suggestion_lies_where_the_curve_says():
    """A loss that falls from 5 to 2 around 1e-4, steepest there, and rises from 1e-2 on."""
    rates = [10 ** (-6 + index * 5 / 200) for index in range(201)]
    losses = [5 - 3 / (1 + math.exp(-9 * (math.log10(rate) + 4))) + max(0.0, 8 * (math.log10(rate) + 2)) for rate in rates]
    found = curve_of(rates, losses, diverged=True)
    assert math.log10(found.steepest) == pytest.approx(-4, abs=0.05)
    assert 1e-4 < found.tenth < 1.1e-3  # it is lowest between 1e-3 and 1e-2
    assert found.suggested == float(f"{found.steepest:.2g}")


def test_what_lies_behind_the_first_valley_does_not_count():
    """A model that has collapsed may end below the valley that it left."""
    losses = (
        [9.0] * 10 + [9 - index / 5 for index in range(15)] + [6 + index / 2 for index in range(9)] + [10.0] * 12 + [5.0] * 30
    )
    rates = [1e-6 * 1.2**index for index in range(len(losses))]
    assert curve_of(rates, losses, diverged=False).tenth < rates[27] / 10


@pytest.mark.parametrize(
    ("running", "end"),
    [
        ([1.0] * 6 + [4.0] * 4, False),  # too early to tell
        ([1.0] * 11 + [3.9], False),
        ([1.0] * 11 + [4.1], True),
        ([9.0] * 8 + [8.5, 7.5, 8.5, 9.1], False),  # it hardly fell
        ([9.0] * 8 + [8.5, 6.0, 7.5, 8.2], False),
        ([9.0] * 8 + [8.5, 6.0, 7.5, 8.3], True),
    ],
)
def test_when_a_loss_diverges(running, end):
    assert diverges(running) is end


@pytest.mark.parametrize("losses", [[3.0] * 40, [3.0 + index / 10 for index in range(40)], [2.0] * 3, []])
def test_a_loss_that_does_not_fall_suggests_nothing(losses):
    rates = [1e-6 * 1.5**index for index in range(len(losses))]
    assert curve_of(rates, losses, diverged=False).suggested is None


def test_the_rate_rises_by_a_factor_until_the_loss_diverges_and_nothing_stays(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = lr_find(config, 1e-4, 1e2, 40)
    steps = [math.log(b / a) for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert found.rates[0] == pytest.approx(1e-4)
    assert steps == pytest.approx([math.log(1e6) / 39] * len(steps))
    assert found.diverged
    assert 10 < len(found.rates) < 40
    assert 1e-4 < found.suggested < 1
    assert found == lr_find(config, 1e-4, 1e2, 40)
    assert not list(tmp_path.iterdir())


def test_it_ends_at_the_last_rate_where_nothing_diverges(config):
    found = lr_find(config, 1e-9, 1e-8, 20)
    assert (len(found.rates), found.diverged, found.suggested) == (20, False, None)
    assert found.rates[-1] == pytest.approx(1e-8)


@pytest.mark.parametrize(("low", "high", "steps"), [(1e-2, 1e-3, 50), (0, 1, 50), (1e-5, 1, 19)])
def test_a_bad_ramp_is_refused(config, low, high, steps):
    with pytest.raises(ConfigError):
        lr_find(config, low, high, steps)


def test_the_command_prints_one_object_and_draws(documents, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ("max_length=32", "batch_tokens=256", "lora.rank=4", f"data={documents / '05.txt'}", "valid_split=0")
    words = [word for setting in small for word in ("--set", setting)]
    words = ["lr-find", "cpt", *words, "--from", "1e-4", "--steps", "24"]
    assert command([*words, "--json", "--plot", "rates.svg"], debug=False) == 0
    found = json.loads(capsys.readouterr().out)
    train, sweep = (shlex.split(line) for line in found["next"])
    settings = [word for setting in small for word in ("--set", setting)]
    assert train == ["mlxforge", "cpt", *settings, "--learning-rate", f"{found['suggested']:g}"]
    over = f"learning_rate={found['suggested']:g}..{10 * found['tenth']:.2g}:log"
    assert sweep == ["mlxforge", "sweep", "cpt", *settings, "--over", over, "--trials", "8"]
    assert dimensions(CptConfig, [over])
    assert [path.name for path in tmp_path.iterdir()] == ["rates.svg"]
    assert command([*words, "--plot", "rates.doc"], debug=False) == 2
    assert "cannot draw '.doc'" in capsys.readouterr().err
