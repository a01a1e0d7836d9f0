"""Exit tables: files, validation, and the tables that follow from one."""

from __future__ import annotations

import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exit_tables import PUBLISHED, exit_tables, random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from anchornet_ext.policy.exit_table import ExitTable, encode_metadata
from anchornet_ext.policy.npz import Pieces, write_npz

ARRAYS = (
    *("confidence", "correct", "cost", "prediction", "label", "top5", "milliseconds"),
    *("temperatures", "scaled_confidence", "scaled_nll", "image_ids"),
)


FORMAT_1 = (
    b'{"format": "anchornet_ext exit table", "format_version": 1, '
    b'"arrays": ["confidence", "correct"]'
)


def assert_equal(one: ExitTable, other: ExitTable) -> None:
    for name in ARRAYS:
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        if first is not None:
            assert first.dtype == second.dtype, name
            np.testing.assert_array_equal(first, second, err_msg=name)
    assert dict(one.metadata) == dict(other.metadata)


@settings(max_examples=30, deadline=None)
@given(table=exit_tables())
def test_what_is_saved_is_loaded(
    table: ExitTable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("table") / "exits.npz"
    table.save(path)
    assert_equal(ExitTable.load(path), table)
    assert [file.name for file in path.parent.iterdir()] == ["exits.npz"]


def test_the_published_table() -> None:
    table = ExitTable.load(PUBLISHED)
    assert (table.num_images, table.num_exits) == (50000, 6)
    assert table.cost is None
    with pytest.raises(ValueError, match=r"no costs, .*load\(path, cost=\.\.\.\)"):
        table.costs()
    with pytest.raises(ValueError, match="no measured milliseconds"):
        table.costs("milliseconds")
    with pytest.raises(ValueError, match="'macs' or 'milliseconds', not in 'joules'"):
        table.costs("joules")
    with_cost = ExitTable.load(PUBLISHED, cost=range(1, 7))
    assert with_cost.costs().tolist() == [1, 2, 3, 4, 5, 6]


@settings(max_examples=30, deadline=None)
@given(table=exit_tables(), data=st.data())
def test_subsets_keep_the_rows_together(table: ExitTable, data: st.DataObject) -> None:
    """A permutation in two pieces, put together again and turned back, is the table."""
    order = np.array(data.draw(st.permutations(range(table.num_images))))
    cut = data.draw(st.integers(0, table.num_images))
    pieces = [table.subset(part) for part in (order[:cut], order[cut:]) if len(part)]
    together = ExitTable.concatenate(pieces)
    assert_equal(together.subset(np.argsort(order)), table)
    mask = np.zeros(table.num_images, bool)
    mask[order[0]] = True
    assert_equal(table.subset(mask), table.subset(order[:1]))
    assert_equal(table.subset(mask), table.subset(slice(order[0], order[0] + 1)))


@settings(max_examples=20, deadline=None)
@given(table=exit_tables(), data=st.data())
def test_first_exits(table: ExitTable, data: st.DataObject) -> None:
    exits = data.draw(st.integers(1, table.num_exits))
    first = table.first_exits(exits)
    assert first.num_exits == exits
    assert np.shares_memory(first.confidence, table.confidence)
    assert first.costs().tolist() == table.costs().tolist()[:exits]
    assert_equal(first.first_exits(1), table.first_exits(1))


@settings(max_examples=30, deadline=None)
@given(table=exit_tables())
def test_surest_answer(table: ExitTable) -> None:
    surest = table.with_answer("surest")
    np.testing.assert_array_equal(surest.confidence, table.confidence)
    for n in range(table.num_images):
        for t in range(table.num_exits):
            so_far = table.confidence[n, : t + 1].tolist()
            s = max(range(t + 1), key=lambda exit: (so_far[exit], exit))
            for name in ("correct", "prediction", "top5"):
                if getattr(table, name) is not None:
                    assert getattr(surest, name)[n, t] == getattr(table, name)[n, s]
    assert_equal(table.with_answer("last"), table)
    assert surest.temperatures is None


def test_temperatures_of_the_grid() -> None:
    table = random_table(0, 20, 3)
    chosen = table.with_temperatures([2.0, 1.0, 0.5])
    assert table.scaled_confidence is not None
    for t, g in enumerate((2, 1, 0)):
        np.testing.assert_array_equal(chosen.confidence[:, t], table.scaled_confidence[g, :, t])
    np.testing.assert_array_equal(chosen.correct, table.correct)
    with pytest.raises(ValueError, match=r"temperature 3\.0 of exit 2 is not on the table's grid"):
        table.with_temperatures([1, 3, 1])
    with pytest.raises(ValueError, match="3 exits need as many temperatures"):
        table.with_temperatures([1, 1])
    for without in (chosen, table.with_answer("surest"), random_table(0, 5, 3, full=False)):
        with pytest.raises(ValueError, match="no temperature grid"):
            without.with_temperatures([1, 1, 1])


def changed(name: str, change: Any) -> dict[str, np.ndarray[Any, Any] | None]:
    table = random_table(1, 8, 3)
    arrays = {key: getattr(table, key) for key in ARRAYS}
    arrays[name] = change(arrays[name].copy())
    return arrays


def put(index: Any, value: Any) -> Any:
    def change(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array[index] = value
        return array

    return change


WRONG: list[tuple[str, Any, str]] = [
    ("confidence", lambda a: a.astype(np.float64), "confidence must be float32 of 2 dimensions"),
    ("confidence", lambda a: a[:, 0], r"got float32 of shape \(8,\)"),
    ("confidence", lambda a: a[:0], "a table has images and exits"),
    ("confidence", lambda a: a[:7], r"correct must be \(7, 3\) to fit the confidences"),
    ("confidence", put((2, 1), np.nan), "confidence has 1 NaN"),
    ("confidence", put((2, 1), 1.5), r"confidence must lie in \[0, 1\], got 1.5"),
    ("confidence", put((2, 1), -0.5), r"confidence must lie in \[0, 1\], got -0.5"),
    ("confidence", lambda a: 1 - a, "temperature 1 differs from the confidence"),
    ("correct", lambda a: a.astype(np.int8), "correct must be bool"),
    ("correct", lambda a: ~a, r"correct\[0, 0\] is .*, but the prediction is \d and the label \d"),
    ("cost", lambda a: a[:2], r"cost must be \(3,\), one of each exit"),
    ("cost", lambda a: a[::-1].copy(), "cost must be positive and increase"),
    ("cost", put(0, 0.0), "cost must be positive and increase"),
    ("cost", put(2, np.inf), "cost must be positive and increase"),
    ("cost", lambda a: a.astype(np.int64), "cost must be float64"),
    ("milliseconds", put(1, np.nan), "milliseconds must be positive and increase"),
    ("prediction", put((0, 0), -1), "prediction has the class -1"),
    ("prediction", put((0, 0), 7), "prediction has the class 7 of 7"),
    ("prediction", lambda a: a.astype(np.float32), "prediction must be int32"),
    ("label", lambda a: a[:3], r"label must be \(8,\) to fit"),
    ("label", put(3, 2**31 - 1), "label has the class 2147483647"),
    ("top5", lambda a: a & False, "is True, but top5"),
    ("top5", lambda a: a[:, :1], r"top5 must be \(8, 3\)"),
    ("temperatures", lambda a: a[::-1].copy(), "temperatures must be positive and increasing"),
    ("temperatures", lambda a: a[:0], "temperatures must be positive and increasing"),
    ("temperatures", lambda a: None, "there is scaled_confidence, but no temperatures"),
    ("temperatures", lambda a: a[:2], r"scaled_confidence must be \(2, 8, 3\)"),
    ("scaled_confidence", lambda a: None, "there are temperatures, but no scaled_confidence"),
    ("scaled_confidence", put((0, 0, 0), 2.0), "scaled_confidence must lie in"),
    ("scaled_nll", put((0, 0, 0), -1.0), r"scaled_nll must lie in \[0, inf\]"),
    ("scaled_nll", lambda a: None, "there are temperatures, but no scaled_nll"),
    ("image_ids", lambda a: a[:2], r"image_ids must be \(8,\) of bytes"),
    ("image_ids", lambda a: np.arange(8), "image_ids must be .* got .* of int64"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_wrong_arrays_are_refused(name: str, change: Any, message: str, tmp_path: Path) -> None:
    """By the constructor and on load, where the message also names the file."""
    metadata = {"class_names": [f"c{i}" for i in range(7)]}
    arrays = changed(name, change)
    with pytest.raises(ValueError, match=message):
        ExitTable(**arrays, metadata=metadata)  # type: ignore[arg-type]
    path = tmp_path / "exits.npz"
    written = {key: Pieces.of(value) for key, value in arrays.items() if value is not None}
    stored = encode_metadata(metadata, written)
    write_npz(path, {"metadata": Pieces.of(stored), **written})
    with pytest.raises(ValueError, match=f"exits.npz is not a valid exit table: .*{message}"):
        ExitTable.load(path)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    table = random_table(0, 200, 3)
    path = tmp_path / "exits.npz"
    table.save(path)
    whole = path.read_bytes()

    def refused(message: str, content: bytes | None = None, **options: Any) -> None:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ExitTable.load(path, **options)

    refused("is not a .npz file", b"")
    refused("is not a .npz file", b"confidence,correct\n")
    refused("is not a .npz file, or it was cut short", whole[: len(whole) // 2])
    refused("has costs of its own", whole, cost=[1, 2, 3])
    with pytest.raises(FileNotFoundError):
        ExitTable.load(tmp_path / "gone.npz")
    with pytest.raises(ValueError, match="is a folder"):
        ExitTable.load(tmp_path)

    def save(**arrays: Any) -> None:
        np.savez(path, **arrays)

    save(confidence=table.confidence)
    refused("has no array correct")
    save(correct=table.correct)
    refused("has no array confidence")
    save(confidence=table.confidence, correct=table.correct, kost=table.costs())
    refused("unknown arrays: kost")
    save(confidence=table.confidence, correct=table.correct, metadata=np.array({"a": 1}))
    refused("damaged or holds more than arrays")  # a pickle, which is not run
    for metadata, message in (
        (b"{", "metadata is not JSON"),
        (b"\xff", "metadata is not JSON"),
        (b"[]", "metadata are not those"),
        (b"{}", "metadata are not those"),
        (b'{"format": "anchornet_ext exit table"}', "format version None"),
        (b'{"format": "anchornet_ext exit table", "format_version": 2}', "up to 1: update"),
        (b'{"format": "anchornet_ext exit table", "format_version": 1}', "written with None"),
        (FORMAT_1 + b"}", "metadata must be a mapping"),
        (FORMAT_1 + b', "metadata": {"class_names": "ab"}}', "class_names must be a list"),
    ):
        content = np.frombuffer(metadata, np.uint8)
        save(confidence=table.confidence, correct=table.correct, metadata=content)
        refused(message)
    save(confidence=table.confidence, correct=table.correct, metadata=np.zeros(3))
    refused("metadata must be bytes")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("confidence.npy", b"\x93NUMPY\x01\x00 nonsense")
    refused("damaged")


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_harmless(
    where: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Never another exception, and never other numbers."""
    path = tmp_path_factory.mktemp("flip") / "exits.npz"
    table = random_table(0, 5, 2)
    table.save(path)
    content = bytearray(path.read_bytes())
    content[min(int(where * len(content)), len(content) - 1)] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = ExitTable.load(path)
    except ValueError:
        return
    assert_equal(loaded, table)


def test_metadata_that_json_cannot_hold(tmp_path: Path) -> None:
    table = replace(random_table(0, 3, 2), metadata={"model": object()})
    with pytest.raises(ValueError, match="metadata must hold what JSON can"):
        table.save(tmp_path / "exits.npz")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments() -> None:
    table = random_table(0, 6, 3)
    for index, message in (
        (np.ones(5, bool), r"a mask must be \(6,\)"),
        (np.zeros((2, 2), int), "one-dimensional"),
        (np.zeros(2), "one-dimensional integers or a mask, got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            table.subset(index)
    for exits in (0, 4):
        with pytest.raises(ValueError, match="num_exits must be 1 to 3"):
            table.first_exits(exits)
    with pytest.raises(ValueError, match="answer must be one of last, surest, got 'first'"):
        table.with_answer("first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no tables"):
        ExitTable.concatenate([])
    with pytest.raises(ValueError, match="differ in their cost"):
        ExitTable.concatenate([table, table.with_cost([1, 2, 3])])
    with pytest.raises(ValueError, match="some of the tables have top5"):
        ExitTable.concatenate([table, replace(table, top5=None)])
    with pytest.raises(ValueError, match="class names"):
        ExitTable.concatenate([table, replace(table, metadata={})])
    bare = replace(table.first_exits(2), cost=None, milliseconds=None)
    with pytest.raises(ValueError, match="one table has 3 exits, another 2"):
        ExitTable.concatenate([replace(table, cost=None, milliseconds=None), bare])


def test_a_large_table_is_loaded_without_copies(tmp_path: Path) -> None:
    """What a million images by five exits need, scaled down: the arrays and little else."""
    images = 200_000
    table = random_table(0, images, 5, full=False)
    path = tmp_path / "exits.npz"
    table.save(path)
    tracemalloc.start()
    try:
        loaded = ExitTable.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    needed = loaded.confidence.nbytes + loaded.correct.nbytes
    assert peak < 1.25 * needed


def test_pieces_must_fill_the_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    halves = [np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(2, 3)]
    write_npz(path, {"a": Pieces((4, 3), np.dtype(int), iter(halves))})
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["a"], np.arange(12).reshape(4, 3))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="its pieces 12 values"):
        write_npz(path, {"a": Pieces((5, 3), np.dtype(int), halves)})
    with pytest.raises(ValueError, match="a is float32, a piece is int64"):
        write_npz(path, {"a": Pieces((4, 3), np.dtype(np.float32), halves)})
    assert path.read_bytes() == before  # the old file is still whole
    assert list(tmp_path.iterdir()) == [path]
