"""The published training settings of the networks made for CIFAR are their defaults."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Command

from anchornet_ext._options import read_options
from anchornet_ext.systems import find_system, own_system_names
from anchornet_ext.training.command import add_arguments_for
from anchornet_ext.training.config import StageConfig, stage_config
from anchornet_ext.training.schedule import learning_rate

PAPERS = (50.0, 75.0)


def settings_of(*words: str) -> tuple[argparse.Namespace, Any, StageConfig]:
    """What `anchornet train` makes of a command line with the one stage "network"."""
    every = ["--data", "x", "--out", "y", *words]
    parser = argparse.ArgumentParser()
    add_arguments_for(parser, every)
    args = parser.parse_args(every)
    (stage,) = args.chosen.stages
    return args, read_options(args, args.chosen.Options), stage_config(args, stage)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("--system", "ranet", "--preset", "cifar"),
            {"epochs": 300, "batch": 64, "lr": 0.1, "milestones": PAPERS, "nesterov": False},
        ),
        (
            ("--system=ranet", "--preset=cifar-growing"),
            {"epochs": 300, "batch": 64, "lr": 0.1, "milestones": PAPERS, "nesterov": False},
        ),
        (
            ("--system", "msdnet", "--preset", "cifar-anytime"),
            {"epochs": 300, "batch": 64, "lr": 0.1, "milestones": PAPERS, "nesterov": True},
        ),
        (
            ("--preset", "cifar-batch", "--system", "msdnet"),
            {"epochs": 300, "batch": 64, "lr": 0.1, "milestones": PAPERS, "nesterov": True},
        ),
        (
            ("--system", "sar", "--backbone", "resnet32"),
            {"epochs": 300, "batch": 128, "lr": 0.2, "warmup_epochs": 0.0, "label_smoothing": 0.0},
        ),
        (
            ("--system", "plain", "--backbone", "cifar/resnet32"),
            {"epochs": 164, "batch": 128, "lr": 0.1, "milestones": PAPERS, "nesterov": False},
        ),
    ],
)
def test_networks_for_cifar_train_as_published(
    words: tuple[str, ...], expected: dict[str, Any]
) -> None:
    args, options, config = settings_of(*words)
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.pad, config.flip, config.weight_decay) == (4, 0.5, 1e-4)
    assert (args.crop_size, args.resize_size) == (32, 32)
    assert config.schedule == ("cosine" if args.chosen.name == "sar" else "step")
    if config.schedule == "step":
        rates = [learning_rate(config, epoch) for epoch in range(config.epochs)]
        changes = [e for e in range(1, config.epochs) if rates[e] != rates[e - 1]]
        assert changes == [config.epochs // 2, config.epochs * 3 // 4]
    if args.chosen.name == "sar":
        assert options.penalty == 1.0


@pytest.mark.parametrize(
    "words",
    [
        ("--system", "ranet"),
        ("--system", "ranet", "--preset", "imagenet-wide"),
        ("--system", "msdnet", "--preset", "imagenet-base7"),
        ("--system", "sar"),
        ("--system", "sar", "--backbone", "resnet34"),
        ("--system", "plain", "--backbone", "resnet50"),
    ],
)
def test_other_networks_keep_their_systems_settings(words: tuple[str, ...]) -> None:
    args, options, config = settings_of(*words)
    (stage,) = args.chosen.stages
    assert config == stage.default
    assert (args.crop_size, args.resize_size) == (224, 256)
    if args.chosen.name == "sar":
        assert (options.penalty, config.warmup_epochs) == (0.5, 5)


def test_a_flag_that_is_given_wins_even_before_the_network() -> None:
    args, options, config = settings_of(
        *("--network-epochs", "2", "--crop-size", "28", "--network-milestones", "40"),
        *("--penalty", "0.5", "--network-pad", "0", "--network-lr", "0.1"),
        *("--system", "sar", "--backbone", "resnet32", "--network-schedule", "step"),
    )
    assert (config.epochs, config.milestones, config.pad, config.lr) == (2, (40.0,), 0, 0.1)
    assert (config.schedule, config.batch) == ("step", 128)
    assert (args.crop_size, args.resize_size, options.penalty) == (28, 32, 0.5)


@pytest.mark.parametrize("name", own_system_names())
def test_recipes_are_for_stages_and_options_that_there_are(name: str) -> None:
    system = find_system(name)
    assert system.recipe(None) is None
    assert system.recipe("no such network") is None
    if system.decisive is None:
        return
    assert system.decisive in system.Options.__dataclass_fields__
    # Every system with such an option has some network for CIFAR among its choices.
    choices = system.Options.__dataclass_fields__[system.decisive].metadata["choices"]
    recipes = [system.recipe(choice) for choice in choices or ("cifar/resnet32",)]
    found = [recipe for recipe in recipes if recipe is not None]
    assert found
    for recipe in found:
        assert set(recipe.stages) <= {stage.name for stage in system.stages}
        assert isinstance(recipe.options, system.Options)


def test_help_shows_the_settings_of_the_network_that_is_chosen(anchornet: Command) -> None:
    shown = anchornet("train", "--system", "ranet", "--preset", "cifar", "--help").stdout
    assert "the defaults are those of the paper's training on CIFAR" in " ".join(shown.split())
    assert "passes over the training images (300)" in shown
    assert "crop of a photo (32)" in shown
    usual = anchornet("train", "--system", "ranet", "--help").stdout
    assert "passes over the training images (90)" in usual
    assert "crop of a photo (224)" in usual


def test_a_run_says_what_it_trains_with(photos: Path, tmp_path: Path, anchornet: Command) -> None:
    run = tmp_path / "run"
    done = anchornet(
        *("train", "--system", "plain", "--backbone", "cifar/resnet8", "--data", photos),
        *("--out", run, "--network-epochs", 1, "--workers", 0, "--threads", 1),
    )
    assert done.returncode == 0, done.stderr
    log = (run / "log.txt").read_text()
    assert "where no flag says otherwise, the settings are He et al. on CIFAR" in log
    assert "network: 1 epochs, batch 128, sgd, learning rate 0.1, step at 50 75 %" in log
    config = json.loads((run / "config.json").read_text())
    assert config["preprocessing"]["crop_size"] == 32
    assert config["stages"]["network"]["pad"] == 4
