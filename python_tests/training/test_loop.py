"""The loop itself, on a network small enough to reason about: one process, and two over gloo."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import environment
from devices import needs_cuda
from safetensors.torch import load_file
from torch import Tensor, nn

from anchornet_ext.data.image_folder import scan
from anchornet_ext.data.loading import (
    EvalPhotos,
    OrderedBatches,
    ShuffledBatches,
    TrainPhotos,
    make_loader,
)
from anchornet_ext.data.sources import FileSource
from anchornet_ext.data.transforms import Preprocessing, TrainTransform
from anchornet_ext.training.average import WeightAverage
from anchornet_ext.training.config import StageConfig
from anchornet_ext.training.distributed import World, join_world
from anchornet_ext.training.loop import LoopOptions, Trainer, autocast_dtype
from anchornet_ext.training.run_log import RunLog, format_duration
from anchornet_ext.training.task import Task, TaskData, build_optimizer

CPU = World(0, 1, torch.device("cpu"))
CONFIG = StageConfig(epochs=2, batch=8, size=16, lr=0.05, nesterov=True, clip_norm=5.0)


def tiny_network() -> nn.Sequential:
    """No batch norm: its statistics are of a process's share, not of the global batch."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip


def tiny_task(photos: Path, config: StageConfig = CONFIG, world: World = CPU) -> Task:
    torch.manual_seed(0)
    train, val = scan(photos / "train"), scan(photos / "val")
    preprocessing = Preprocessing(resize_size=20, crop_size=16)
    order = ShuffledBatches(len(train), config.batch, 0, world.rank, world.size)
    transform = TrainTransform(config.augmentation())
    data = TaskData(
        make_loader(TrainPhotos(FileSource(train.paths), train.labels, transform, 0), order, 0),
        order,
        make_loader(
            EvalPhotos(FileSource(val.paths), val.labels, preprocessing),
            OrderedBatches(len(val), 2, world.rank, world.size),
            0,
        ),
    )
    return Task("tiny", tiny_network(), config, data, preprocessing, 3)


def fit(
    photos: Path,
    folder: Path,
    config: StageConfig = CONFIG,
    world: World = CPU,
    **options: Any,
) -> Trainer:
    log = RunLog(folder, enabled=world.is_main, interval=0)
    trainer = Trainer(
        tiny_task(photos, config, world), folder / "tiny", world, LoopOptions(**options), log, {}
    )
    trainer.fit()
    log.close()
    return trainer


def by_hand(photos: Path, config: StageConfig) -> dict[str, Tensor]:
    """The same training, written down plainly."""
    task = tiny_task(photos, config)
    model = task.model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * 3)
    for epoch in range(config.epochs):
        task.data.order.epoch = epoch
        for batch in task.data.train:
            images = batch.images / 255
            mean = torch.tensor(task.preprocessing.mean).view(3, 1, 1)
            std = torch.tensor(task.preprocessing.std).view(3, 1, 1)
            loss = nn.functional.cross_entropy(model((images - mean) / std), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.state_dict()


def test_the_loop_is_plain_sgd(photos: Path, tmp_path: Path) -> None:
    config = StageConfig(epochs=2, batch=8, size=16, lr=0.05, nesterov=True)
    trainer = fit(photos, tmp_path, config)
    for name, expected in by_hand(photos, config).items():
        torch.testing.assert_close(trainer.model.state_dict()[name], expected, rtol=1e-4, atol=1e-6)


def test_figures_are_those_of_all_validation_photos(photos: Path, tmp_path: Path) -> None:
    trainer = fit(photos, tmp_path)
    val = scan(photos / "val")
    batch = EvalPhotos(FileSource(val.paths), val.labels, trainer.task.preprocessing).__getitems__(
        list(range(len(val)))
    )
    with torch.no_grad():
        logits = trainer.model(trainer.task.preprocessing.normalise(batch.images))
    row = trainer.progress.rows[-1]
    loss = nn.functional.cross_entropy(logits, batch.labels)
    assert row["val_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert row["val_top1"] == pytest.approx(
        float((logits.argmax(1) == batch.labels).float().mean())
    )


def test_the_best_epoch_is_kept_not_the_last(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.9, 0.9, 0.1])
    weights: list[Tensor] = []

    def scripted(self: Trainer) -> tuple[float, float, dict[str, float]]:
        weights.append(self.model[4].weight.detach().clone())  # type: ignore[index]
        return 1.0, next(scores), {}

    monkeypatch.setattr(Trainer, "_validate", scripted)
    config = StageConfig(epochs=4, batch=8, size=16, lr=0.05)
    trainer = fit(photos, tmp_path, config)
    assert (trainer.progress.best_epoch, trainer.progress.best_top1) == (2, 0.9)
    assert torch.equal(load_file(trainer.best_path)["4.weight"], weights[1])
    assert not torch.equal(weights[3], weights[1])


