"""The same batches whatever the workers, the cache and the number of processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from anchornet_ext.data import sources
from anchornet_ext.data.image_folder import scan
from anchornet_ext.data.loading import (
    Batch,
    EvalPhotos,
    OrderedBatches,
    ShuffledBatches,
    TrainPhotos,
    make_loader,
)
from anchornet_ext.data.sources import CachedSource, FileSource, ImageSource, UnreadableImage
from anchornet_ext.data.transforms import Augmentation, Preprocessing, TrainTransform

AUGMENTATION = Augmentation(size=24, policy="trivialaugment", erasing=0.5)


def train_batches(
    folder: Path, source: ImageSource | None = None, workers: int = 0, epoch: int = 0, seed: int = 0
) -> list[Batch]:
    samples = scan(folder)
    photos = TrainPhotos(
        source or FileSource(samples.paths), samples.labels, TrainTransform(AUGMENTATION), seed
    )
    order = ShuffledBatches(len(samples), 5, seed)
    order.epoch = epoch
    return list(make_loader(photos, order, workers))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels)
        for x, y in zip(a, b, strict=True)
    )


def test_batches_depend_on_seed_and_epoch_alone(photos: Path) -> None:
    folder = photos / "train"
    first = train_batches(folder)
    assert [len(batch.labels) for batch in first] == [5] * 4  # 24 photos: the last 4 are dropped
    assert first[0].images.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(99)
    assert same(first, train_batches(folder))
    assert same(first, train_batches(folder, workers=2))
    assert same(first, train_batches(folder, CachedSource(scan(folder).paths)))
    assert same(first, train_batches(folder, CachedSource(scan(folder).paths), workers=1))
    assert not same(first, train_batches(folder, epoch=1))
    assert not same(first, train_batches(folder, seed=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_stream_alone(photos: Path, workers: int) -> None:
    samples = scan(photos / "train")
    training = TrainPhotos(
        FileSource(samples.paths), samples.labels, TrainTransform(AUGMENTATION), 0
    )
    loader = make_loader(training, ShuffledBatches(len(samples), 5, 0), workers)
    before = torch.get_rng_state()
    for _ in range(2):
        assert len(list(loader)) == 4
        assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_visits_each_photo_once_in_a_new_order() -> None:
    order = ShuffledBatches(20, 5, seed=3)
    visits = []
    for epoch in range(2):
        order.epoch = epoch
        keys = [key for batch in order for key in batch]
        assert sorted(keys) == [(epoch, i) for i in range(20)]
        visits.append([i for _, i in keys])
    assert visits[0] != visits[1]


def test_processes_share_the_same_global_batches() -> None:
    whole = list(ShuffledBatches(22, 6, seed=0))
    parts = [list(ShuffledBatches(22, 6, seed=0, rank=r, world_size=3)) for r in range(3)]
    assert [[k for part in step for k in part] for step in zip(*parts, strict=True)] == whole
    dealt = [i for r in range(3) for b in OrderedBatches(22, 4, r, 3) for i in b]
    assert sorted(dealt) == list(range(22))
    with pytest.raises(ValueError, match="batch 7 does not divide among 3"):
        ShuffledBatches(22, 7, seed=0, world_size=3)
    with pytest.raises(ValueError, match="batch 23 is larger than the 22 images"):
        ShuffledBatches(22, 23, seed=0)


def test_the_cache_holds_the_same_pixels(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 100_000)  # several blocks, one photo or two each
    paths = scan(photos / "train").paths
    seen: list[int] = []
    cached, files = CachedSource(paths, on_progress=seen.append), FileSource(paths)
    assert len(cached) == len(files) == 24
    assert seen == list(range(1, 25))
    assert all(torch.equal(cached.load(i), files.load(i)) for i in range(24))
    small = CachedSource(paths, max_short_side=50)
    assert all(min(small.load(i).shape[1:]) == 50 for i in range(24))
    assert torch.equal(small.load(3), FileSource(paths, 50).load(3))


def test_a_cache_that_does_not_fit_is_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MemoryError, match="100000"):
        sources._check_memory(100_000 * 2**30)
    monkeypatch.setattr(sources, "_check_memory", lambda needed: seen.append(needed))
    seen: list[int] = []
    cached = CachedSource(scan(photos / "train").paths)
    assert seen == [sum(cached.load(i).numel() for i in range(24))]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_photo_is_reported_and_skipped(
    photos: Path, tmp_path: Path, cache: bool, workers: int
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos / "train", folder)
    (folder / "bee" / "2.png").write_bytes(b"not a picture")
    (folder / "cat" / "0.png").write_bytes((folder / "cat" / "1.png").read_bytes()[:900])
    samples = scan(folder)
    source: ImageSource = CachedSource(samples.paths) if cache else FileSource(samples.paths)
    trained = train_batches(folder, source, workers)
    assert [len(batch.labels) for batch in trained] == [5] * 4
    reported = {line for batch in trained for line in batch.unreadable}
    evaluated = list(
        make_loader(
            EvalPhotos(source, samples.labels, Preprocessing(resize_size=30, crop_size=24)),
            OrderedBatches(len(samples), 7),
            workers,
        )
    )
    assert [len(batch.labels) for batch in evaluated] == [7, 6, 6, 3]
    labels = torch.cat([batch.labels for batch in evaluated])
    assert labels.bincount().tolist() == [8, 7, 7]
    reported |= {line for batch in evaluated for line in batch.unreadable}
    assert len(reported) == 2
    assert any("bee/2.png" in line for line in reported)
    assert any("cat/0.png" in line for line in reported)


def test_a_photo_that_went_missing_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.png"):
        FileSource([str(tmp_path / "gone.png")]).load(0)
    photos = TrainPhotos(
        FileSource([str(tmp_path / "gone.png")]), [0], TrainTransform(AUGMENTATION), 0
    )
    with pytest.raises(UnreadableImage, match="no training image"):
        photos.__getitems__([(0, 0)])


def test_a_photo_that_is_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "line.png"
    Image.new("RGB", (4001, 20)).save(path)
    with pytest.raises(UnreadableImage, match=r"line\.png: 4001 x 20 pixels"):
        FileSource([str(path)]).load(0)
    Image.new("RGB", (20, 4000)).save(path)
    assert FileSource([str(path)]).load(0).shape == (3, 4000, 20)


def test_validation_photos_are_what_inference_sees(photos: Path) -> None:
    samples = scan(photos / "val")
    source = FileSource(samples.paths)
    preprocessing = Preprocessing(resize_size=40, crop_size=32)
    batch = EvalPhotos(source, samples.labels, preprocessing).__getitems__([4, 0])
    expected = torch.stack([preprocessing(source.load(i)) for i in (4, 0)])
    assert torch.equal(preprocessing.normalise(batch.images), expected)
    assert batch.labels.tolist() == [1, 0]
