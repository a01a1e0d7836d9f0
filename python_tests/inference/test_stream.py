"""The stream: equal to one image at a time, whatever the batches, and nothing left behind."""

from __future__ import annotations

import gc
import math
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from devices import needs_cuda
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_early_exit import NEVER, reference, thresholds_between
from tiny_networks import CLASSES, noise, tiny_classifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.inference import TwoStageClassifier, kept_memory
from anchornet_ext.inference.classification import Classification
from anchornet_ext.inference.passes import Passes, compiled_passes, plain_passes
from anchornet_ext.inference.slot_images import FixedImages, SlotImages
from anchornet_ext.inference.stream import ImageClassification, StreamResult
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.reference.early_exit import Exit

SIZE = (104, 112)


def found(result: StreamResult) -> ImageClassification:
    assert result.error is None
    assert result.found is not None
    return result.found


def assert_equal_to_reference(results: list[StreamResult], expected: list[Exit]) -> None:
    assert [result.position for result in results] == list(range(len(expected)))
    for result, one in zip(results, expected, strict=True):
        got, used = found(result), one.exit_step
        assert (got.label, got.exit_step, got.answer_step) == (
            one.label,
            one.exit_step,
            one.answer_step,
        )
        torch.testing.assert_close(got.probabilities, one.probabilities)
        torch.testing.assert_close(got.confidence[:used].tolist(), one.confidence)
        assert got.confidence[used:].isnan().all()
        assert (got.step_label[used:] == -1).all()
        assert int(got.step_label[one.answer_step - 1]) == one.label
        assert got.top_left[: used - 1].tolist() == [list(place) for place in one.top_left]
        assert (got.top_left[used - 1 :] == -1).all()


def assert_equal_to_batched(results: list[StreamResult], expected: Classification) -> None:
    """Every field, in float32 up to what rounding depends on the batch."""
    assert len(results) == len(expected.label)
    maps = dict(zip(expected.anchor_ran.tolist(), expected.activation_map, strict=True))
    for b, result in enumerate(results):
        got = found(result)
        for name in ("label", "exit_step", "answer_step", "macs"):
            assert getattr(got, name) == int(getattr(expected, name)[b]), name
        for name in ("step_label", "top_left"):
            assert torch.equal(getattr(got, name), getattr(expected, name)[b]), name
        for name in ("probabilities", "confidence"):
            one = getattr(expected, name)[b]
            torch.testing.assert_close(
                getattr(got, name), one, equal_nan=True, rtol=1e-4, atol=1e-5
            )
        assert got.full_macs == expected.full_macs
        if b in maps:
            assert got.anchor_label == int(expected.anchor_label[b])
            assert got.activation_map is not None
            torch.testing.assert_close(got.activation_map, maps[b], rtol=1e-4, atol=1e-4)
        else:
            assert got.anchor_label is None
            assert got.activation_map is None