def test_the_average_is_validated_and_kept(photos: Path, tmp_path: Path) -> None:
    config = StageConfig(epochs=1, batch=8, size=16, lr=0.5, ema=0.9)
    trainer = fit(photos, tmp_path, config)
    best = load_file(trainer.best_path)
    assert trainer.average is not None
    assert torch.equal(best["4.weight"], trainer.average.module.state_dict()["4.weight"])
    assert not torch.equal(best["4.weight"], trainer.model.state_dict()["4.weight"])


def test_weight_average_follows_its_formula() -> None:
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(module[0].weight, 0.0)
    average = WeightAverage(module, decay=0.25)
    expected = 0.0
    for step in range(1, 6):
        nn.init.constant_(module[0].weight, float(step))
        assert module[1].num_batches_tracked is not None
        module[1].num_batches_tracked += 1
        average.update(module)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert float(average.module[0].weight) == pytest.approx(expected)  # type: ignore[index]
    assert int(average.module[1].num_batches_tracked) == 5  # type: ignore[index]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_in_it(photos: Path, tmp_path: Path, amp: str) -> None:
    seen: set[torch.dtype] = set()
    trainer_config = StageConfig(epochs=1, batch=8, size=16, lr=0.05)
    log = RunLog(None)
    trainer = Trainer(
        tiny_task(photos, trainer_config), tmp_path, CPU, LoopOptions(amp=amp), log, {}
    )
    trainer.model[0].register_forward_hook(lambda *call: seen.add(call[2].dtype))  # type: ignore[index]
    before = trainer.model[4].weight.detach().clone()  # type: ignore[index]
    trainer.fit()
    assert seen == {torch.bfloat16 if amp == "bf16" else torch.float16}
    assert trainer.scaler.is_enabled() == (amp == "fp16")
    weight = trainer.model[4].weight  # type: ignore[index]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, before)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: a pool of compiling processes would outlive the test.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    compiled = fit(photos, tmp_path / "compiled", compile=True)
    plain = fit(photos, tmp_path / "plain")
    expected = load_file(plain.best_path)
    found = load_file(compiled.best_path)
    assert found.keys() == expected.keys()  # no prefix of the wrapper
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@needs_cuda
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_gpu_trains_as_the_cpu_does(photos: Path, tmp_path: Path, amp: str) -> None:
    gpu = fit(photos, tmp_path / "gpu", world=World(0, 1, torch.device("cuda", 0)), amp=amp)
    cpu = fit(photos, tmp_path / "cpu")
    rtol = 1e-3 if amp == "off" else 5e-2
    for row, expected in zip(gpu.progress.rows, cpu.progress.rows, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=rtol)
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=rtol)


def test_amp_defaults() -> None:
    assert autocast_dtype("auto", torch.device("cpu")) is None
    assert autocast_dtype("auto", torch.device("cuda")) in (torch.bfloat16, torch.float16)
    with pytest.raises(ValueError, match="'tf32'"):
        autocast_dtype("tf32", torch.device("cpu"))


