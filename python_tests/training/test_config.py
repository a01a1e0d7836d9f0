"""Flags, defaults and the learning rate."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields

import pytest
import torch

from anchornet_ext.systems.anchornet import STAGES as ANCHORNET_STAGES
from anchornet_ext.training.config import Stage, StageConfig, add_stage_arguments, stage_config
from anchornet_ext.training.schedule import learning_rate

STAGES = {stage.name: stage for stage in ANCHORNET_STAGES}
DEFAULTS = {name: stage.default for name, stage in STAGES.items()}


def parse(*words: str, stage: str = "anchor") -> StageConfig:
    parser = argparse.ArgumentParser()
    add_stage_arguments(parser, STAGES[stage])
    return stage_config(parser.parse_args(words), STAGES[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_no_flags_give_the_defaults(stage: str) -> None:
    assert parse(stage=stage) == DEFAULTS[stage]


def test_defaults_are_the_papers_recipe() -> None:
    anchor, glance = DEFAULTS["anchor"], DEFAULTS["glance"]
    assert (anchor.epochs, anchor.lr, anchor.batch, anchor.weight_decay) == (100, 0.1, 256, 1e-4)
    assert (anchor.momentum, anchor.nesterov, anchor.schedule) == (0.9, True, "step")
    rates = [learning_rate(anchor, epoch) for epoch in range(100)]
    changes = [e for e in range(1, 100) if rates[e] != rates[e - 1]]
    assert changes == [30, 60, 90]
    assert rates[-1] == pytest.approx(1e-4)
    assert (glance.epochs, glance.lr, glance.size) == (30, 0.01, 95)
    assert (glance.momentum, glance.nesterov, glance.schedule) == (0.9, False, "cosine")
    assert glance == DEFAULTS["focus"].__class__(**{**DEFAULTS["focus"].to_dict(), "size": 95})


def test_every_field_can_be_set_by_its_flag() -> None:
    wanted = {
        "epochs": 7, "batch": 12, "optimizer": "adamw", "lr": 0.25, "schedule": "cosine",
        "milestones": (10.0, 20.0), "gamma": 0.5, "min_lr": 0.01, "warmup_epochs": 1.5,
        "momentum": 0.8, "nesterov": False, "weight_decay": 0.2, "norm_weight_decay": False,
        "clip_norm": 3.0, "label_smoothing": 0.1, "crop_scale": (0.2, 0.9),
        "crop_ratio": (0.5, 2.0), "pad": 3, "flip": 0.25, "augment": "trivialaugment",
        "colour_jitter": (0.1, 0.2, 0.3, 0.4), "erasing": 0.3, "mixup": 0.2, "cutmix": 0.4,
        "ema": 0.99, "dropout": 0.15,
    }  # fmt: skip
    assert set(wanted) == {field.name for field in fields(StageConfig)} - {"size"}
    words: list[str] = []
    for name, value in wanted.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--anchor-{flag}" if value else f"--anchor-no-{flag}")
            words[-1] = words[-1].replace("--anchor-no-", "--no-anchor-")
        elif isinstance(value, tuple):
            words += [f"--anchor-{flag}", *map(str, value)]
        else:
            words += [f"--anchor-{flag}", str(value)]
    config = parse(*words)
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert StageConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert parse("--backbone-size", "96", stage="backbone").size == 96


def test_a_default_that_is_whole_does_not_make_its_flag_a_whole_number() -> None:
    stage = Stage("network", StageConfig(lr=1, warmup_epochs=5))
    parser = argparse.ArgumentParser()
    add_stage_arguments(parser, stage)
    words = ["--network-warmup-epochs", "0.2", "--network-lr", "0.5"]
    config = stage_config(parser.parse_args(words), stage)
    assert (config.warmup_epochs, config.lr) == (0.2, 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--anchor-epochs", "-1"), "stage anchor: epochs must be at least 0, not -1"),
        (("--anchor-batch", "0"), "batch must be at least 1, not 0"),
        (("--anchor-lr", "0"), "lr must be positive and finite, not 0"),
        (("--anchor-lr", "nan"), "lr must be positive and finite, not nan"),
        (("--anchor-lr", "inf"), "lr must be positive and finite, not inf"),
        (("--anchor-weight-decay", "inf"), "weight_decay must be at least 0 and finite"),
        (("--anchor-mixup", "inf"), "mixup must be at least 0 and finite"),
        (("--anchor-min-lr", "0.5"), "min_lr must be between 0 and lr, not 0.5"),
        (("--anchor-milestones", "60", "30"), "milestones"),
        (("--anchor-milestones", "60", "130"), "130"),
        (("--anchor-warmup-epochs", "101"), "101"),
        (("--anchor-momentum", "1"), "momentum must be within"),
        (("--anchor-momentum", "0"), "nesterov must be off without momentum"),
        (("--anchor-label-smoothing", "1"), "label_smoothing"),
        (("--anchor-crop-scale", "0", "1"), "crop scale"),
        (("--anchor-colour-jitter", "0", "0", "0", "0.6"), "0.6"),
        (("--anchor-ema", "1"), "ema"),
        (("--anchor-dropout", "1"), "dropout"),
    ],
)
def test_a_bad_value_is_named(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(*words)


def test_milestones_scale_with_the_epochs() -> None:
    config = StageConfig(epochs=10, lr=1.0, schedule="step")
    rates = [learning_rate(config, epoch) for epoch in range(10)]
    assert rates == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001])


def test_cosine_equals_torchs() -> None:
    config = StageConfig(epochs=12, lr=0.3, schedule="cosine", min_lr=0.02)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=0.02)
    for epoch in range(12):
        assert learning_rate(config, epoch) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warm_up_rises_to_where_the_schedule_begins() -> None:
    config = StageConfig(epochs=10, lr=1.0, schedule="cosine", warmup_epochs=2)
    assert learning_rate(config, 0) == pytest.approx(0.01)
    assert learning_rate(config, 1) == pytest.approx(0.505)
    assert learning_rate(config, 2) == pytest.approx(1.0)
    assert learning_rate(config, 6) == pytest.approx(0.5)
    assert learning_rate(config, 10) == pytest.approx(0.0)
