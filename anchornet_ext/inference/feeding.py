"""What comes into a stream: images as their source gives them, or why there is none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

from torch import Tensor


class Arrival(NamedTuple):
    """Images that came together, or the error in the place of one."""

    position: int
    """The number of the first in the input, from 0; errors count."""
    keys: Sequence[Any]
    """What came with each."""
    images: Tensor | None
    """(B, 3, H, W), not checked yet, at least one; None if there is an error.

    The memory is the source's, which may write to it as soon as it is asked for more.
    """
    error: Exception | None
    """Why there is no image."""


def arrivals(
    source: Iterable[Any],
    load: Callable[[Any], Any] | None = None,
    workers: int = 0,
    ahead: int = 0,
) -> Generator[Arrival, None, None]:
    """The images of `source`, in its order and no sooner than they are asked for.

    Without `load`, an item is an image (3, H, W), several of them (B, 3, H, W), an exception in the
    place of an image, or a pair of one of these and a key: anything for one image, a sequence or a
    tensor of B for several. With `load`, an item is what `load` makes an image of. It is the key,
    too, unless `load` returns a pair of the image and another. A source that is itself a tensor
    (N, 3, H, W) is one item.

    Args:
        source: is iterated over in the calling thread. What it raises comes out here.
        load: an exception of it is this item's error only.
        workers: threads that call `load`; 0 calls it in the calling thread.
        ahead: how many items the threads may be ahead.

    Closing the generator waits for the loads under way and ends the threads.
    """
    items = _parts(source) if load is None else _loaded(source, load, workers, ahead)
    position = 0
    with closing(items):
        for image, key in items:
            if isinstance(image, Tensor) and image.ndim == 4 and load is None:
                keys = _keys(key, len(image))
                if len(image) > 0:
                    yield Arrival(position, keys, image, None)
                position += len(image)
                continue
            if isinstance(image, Tensor):
                yield Arrival(position, (key,), image[None], None)
            elif isinstance(image, Exception):
                yield Arrival(position, (key,), None, image)
            else:
                error = TypeError(f"expected an image as a tensor, got {type(image).__name__}")
                yield Arrival(position, (key,), None, error)
            position += 1


def _parts(source: Iterable[Any]) -> Generator[tuple[Any, Any], None, None]:
    if isinstance(source, Tensor) and source.ndim == 4:
        source = (source,)  # it would come apart into views of single images
    for item in source:
        if isinstance(item, (tuple, list)) and len(item) == 1:
            (item,) = item  # as a DataLoader has them that knows of nothing but images
        yield item if _is_pair(item) else (item, None)


def _keys(key: Any, count: int) -> Sequence[Any]:
    if key is None:
        return [None] * count
    keys: Sequence[Any] = key.tolist() if isinstance(key, Tensor) else key
    if not isinstance(keys, Sequence) or len(keys) != count:
        found = f"{len(keys)}" if isinstance(keys, Sequence) else type(keys).__name__
        raise ValueError(
            f"{count} images in one tensor need a sequence of as many keys, got {found}"
        )
    return keys


def _loaded(
    source: Iterable[Any], load: Callable[[Any], Any], workers: int, ahead: int
) -> Generator[tuple[Any, Any], None, None]:
    if workers == 0:
        for item in source:
            yield _try(load, item)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="anchornet-stream")
    try:
        under_way: deque[Future[tuple[Any, Any]]] = deque()
        problem: Exception | None = None
        items = iter(source)
        ended = False
        while True:
            while not ended and len(under_way) <= ahead:
                try:
                    item = next(items)
                except StopIteration:
                    ended = True
                except Exception as error:
                    # What came before it is still to be had.
                    ended, problem = True, error
                else:
                    under_way.append(pool.submit(_try, load, item))
            if not under_way:
                break
            yield under_way.popleft().result()
        if problem is not None:
            raise problem
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _try(load: Callable[[Any], Any], item: Any) -> tuple[Any, Any]:
    """The image, or why there is none, and its key."""
    try:
        loaded = load(item)
    except Exception as error:
        return error, item
    return loaded if _is_pair(loaded) else (loaded, item)


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2