def test_decay_can_spare_biases_and_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    both = build_optimizer(model, StageConfig(weight_decay=0.3, norm_weight_decay=False))
    counts = {g["weight_decay"]: len(g["params"]) for g in both.param_groups}
    assert counts == {0.3: 1, 0.0: 3}
    one = build_optimizer(model, StageConfig(weight_decay=0.3, optimizer="adamw"))
    assert isinstance(one, torch.optim.AdamW)
    assert [len(g["params"]) for g in one.param_groups] == [4]


def test_mixing_makes_targets_of_two_classes(photos: Path) -> None:
    task = tiny_task(photos, StageConfig(epochs=1, batch=8, size=16, mixup=1.0, cutmix=1.0))
    torch.manual_seed(1)
    inputs, target = task.mix(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))
    assert inputs.shape == (4, 3, 16, 16)
    assert target.shape == (4, 3)
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    assert ((target > 0).sum(1) == 2).any()
    assert torch.isfinite(task.loss(torch.zeros(4, 3), target, training=True))


def test_smoothing_is_for_training_only(photos: Path) -> None:
    task = tiny_task(photos, StageConfig(epochs=1, batch=8, size=16, label_smoothing=0.3))
    logits, labels = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([0])
    assert task.loss(logits, labels, training=False) < 0.01
    assert task.loss(logits, labels, training=True) > 1


def test_durations() -> None:
    assert [format_duration(s) for s in (0.4, 61, 3723)] == ["0:00", "1:01", "1:02:03"]


def test_tensorboard_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        RunLog(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_on_a_terminal_and_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("anchornet_ext.training.run_log.time.monotonic", lambda: next(clock))
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    monkeypatch.setenv("COLUMNS", "120")
    log = RunLog(None, interval=5)
    log.begin("anchor 1/2", 10)
    for step in range(1, 11):
        log.update(step, f"loss {step}")
    log.end()
    said = capsys.readouterr().err
    if terminal:
        assert "10/10 loss 10" in said
    else:
        lines = said.splitlines()
        assert 2 <= len(lines) <= 4  # 20 seconds passed, one line in 5
        assert all("/10 loss" in line and "left 0:" in line for line in lines)
    quiet = RunLog(None, enabled=False)
    quiet.line("nothing")
    assert capsys.readouterr().err == ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def run_two_processes(photos: Path, folder: Path) -> None:
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(photos), str(folder)],
            env={
                **environment(),
                "PYTHONPATH": os.pathsep.join(sys.path),  # what pytest added included
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


def test_two_processes_equal_one(photos: Path, tmp_path: Path) -> None:
    run_two_processes(photos, tmp_path / "two")
    one = fit(photos, tmp_path / "one")
    first, second = tmp_path / "two" / "rank0", tmp_path / "two" / "rank1"
    two = load_file(first / "tiny" / "best.safetensors")
    for name, expected in load_file(one.best_path).items():
        torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-6)
    state = torch.load(first / "tiny" / "last.pt", weights_only=True)
    for row, expected_row in zip(state["progress"]["rows"], one.progress.rows, strict=True):
        for key in ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1"):
            assert row[key] == pytest.approx(expected_row[key], rel=1e-4)
    assert (first / "log.txt").read_text().count("tiny epoch 1/2") == 1
    assert [path.name for path in second.iterdir()] == ["weights.json"]  # only rank 0 wrote more
    weights = [json.loads((folder / "weights.json").read_text()) for folder in (first, second)]
    assert weights[0] == weights[1]


def _as_one_of_two(photos: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        folder = folder / f"rank{world.rank}"  # its own, to see who writes
        folder.mkdir(parents=True)
        trainer = fit(photos, folder, CONFIG, world)
        weights = torch.cat([p.flatten() for p in trainer.model.parameters()]).tolist()
        (folder / "weights.json").write_text(json.dumps(weights))


if __name__ == "__main__":  # one of the processes of `run_two_processes`
    assert os.environ["WORLD_SIZE"] == "2"
    _as_one_of_two(Path(sys.argv[1]), Path(sys.argv[2]))
