"""What is found in a folder of photos, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchornet_ext.data.image_folder import find_training_images, scan, split


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_scan_sorts_classes_and_photos_and_skips_other_files(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/1.webp", "b/notes.txt", "a/deep/3.png", "b/.hidden.png")
    touch(tmp_path, "readme.txt", ".git/x.png")
    samples = scan(tmp_path)
    assert samples.class_names == ("a", "b")
    assert [Path(path).name for path in samples.paths] == ["3.png", "1.webp", "2.JPG"]
    assert samples.labels == (0, 1, 1)


def test_train_and_val_share_the_order_of_the_training_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/a/1.png")
    train, val = find_training_images(tmp_path)
    assert train.class_names == val.class_names == ("a", "b", "c")
    assert val.labels == (0, 2)


def test_split_is_by_class_and_depends_on_the_seed_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        touch(tmp_path, *(f"{name}/{i}.png" for i in range(10)))
    train, val = find_training_images(tmp_path, 0.3, seed=1)
    assert [train.labels.count(i) for i in (0, 1)] == [7, 7]
    assert [val.labels.count(i) for i in (0, 1)] == [3, 3]
    assert not set(train.paths) & set(val.paths)
    assert set(train.paths) | set(val.paths) == set(scan(tmp_path).paths)
    assert find_training_images(tmp_path, 0.3, seed=1) == (train, val)
    assert find_training_images(tmp_path, 0.3, seed=2) != (train, val)


def test_a_train_folder_alone_can_be_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/a/{i}.png" for i in range(4)))
    train, val = find_training_images(tmp_path, 0.25)
    assert (len(train), len(val), train.class_names) == (3, 1, ("a",))


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing.*does not exist"):
        find_training_images(tmp_path / "missing")
    touch(tmp_path, "file.png")
    with pytest.raises(ValueError, match=r"file\.png.*is not a folder"):
        find_training_images(tmp_path / "file.png")
    with pytest.raises(ValueError, match="no class folders"):
        find_training_images(tmp_path)
    touch(tmp_path, "a/1.png")
    with pytest.raises(ValueError, match="--val-fraction"):
        find_training_images(tmp_path)
    with pytest.raises(ValueError, match="class 'a' has 1 image"):
        find_training_images(tmp_path, 0.5)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=str(fraction)):
            split(scan(tmp_path), fraction, 0)


def test_bad_train_and_val_folders_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "val/a/1.png", "val/zebra/1.png")
    with pytest.raises(ValueError, match="zebra"):
        find_training_images(tmp_path)
    touch(tmp_path, "train/zebra/notes.txt")
    with pytest.raises(ValueError, match="zebra' has no images"):
        find_training_images(tmp_path)
    touch(tmp_path, "train/zebra/1.png")
    with pytest.raises(ValueError, match=r"0\.1"):
        find_training_images(tmp_path, 0.1)
    assert len(find_training_images(tmp_path)[1]) == 2