def spread_thresholds(model: TwoStageClassifier, images: Tensor) -> tuple[float, ...]:
    """So that some images leave at every exit that sees several, and none has a threshold's
    confidence."""
    confidence = model.classify(images, exit_at=model.num_exits).confidence
    remaining = torch.ones(len(images), dtype=torch.bool)
    thresholds = []
    for step in range(model.num_exits - 1):
        of_those = torch.cat([confidence[remaining, step].sort().values, confidence.new_ones(1)])
        middle = max(len(of_those[:-1]) * 6 // 10, 1)
        thresholds.append(float(of_those[middle - 1 : middle + 1].mean()))
        remaining &= confidence[:, step] <= thresholds[-1]
    return tuple(thresholds)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_streamed_equals_one_by_one(data: st.DataObject) -> None:
    # In float64, so that how a library sums a batch cannot move an image over a threshold.
    num_patches = data.draw(st.integers(1, 4), "num_patches")
    model = tiny_classifier(
        data.draw(st.integers(0, 3), "weights"),
        dtype=torch.float64,
        num_patches=num_patches,
        glance_size=40,
        criterion=data.draw(st.sampled_from(["logits", "probabilities"]), "criterion"),
    )
    size = data.draw(st.tuples(st.integers(95, 120), st.integers(95, 120)), "size")
    count = data.draw(st.integers(0, 10), "count")
    images = noise(count, size, data.draw(st.integers(0, 99)), torch.float64)
    thresholds = tuple(
        data.draw(
            st.lists(thresholds_between, min_size=num_patches, max_size=num_patches), "thresholds"
        )
    )
    temperatures = data.draw(
        st.none() | st.tuples(*[st.floats(0.1, 10.0)] * (num_patches + 1)), "temperatures"
    )
    answer = data.draw(st.sampled_from(["last", "surest"]), "answer")
    expected = reference(model, images, thresholds, temperatures=temperatures, answer=answer)
    for one in expected:
        for confidence, threshold in zip(one.confidence, thresholds, strict=False):
            assume(abs(confidence - threshold) > 1e-9)
        highest, *lower = sorted(one.confidence, reverse=True)
        assume(answer == "last" or not lower or highest - lower[0] > 1e-9)
    batch = data.draw(st.integers(1, 4), "batch")
    passes = plain_passes(model, size)
    results = model.stream(
        images,
        batch=batch,
        slots=data.draw(st.none() | st.integers(batch, 4 * batch), "slots"),
        policy=ExitPolicy(thresholds, temperatures, answer),
        # What is filled up must not matter.
        passes=replace(passes, constant_batch=data.draw(st.booleans(), "constant_batch")),
        ordered=(ordered := data.draw(st.booleans(), "ordered")),
    )
    got = list(results)
    if not ordered:
        got.sort(key=lambda result: result.position)
    assert_equal_to_reference(got, expected)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("answer", ["last", "surest"])
def test_streamed_equals_batched(folded: bool, answer: Any) -> None:
    model = tiny_classifier(1)
    model = model.fold() if folded else model
    images = noise(61, SIZE, seed=3)
    policy = ExitPolicy(spread_thresholds(model, images), answer=answer)
    expected = model.classify(images, policy=policy)
    assert set(expected.exit_step.tolist()) == {1, 2, 3, 4, 5}
    got = list(model.stream(images, batch=8, policy=policy, image_size=SIZE))
    assert_equal_to_batched(got, expected)


@pytest.mark.parametrize("exit_at", [1, 3, 5])
def test_exit_at(exit_at: int) -> None:
    model = tiny_classifier(1)
    images = noise(9, SIZE, seed=3)
    got = list(model.stream(images, batch=4, exit_at=exit_at, image_size=SIZE))
    assert_equal_to_batched(got, model.classify(images, exit_at=exit_at))


def test_images_of_few_locations_end_early() -> None:
    model = tiny_classifier(1)
    images = noise(5, (95, 103), seed=3)
    got = list(model.stream(images, batch=4, image_size=(95, 103)))
    assert [found(one).exit_step for one in got] == [3] * 5
    assert_equal_to_batched(got, model.classify(images))


class Counts:
    """The batch sizes that each network sees."""

    def __init__(self, model: TwoStageClassifier, image_size: tuple[int, int]) -> None:
        self.sizes: dict[str, list[int]] = {"glance": [], "localise": [], "focus": []}
        plain = plain_passes(model, image_size)
        self.passes = Passes(
            image_size,
            *(self._counting(name, getattr(plain, name)) for name in self.sizes),
        )

    def _counting(self, name: str, run: Any) -> Any:
        def counted(images: Tensor) -> Any:
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert not torch.is_grad_enabled()
            self.sizes[name].append(len(images))
            return run(images)

        return counted


def test_all_passes_but_the_last_ones_are_whole() -> None:
    model = tiny_classifier(1)
    images = noise(150, SIZE, seed=3)
    thresholds = spread_thresholds(model, images)
    exits = Counter(model.classify(images, thresholds).exit_step.tolist())
    counts = Counts(model, SIZE)
    assert (
        len(list(model.stream(images, batch=8, thresholds=thresholds, passes=counts.passes))) == 150
    )
    assert sum(counts.sizes["glance"]) == 150
    assert sum(counts.sizes["localise"]) == 150 - exits[1]
    assert sum(counts.sizes["focus"]) == sum((step - 1) * n for step, n in exits.items())
    for sizes in counts.sizes.values():
        assert set(sizes[:-5]) == {8}

    counts.sizes = {name: [] for name in counts.sizes}
    constant = replace(counts.passes, constant_batch=True)
    list(model.stream(images, batch=8, thresholds=thresholds, passes=constant))
    assert {size for sizes in counts.sizes.values() for size in sizes} == {8}


def test_uint8_is_normalised_as_the_model_says() -> None:
    preprocessing = Preprocessing(112, 104, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = tiny_classifier(1, preprocessing=preprocessing)
    pixels = (noise(9, (104, 104), seed=3).sigmoid() * 255).to(torch.uint8)
    images = preprocessing.normalise(pixels)
    thresholds = spread_thresholds(model, images)
    expected = model.classify(images, thresholds)
    assert_equal_to_batched(list(model.stream(pixels, batch=4, thresholds=thresholds)), expected)
    mixed = [pixels[i] if i % 2 else images[i].double() for i in range(9)]
    assert_equal_to_batched(list(model.stream(mixed, batch=4, thresholds=thresholds)), expected)


def stream(model: TwoStageClassifier, source: Any, **options: Any) -> Any:
    return model.stream(source, **{"batch": 4, "image_size": SIZE, **options})


def test_keys_come_back() -> None:
    model = tiny_classifier()
    images = noise(7, SIZE, seed=0)
    labels = torch.arange(7) * 10

    def keys(source: Any, **options: Any) -> list[Any]:
        results = list(stream(model, source, **options))
        assert all(result.error is None for result in results)
        return [result.key for result in results]

    assert keys(zip(images, "abcdefg", strict=True)) == list("abcdefg")
    assert keys(DataLoader(TensorDataset(images, labels), batch_size=3)) == labels.tolist()
    assert keys(DataLoader(TensorDataset(images), batch_size=3)) == [None] * 7
    pairs = [(images[:2], ["x", "y"]), images[2], (images[3:5], None)]
    assert keys(pairs) == ["x", "y", None, None, None]
    assert keys(range(7), load=images.__getitem__) == list(range(7))
    assert keys(range(7), load=lambda i: (images[i], -i), workers=2) == [-i for i in range(7)]


def test_one_bad_image_does_not_stop_the_others() -> None:
    model = tiny_classifier(1)
    images = list(noise(6, SIZE, seed=3))
    broken = OSError("cut short")
    source: list[Any] = [
        images[0],
        torch.zeros(3, 95, 95),
        images[1],
        (broken, "name"),
        (torch.zeros(1, *SIZE), 5),
        images[2],
        "no image",
        torch.zeros(3, *SIZE, dtype=torch.int64),
        *images[3:],
        broken,
        images[0].to_sparse(),
        images[0].to("meta"),
    ]
    got = list(stream(model, source, thresholds=(NEVER, 0.7, 0.7, NEVER)))
    assert [result.position for result in got] == list(range(14))
    good = [result for result in got if result.error is None]
    assert [result.position for result in good] == [0, 2, 5, 8, 9, 10]
    assert_equal_to_batched(
        good, model.classify(torch.stack(images), thresholds=(NEVER, 0.7, 0.7, NEVER))
    )
    assert all((result.found is None) == (result.error is not None) for result in got)
    errors = {result.position: result.error for result in got if result.error is not None}
    assert str(errors[1]) == (
        "the image is (3, 95, 95), but this stream is for (3, 104, 112) (image_size)"
    )
    assert isinstance(errors[1], ValueError)
    assert errors[3] is broken
    assert got[3].key == "name"
    assert "(1, 104, 112)" in str(errors[4])
    assert isinstance(errors[6], TypeError)
    assert "int64" in str(errors[7])
    assert errors[11] is broken
    assert "torch.sparse_coo" in str(errors[12])
    assert "meta" in str(errors[13])


@pytest.mark.parametrize("workers", [0, 3])
def test_what_load_raises_is_that_items_result(workers: int) -> None:
    model = tiny_classifier()
    images = noise(20, SIZE, seed=0)

    def load(index: int) -> Tensor:
        if index % 7 == 3:
            raise OSError(f"item {index} is broken")
        return images[index]

    got = list(stream(model, range(20), load=load, workers=workers))
    assert [result.key for result in got] == list(range(20))
    assert [str(result.error) for result in got if result.error] == [
        f"item {index} is broken" for index in (3, 10, 17)
    ]


def workers_alive() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("anchornet-stream")]


class Stop(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_the_source_raises(workers: int, error: type[BaseException]) -> None:
    model = tiny_classifier()
    images = noise(10, SIZE, seed=0)

    def source() -> Iterator[Tensor]:
        yield from images
        raise error("no more")

    results = stream(model, source(), load=lambda image: image, workers=workers)
    got: list[StreamResult] = []
    with pytest.raises(error, match="no more"):
        got.extend(results)
    if error is Stop:  # what came before is not lost
        assert [result.position for result in got] == list(range(10))
    assert not workers_alive()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_consumer_stops_early(workers: int) -> None:
    model = tiny_classifier()
    images = noise(4, SIZE, seed=0)
    taken: list[int] = []

    def endless() -> Iterator[int]:
        index = 0
        while True:
            taken.append(index)
            yield index
            index += 1

    def consume() -> None:
        for result in stream(model, endless(), load=lambda i: images[i % 4], workers=workers):
            if result.position == 9:
                raise Stop

    with pytest.raises(Stop):
        consume()
    gc.collect()  # the frame of `consume`, and the generator in it, was in the exception
    assert not workers_alive()

    results = stream(model, endless(), load=lambda i: images[i % 4], workers=workers)
    next(results)
    results.close()
    assert not workers_alive()
    assert list(results) == []


def test_ctrl_c_while_a_pass_runs() -> None:
    model = tiny_classifier()
    images = noise(4, SIZE, seed=0)
    plain = plain_passes(model, SIZE)

    def interrupted(patches: Tensor) -> Tensor:
        raise KeyboardInterrupt

    results = model.stream(
        range(100),
        batch=4,
        load=lambda i: images[i % 4],
        workers=2,
        passes=replace(plain, focus=interrupted),
    )
    with pytest.raises(KeyboardInterrupt):
        list(results)
    assert not workers_alive()


def test_a_loaders_processes_end_with_the_stream() -> None:
    model = tiny_classifier()
    loader = DataLoader(TensorDataset(noise(40, SIZE, seed=0)), batch_size=2, num_workers=1)
    results = stream(model, loader)
    next(results)
    results.close()
    gc.collect()
    assert torch.multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_input_is_taken_only_when_there_is_room(workers: int) -> None:
    model = tiny_classifier()
    image = noise(1, SIZE, seed=0)[0]
    taken = 0
    received = 0

    def source() -> Iterator[Tensor]:
        nonlocal taken
        for _ in range(60):
            taken += 1
            assert taken - received <= 12 + workers_ahead + 1
            yield image

    workers_ahead = 2 * 4 if workers else 0
    results = stream(
        model,
        source(),
        slots=12,
        load=lambda image: image,
        workers=workers,
        thresholds=(NEVER,) * 4,
    )
    assert taken == 0  # nothing happens before the first result is asked for
    for result in results:
        received = result.position + 1
    assert taken == 60


def test_patience_bounds_how_late_a_result_is() -> None:
    model = tiny_classifier(1)
    images = noise(40, SIZE, seed=3)
    confidence = model.classify(images, exit_at=1).confidence[:, 0]
    # The least sure image stays, alone, and waits for others to fill its batch.
    lonely, other = confidence.topk(2, largest=False)[1].tolist()
    thresholds = (float(confidence[[lonely, other]].mean()), NEVER, NEVER, NEVER)
    leaving = [image for i, image in enumerate(images) if i != lonely] * 2

    def overtaken(**options: Any) -> int:
        source = [images[lonely], *leaving]
        results = stream(model, source, thresholds=thresholds, ordered=False, **options)
        return [result.position for result in results].index(0)

    assert overtaken() == len(leaving)
    assert overtaken(patience=20) <= 20


def test_training_mode_and_gradients_are_left_alone() -> None:
    model = tiny_classifier()
    images = noise(6, SIZE, seed=9)
    expected = model.classify(images)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    got = []
    for result in stream(model, images):
        assert torch.is_grad_enabled()
        assert model.focus.training
        got.append(result)
    assert_equal_to_batched(got, expected)
    assert not found(got[0]).probabilities.requires_grad
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_inference_mode_may_begin_and_end_while_it_runs() -> None:
    model = tiny_classifier(0)
    images = noise(6, SIZE, seed=0)
    expected = [found(one).label for one in stream(model, images, batch=2)]
    with torch.inference_mode():
        results = stream(model, images, batch=2)
        first = next(results)
    assert [found(one).label for one in (first, *results)] == expected


def test_the_source_may_use_its_memory_again() -> None:
    model = tiny_classifier(1)
    images = noise(23, SIZE, seed=3)
    thresholds = spread_thresholds(model, images)
    one, several = torch.empty_like(images[0]), torch.empty_like(images[:3])

    def reused() -> Iterator[Tensor]:
        for begin in range(0, 20, 4):
            yield one.copy_(images[begin])
            yield several.copy_(images[begin + 1 : begin + 4])
        for image in images[20:]:
            yield one.copy_(image)

    got = list(model.stream(reused(), batch=8, thresholds=thresholds, image_size=SIZE))
    assert_equal_to_batched(got, model.classify(images, thresholds))


class Item(NamedTuple):
    """What a source gives at once: `count` images; None is an image alone."""

    count: int | None
    kind: Literal["floats", "bytes", "channels_last", "wrong"]


items = st.lists(
    st.builds(
        Item,
        st.none() | st.integers(0, 7),
        st.sampled_from(["floats", "floats", "bytes", "channels_last", "wrong"]),
    ),
    max_size=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=items,
    batch=st.integers(1, 5),
    more_slots=st.integers(0, 12),
    patience=st.none() | st.integers(1, 10),
    answer=st.sampled_from(["last", "surest"]),
    constant_batch=st.booleans(),
)
def test_batches_and_single_images_of_memory_that_is_used_again(
    plan: list[Item],
    batch: int,
    more_slots: int,
    patience: int | None,
    answer: Any,
    constant_batch: bool,
) -> None:
    model = tiny_classifier(1)
    count = sum(1 if item.count is None else item.count for item in plan)
    pixels = (noise(count, SIZE, seed=3).sigmoid() * 255).to(torch.uint8)
    images = model.preprocessing.normalise(pixels)
    policy = ExitPolicy((0.3, 0.5, 0.7, 0.8), answer=answer)
    expected = model.classify(images, policy=policy)
    assume(
        not count
        or (expected.confidence[:, :4] - torch.tensor(policy.thresholds))
        .abs()
        .nan_to_num(nan=1)
        .min()
        > 1e-4
    )
    wrong: set[int] = set()

    def source() -> Iterator[Any]:
        begin = 0
        for item in plan:
            end = begin + (1 if item.count is None else item.count)
            given = (pixels if item.kind == "bytes" else images)[begin:end].clone()
            if item.kind == "channels_last":
                given = given.contiguous(memory_format=torch.channels_last)
            if item.kind == "wrong":
                given = given[:, :, 1:]
                wrong.update(range(begin, end))
            keys = list(range(begin, end))
            yield (given[0], begin) if item.count is None else (given, keys)
            # Whoever still looks at it finds something else.
            given.fill_(77)
            begin = end

    results = list(
        model.stream(
            source(),
            batch=batch,
            slots=batch + more_slots,
            patience=patience,
            policy=policy,
            passes=replace(plain_passes(model, SIZE), constant_batch=constant_batch),
        )
    )
    assert [result.position for result in results] == list(range(count))
    assert [result.key for result in results] == list(range(count))
    for b, result in enumerate(results):
        if b in wrong:
            assert isinstance(result.error, ValueError)
            continue
        got = found(result)
        assert (got.label, got.exit_step) == (int(expected.label[b]), int(expected.exit_step[b]))
        torch.testing.assert_close(
            got.probabilities, expected.probabilities[b], rtol=1e-4, atol=1e-5
        )
        assert torch.equal(got.top_left, expected.top_left[b])


def test_the_source_is_not_asked_while_its_images_are_looked_at() -> None:
    """Whole batches are not copied: the glance sees the very memory that they came in."""
    model = tiny_classifier(1)
    images = noise(8, SIZE, seed=3)
    seen: list[int] = []
    real = model.glance_input

    def looked_at(given: Tensor) -> Tensor:
        seen.append(given.data_ptr())
        return real(given)

    model.glance_input = looked_at  # type: ignore[method-assign]
    list(stream(model, iter(images.split(4))))
    assert seen == [images[0].data_ptr(), images[4].data_ptr()]
    list(stream(model, images))
    assert seen[2:] == seen[:2]


def test_streams_at_the_same_time_have_memory_of_their_own() -> None:
    model = tiny_classifier(1)
    images = noise(24, SIZE, seed=3)
    expected = model.classify(images)
    for _ in range(2):  # the second time with memory that was used before
        streams = [stream(model, iter(images[n::2]), batch=2) for n in range(2)]
        both = [list(pair) for pair in zip(*streams, strict=True)]
        for n in range(2):
            labels = [found(pair[n]).label for pair in both]
            assert labels == expected.label[n::2].tolist()


def test_memory_between_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_classifier(1)
    monkeypatch.setattr(kept_memory, "MOST_BYTES", 100)
    sizes = ((60,), (30,), (30,), (200,))
    blocks = [
        kept_memory.borrow(model, size, torch.uint8, torch.contiguous_format) for size in sizes
    ]
    for block in blocks:
        kept_memory.give_back(model, block)
    again = [
        kept_memory.borrow(model, size, torch.uint8, torch.contiguous_format) for size in sizes
    ]
    # The last one is larger than all that may be kept; the first was too much beside the others.
    assert {id(one) for one in again} & {id(one) for one in blocks} == set(map(id, blocks[1:3]))


@pytest.mark.parametrize("kind", [SlotImages, FixedImages])
def test_bytes_stay_bytes_until_something_else_comes(kind: type[SlotImages]) -> None:
    model = tiny_classifier(1, glance_size=min(SIZE))
    pixels = (noise(9, SIZE, seed=3).sigmoid() * 255).to(torch.uint8)
    normalised = model.preprocessing.normalise(pixels)
    held = kind(model, 6, 3, SIZE)
    assert held.put(pixels[:1])  # the memory is there only now
    assert not held.put(pixels[1:2])
    held.take(2)
    torch.testing.assert_close(
        held.glance_input(2), model.glance_input(pixels[:2]), rtol=1e-5, atol=1e-5
    )
    held.keep([0, 1], [5, 2])
    rows = torch.tensor([2, 5])
    torch.testing.assert_close(held.whole(rows), normalised[[1, 0]])
    held.put(pixels[2:3])
    assert held.put(normalised[3:4])  # all of them become floats
    assert not held.is_bytes
    held.put(pixels[4:5])
    with pytest.raises(RuntimeError, match="3 images wait for the glance, not 2"):
        held.take(2)
    held.take(3)
    torch.testing.assert_close(
        held.glance_input(3), model.glance_input(normalised[2:5]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(held.whole(rows), normalised[[1, 0]])
    corners = torch.tensor([[1, 2], [3, 4]])
    patch = held.patches(corners, rows)[0]
    torch.testing.assert_close(patch, normalised[1, :, 1:96, 2:97])


def test_results_do_not_keep_their_batches() -> None:
    model = tiny_classifier(1)
    images = noise(16, SIZE, seed=3)
    results = list(stream(model, images, thresholds=spread_thresholds(model, images)))
    # Those that leave together share memory, and all have no more than they need.
    storages = [found(one).probabilities.untyped_storage() for one in results]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert len(sizes) > 4  # in no pass did all of the four leave together
    assert sum(sizes.values()) == 16 * CLASSES * 4


def test_results_can_be_sent_to_another_process() -> None:
    model = tiny_classifier(1)
    images = noise(12, SIZE, seed=3)
    results = list(stream(model, images, thresholds=spread_thresholds(model, images)))
    copies = pickle.loads(pickle.dumps(results))
    assert_equal_to_batched(copies, model.classify(images, spread_thresholds(model, images)))
    assert [repr(one) for one in copies] == [repr(one) for one in results]
    assert f"label={found(results[0]).label}, exit_step=" in repr(results[0])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_passes_see_one_shape_only(backend: str) -> None:
    model = tiny_classifier(1).fold()
    images = noise(23, SIZE, seed=3)
    thresholds = spread_thresholds(model, images)
    expected = model.classify(images, thresholds)
    torch.compiler.reset()
    passes = compiled_passes(model, SIZE, backend=backend, fullgraph=True)
    got = list(model.stream(images, batch=4, thresholds=thresholds, passes=passes))
    assert_equal_to_batched(got, expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = list(model.stream(images[:10], batch=4, thresholds=thresholds, passes=passes))
    assert [found(one).label for one in again] == expected.label[:10].tolist()
    torch.compiler.reset()


def test_compile_is_an_option() -> None:
    model = tiny_classifier(1).fold()
    images = noise(6, SIZE, seed=3)
    torch.compiler.reset()
    got = list(stream(model, images, compile={"backend": "eager"}))
    assert_equal_to_batched(got, model.classify(images))
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": (0.5, 0.5)}, "need 4 thresholds, got 2"),
        ({"thresholds": (0.5, math.nan, 0.5, 0.5)}, "NaN"),
        ({"exit_at": 6}, "exit_at must be 1 to 5, got 6"),
        ({"thresholds": (0.5,) * 4, "policy": ExitPolicy((0.5,) * 4)}, "not both"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"batch": 8, "slots": 7}, "slots must be at least the batch of 8, got 7"),
        ({"image_size": (94, 200)}, "at least 95x95 pixels, got 94x200"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"workers": 2}, "2 workers have nothing to do without load"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(tiny_classifier(), [], **options)


@pytest.mark.parametrize("name", ["batch", "slots", "workers", "patience"])
@pytest.mark.parametrize("value", [4.5, "4"])
def test_numbers_that_are_no_integers_are_refused_at_the_call(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an integer, got {value!r}"):
        stream(tiny_classifier(), [], **{name: value})


def test_wrong_keys_and_wrong_networks() -> None:
    model = tiny_classifier()
    images = noise(2, SIZE, seed=0)
    with pytest.raises(
        ValueError, match="2 images in one tensor need a sequence of as many keys, got 3"
    ):
        list(stream(model, [(images, "abc")]))
    with pytest.raises(ValueError, match="as many keys, got int"):
        list(stream(model, [(images, 3)]))
    with pytest.raises(ValueError, match="one image size"):
        stream(model, [], passes=plain_passes(model, SIZE))
    model.focus.classifier = nn.Linear(16, CLASSES + 1)
    with pytest.raises(ValueError, match=r"the focus network gives \(2, 6\)"):
        list(stream(model, images))


def test_the_bundled_model_on_photos(tmp_path: Path) -> None:
    from PIL import Image

    model = TwoStageClassifier.from_pretrained("caltech101")
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        pixels = torch.randint(256, (120, 140, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(paths[-1])
    paths.insert(1, tmp_path / "missing.png")
    got = list(
        model.stream(
            paths, load=lambda path: model.preprocessing(Image.open(path)), workers=2, batch=2
        )
    )
    assert [result.key for result in got] == paths
    assert isinstance(got[1].error, FileNotFoundError)
    assert [result.found is None for result in got] == [False, True, False, False]


@needs_cuda
@pytest.mark.parametrize("answer", ["last", "surest"])
def test_cuda_equals_cpu(answer: Any) -> None:
    model = tiny_classifier(1, dtype=torch.float64)
    images = noise(61, SIZE, 3, torch.float64)
    policy = ExitPolicy((0.5, 0.7, 0.8, 0.9), answer=answer)
    expected = model.classify(images, policy=policy)
    got = list(stream(model.cuda(), images, batch=8, policy=policy))
    assert_equal_to_batched(got, expected)


@needs_cuda
@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
def test_recorded_graphs(pixels: torch.dtype) -> None:
    model = tiny_classifier(1).tuned().cuda()
    images = noise(61, SIZE, seed=3)
    if pixels == torch.uint8:
        images = (images.sigmoid() * 255).to(torch.uint8)
    policy = ExitPolicy((0.5, 0.7, 0.8, 0.9))
    expected = list(stream(model, images, batch=8, policy=policy))
    for source in (images, images.cuda()):
        got = list(stream(model, source, batch=8, policy=policy, graphs=True))
        assert [found(one).label for one in got] == [found(one).label for one in expected]
        assert [found(one).exit_step for one in got] == [found(one).exit_step for one in expected]


@needs_cuda
def test_cuda_graphs() -> None:
    model = tiny_classifier(1).fold().cuda()
    images = noise(61, SIZE, seed=3)
    policy = ExitPolicy((0.5, 0.7, 0.8, 0.9))
    expected = list(stream(model, images, batch=8, policy=policy))
    got = list(stream(model, images, policy=policy, batch=8, compile={"mode": "reduce-overhead"}))
    assert [found(one).label for one in got] == [found(one).label for one in expected]
