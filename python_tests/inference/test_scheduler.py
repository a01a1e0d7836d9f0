"""The streaming loop's scheduler: full passes, in order, and never stuck."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchornet_ext.inference.scheduler import Pass, Scheduler, Work

PLENTY = 10**9


def slots_for_full_passes(batch: int) -> int:
    """With how many slots only the end of the stream, or its patience, makes incomplete passes."""
    return 3 * (batch - 1) + 1


class Run:
    """Plays a stream: image i wants to leave after `wants[i]` inputs; None is no image."""

    def __init__(
        self,
        wants: list[int | None],
        slots: int,
        batch: int,
        last: int,
        patience: int = PLENTY,
        depth: int = 1,
        together: bool = False,
    ) -> None:
        self.scheduler = Scheduler(slots, batch, last, patience)
        self.last = last
        self.slots = slots
        self.together = together
        self.works: list[Work] = []
        self.source_ended_at: int | None = None  # the number of passes before
        self.left: list[int] = []  # images, in the order in which they left
        self.seen: dict[int, list[Pass]] = {}
        self.most_overtaken = 0
        self._image: dict[int, int] = {}  # by slot
        self._play(deque(enumerate(wants)), wants, depth)

    def _play(
        self, source: deque[tuple[int, int | None]], wants: list[int | None], depth: int
    ) -> None:
        under_way: deque[Work] = deque()
        more = True
        arrived = 0
        while True:
            if len(under_way) < depth:
                work = self.scheduler.next(more)
                if work is not None:
                    self._check(work, under_way)
                    under_way.append(work)
                    self.works.append(work)
                    continue
                if more and self.scheduler.room:
                    if not source:
                        more = False
                        self.source_ended_at = len(self.works)
                        continue
                    assert self.scheduler.admissible
                    if source[0][1] is None:
                        source.popleft()
                        arrived += 1
                        self.scheduler.pass_by()
                        continue
                    group = [source.popleft()[0]]
                    room = self.scheduler.admissible if self.together else 1
                    while source and source[0][1] is not None and len(group) < room:
                        group.append(source.popleft()[0])
                    arrived += len(group)
                    for slot, image in zip(self.scheduler.admit(len(group)), group, strict=True):
                        assert slot not in self._image
                        self._image[slot] = image
                        self.seen[image] = []
                    assert len(self._image) <= self.slots
                    self.most_overtaken = max(
                        self.most_overtaken, arrived - 1 - min(self._image.values())
                    )
                    continue
            if not under_way:
                break
            self._finish(under_way.popleft(), wants)
        assert not self._image
        assert not source

    def _check(self, work: Work, under_way: deque[Work]) -> None:
        assert len(set(work.slots)) == len(work.slots) == len(work.steps) >= 1
        for other in under_way:
            assert not set(work.slots) & set(other.slots)
        for slot, step in zip(work.slots, work.steps, strict=True):
            seen = self.seen[self._image[slot]]
            inputs = sum(kind is not Pass.LOCALISE for kind in seen)
            assert step == inputs + (work.kind is not Pass.LOCALISE)
            seen.append(work.kind)

    def _finish(self, work: Work, wants: list[int | None]) -> None:
        stay = set()
        for slot, step in zip(work.slots, work.steps, strict=True):
            want = wants[self._image[slot]]
            assert want is not None
            if step < want:
                stay.add(slot)
        left = self.scheduler.finish(work, stay)
        self.left += [self._image.pop(slot) for slot in left]

    def sizes(self, kind: Pass) -> list[int]:
        return [len(work.slots) for work in self.works if work.kind is kind]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_image_takes_its_inputs_and_leaves(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 5), "batch")
    slots = data.draw(st.integers(batch, 5 * batch), "slots")
    last = data.draw(st.integers(1, 5), "last")
    patience = data.draw(st.integers(1, 40) | st.just(PLENTY), "patience")
    depth = data.draw(st.integers(1, 3), "depth")
    # Beyond `last`, an image would stay, but may not.
    wants = data.draw(st.lists(st.none() | st.integers(1, last + 1), max_size=60), "wants")
    run = Run(wants, slots, batch, last, patience, depth)
    # Those that come together go the same ways.
    assert Run(wants, slots, batch, last, patience, depth, together=True).works == run.works
    images = [image for image, want in enumerate(wants) if want is not None]
    assert sorted(run.left) == images
    for image in images:
        want = wants[image]
        assert want is not None
        patches = min(want, last) - 1
        expected = [Pass.GLANCE, *[Pass.LOCALISE] * (patches > 0), *[Pass.FOCUS] * patches]
        assert run.seen[image] == expected
    assert all(len(work.slots) <= batch for work in run.works)
    assert run.most_overtaken <= patience + 1
    if slots >= slots_for_full_passes(batch) and patience == PLENTY:
        assert run.source_ended_at is not None
        assert all(len(work.slots) == batch for work in run.works[: run.source_ended_at])


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_one_slot_less_than_promised_is_too_few(batch: int) -> None:
    # The promise is tight: the same images with one slot less make an incomplete pass somewhere.
    if batch == 1:
        with pytest.raises(ValueError, match="slots must be at least the batch of 1, got 0"):
            Scheduler(0, 1, 3, PLENTY)
        return
    # One image fewer than a batch waits for AnchorNet, then for the focus network, then come new.
    stay = batch - 1
    wants: list[int | None] = [*[9] * stay, *[1] * (3 * batch)]
    enough = Run(wants, slots_for_full_passes(batch), batch, last=9)
    assert enough.source_ended_at is not None
    assert all(len(work.slots) == batch for work in enough.works[: enough.source_ended_at])
    too_few = Run(wants, batch + stay - 1, batch, last=9)
    assert any(len(work.slots) < batch for work in too_few.works[: too_few.source_ended_at])


def test_the_passes_are_as_few_as_the_inputs_allow() -> None:
    # Everybody needs all five inputs: whole batches of everything but a remainder.
    batch, images = 8, 100
    run = Run([5] * images, 4 * batch, batch, last=5)
    assert Counter(run.sizes(Pass.GLANCE)) == {8: 12, 4: 1}
    assert sum(run.sizes(Pass.LOCALISE)) == images
    assert len(run.sizes(Pass.LOCALISE)) == 13
    assert sum(run.sizes(Pass.FOCUS)) == 4 * images
    # The last few images have four inputs to go, one after the other.
    assert len(run.sizes(Pass.FOCUS)) <= 4 * images // batch + 3


def test_the_last_images_run_the_longest_ways_first() -> None:
    scheduler = Scheduler(8, 4, 5, PLENTY)

    def run(count: int, more: bool) -> list[tuple[Pass, int]]:
        done = []
        for _ in range(count):
            work = scheduler.next(more)
            assert work is not None
            done.append((work.kind, len(work.slots)))
            scheduler.finish(work, range(8))
        return done

    scheduler.admit(4)
    assert run(5, more=True) == [(Pass.GLANCE, 4), (Pass.LOCALISE, 4), *[(Pass.FOCUS, 4)] * 3]
    scheduler.admit(2)
    # Four images have one input to go, the two new ones have four. Had the four gone first, the two
    # would have run alone four times.
    ends = [(Pass.FOCUS, 4), (Pass.FOCUS, 4), (Pass.FOCUS, 2), (Pass.FOCUS, 2)]
    assert run(6, more=False) == [(Pass.GLANCE, 2), (Pass.LOCALISE, 2), *ends]
    assert scheduler.next(more=False) is None


def test_an_image_that_waits_alone_is_not_forgotten() -> None:
    # One image stays, and all that follow leave at once: without patience it waits till the end.
    wants: list[int | None] = [5, *[1] * 500]
    forgotten = Run(wants, 40, 4, last=5)
    assert forgotten.left[-1] == 0
    patient = Run(wants, 40, 4, last=5, patience=100)
    assert patient.most_overtaken <= 101
    assert patient.left.index(0) <= 101
    assert patient.sizes(Pass.LOCALISE) == [1]


def test_errors_count_as_arrivals() -> None:
    run = Run([5, *[1] * 3, *[None] * 500], 40, 4, last=5, patience=100)
    assert run.left[-1] == 0
    assert run.source_ended_at == len(run.works)  # it left before the source had ended


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 0, 5, 1), "batch must be at least 1, got 0"),
        ((8, 4, 0, 1), "last must be at least 1, got 0"),
        ((8, 4, 5, 0), "patience must be at least 1, got 0"),
        ((3, 4, 5, 1), "slots must be at least the batch of 4, got 3"),
    ],
)
def test_wrong_numbers_are_refused(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(*arguments)


def test_there_is_no_room_beyond_the_slots() -> None:
    scheduler = Scheduler(2, 2, 5, PLENTY)
    scheduler.admit(1)
    assert scheduler.room
    with pytest.raises(RuntimeError, match="no room for 2 images, but for 1"):
        scheduler.admit(2)
    scheduler.admit(1)
    assert not scheduler.room
    with pytest.raises(RuntimeError, match="no room for 1 images, but for 0"):
        scheduler.admit(1)
