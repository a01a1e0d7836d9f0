"""Networks with intermediate classifiers, evaluated no further than an image needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext._images import require_normalised_images
from anchornet_ext._meta import meta_images, meta_twin

from .elementwise_counter import ElementwiseCounter
from .tuning import tune

if TYPE_CHECKING:
    from typing_extensions import Self

#: What is run before an exit's classifier; see `ExitNetwork.schedule`.
SCHEDULES = ("blocks", "needed")
#: The name under which steps read the images.
IMAGES = "images"


class Progress(Protocol):
    """A batch on its way from exit to exit (see `ExitNetwork.begin`)."""

    def next_logits(self) -> Tensor:
        """(B', n) logits of the next exit, of the images that are still there.

        Only what this exit needs beyond what is there already is computed.

        Raises:
            RuntimeError: there is no next exit.
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Goes on with some of the images only.

        Args:
            rows: (B'',) int64, places among the images that are there, in the order in which they
                are to go on; may be empty, or all.
        """
        ...


class Step(NamedTuple):
    """One computation of a network.

    Attributes:
        module: maps the tensors that `inputs` name, one argument each, to one tensor.
        inputs: names of earlier steps, or IMAGES.
    """

    module: nn.Module
    inputs: tuple[str, ...]


class _Planned(NamedTuple):
    """A step in its place: what it reads, and what nobody reads afterwards."""

    name: str
    inputs: tuple[str, ...]
    unused: tuple[str, ...]


class ExitNetwork(nn.Module):
    """A network with T classifiers, given as steps that read each other's results.

    The steps are in an order in which they can run. The classifiers are among them; what stands
    between two of them is the block of the later one.

    `schedule` says what is run before the classifier of an exit, and changes no logits:

    * "blocks": all blocks up to it. This is what the published costs count.
    * "needed": of these, only the steps that its logits depend on; the others run when a later exit
      depends on them (MSDNet's "lazy evaluation", section 4 of its paper), or never.

    Args:
        steps: name -> step.
        exits: the T names of the classifiers' steps, in the order of the steps.
        num_classes: n.
        schedule: one of SCHEDULES. May be changed later.

    Raises:
        ValueError: a step reads something that no earlier step makes, the exits are not steps in
            their order, or an unknown schedule.
    """

    def __init__(
        self,
        steps: Mapping[str, Step],
        exits: Sequence[str],
        num_classes: int,
        schedule: str = "blocks",
    ) -> None:
        super().__init__()
        known = {IMAGES}
        for name, step in steps.items():
            missing = [source for source in step.inputs if source not in known]
            if missing or name in known:
                raise ValueError(f"step {name!r} reads {missing}, which no earlier step makes")
            known.add(name)
        places = [list(steps).index(name) if name in steps else -1 for name in exits]
        if not places or places[0] < 0 or places != sorted(set(places)):
            raise ValueError(f"exits must be steps in their order, got {list(exits)}")
        self.steps = nn.ModuleDict({name: step.module for name, step in steps.items()})
        self._inputs = {name: step.inputs for name, step in steps.items()}
        self.exits = tuple(exits)
        self.num_classes = num_classes
        self.schedule = schedule
        self._macs: dict[tuple[int, int, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    @property
    def num_exits(self) -> int:
        """T."""
        return len(self.exits)

    @property
    def schedule(self) -> str:
        """One of SCHEDULES."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: str) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
        self._plan = _plan(self._inputs, self.exits, schedule)
        self._schedule = schedule

    def forward(self, images: Tensor) -> Tensor:
        """The logits of every exit.

        Args:
            images: (B, 3, H, W) floating point, normalised.

        Returns:
            (T, B, n).
        """
        run = _Run(self, images)
        return torch.stack([run.next_logits() for _ in self.exits])

    def begin(self, images: Tensor) -> Progress:
        """Starts on a batch; nothing is computed before the first `next_logits`.

        Args:
            images: (B, 3, H, W) floating point, normalised. B may be 0.

        Raises:
            ValueError: the network is in training mode, where batch norm would mix the images and
                so make an image's result depend on which others are still there; or images of a
                wrong shape.
            TypeError: images are not floating point.
        """
        if self.training:
            raise ValueError(
                f"{type(self).__name__} is in training mode, where batch norm's statistics depend "
                "on which images are left: call eval() before begin()"
            )
        require_normalised_images(images)
        return _Run(self, images)

    def tuned(self) -> Self:
        """A copy for inference alone, with the same logits up to rounding (see `tuning.tune`).

        In eval mode, without gradients, batch norms folded, weights in channels_last.
        """
        network = tune(self).network
        assert isinstance(network, type(self))
        return network

    def macs_per_exit(
        self, image_size: tuple[int, int], *, elementwise: bool = False
    ) -> tuple[int, ...]:
        """Multiply-adds of an image that leaves at exit 1, ..., T, by running what it would run.

        Args:
            image_size: (H, W) in pixels.
            elementwise: count one more for each value that a ReLU or a pooling reads and for each
                bias of a linear layer, as the tables of the papers on MSDNet and RANet do. Without
                it they are counted as everywhere here, products only (see `count_macs`).

        They are counted once for each size; the steps are taken not to change.

        Returns:
            T ints, of what `begin` ... `next_logits` execute up to there under this schedule.

        Raises:
            ValueError: the network does not take images of that size.
        """
        key = (*image_size, self.schedule)
        if key not in self._macs:
            self._macs[key] = self._counted(image_size)
        products, others = self._macs[key]
        if not elementwise:
            return products
        return tuple(map(sum, zip(products, others, strict=True)))

    def _counted(self, image_size: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Products, and everything else that the papers count, up to each exit."""
        twin = meta_twin(self)
        assert isinstance(twin, ExitNetwork)
        images = meta_images(twin, (1, 3, *image_size))
        multiplied: list[int] = []
        others: list[int] = []
        try:
            with (
                torch.no_grad(),
                FlopCounterMode(display=False) as products,
                ElementwiseCounter() as counter,
            ):
                run = _Run(twin, images)
                for _ in self.exits:
                    run.next_logits()
                    multiplied.append(products.get_total_flops() // 2)
                    others.append(counter.operations)
        except RuntimeError as error:
            raise ValueError(
                f"{type(self).__name__} does not take images of {image_size[0]}x{image_size[1]}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        return tuple(multiplied), tuple(others)


class _Run:
    """The `Progress` of an `ExitNetwork`: the tensors that are there, by the name of their step."""

    def __init__(self, network: ExitNetwork, images: Tensor) -> None:
        self._modules = network.steps._modules
        self._plan = network._plan
        self._exits = network.exits
        self._exit = 0
        self._values = {IMAGES: images}

    def next_logits(self) -> Tensor:
        if self._exit == len(self._exits):
            raise RuntimeError(f"all {self._exit} exits are behind")
        values = self._values
        for name, inputs, unused in self._plan[self._exit]:
            module = self._modules[name]
            assert module is not None
            values[name] = module(*[values[source] for source in inputs])
            for source in unused:
                del values[source]
        logits = values.pop(self._exits[self._exit])
        self._exit += 1
        return logits

    def keep(self, rows: Tensor) -> None:
        if rows.ndim != 1 or rows.dtype != torch.int64:
            raise ValueError(f"rows must be (B,) int64, got {tuple(rows.shape)} {rows.dtype}")
        for name, value in self._values.items():
            self._values[name] = value[rows]


def _plan(
    inputs: Mapping[str, tuple[str, ...]], exits: Sequence[str], schedule: str
) -> list[list[_Planned]]:
    """For each exit the steps to run, in order."""
    order = list(inputs)
    of_exit: list[list[str]] = []
    done: set[str] = set()
    for name in exits:
        wanted = set(order[: order.index(name) + 1])
        if schedule == "needed":
            wanted = _behind(name, inputs)
        of_exit.append([step for step in order if step in wanted and step not in done])
        done |= wanted
    # From the end: who sees a name first is its last reader.
    plan: list[list[_Planned]] = []
    read = set(exits)
    for steps in reversed(of_exit):
        planned: list[_Planned] = []
        for name in reversed(steps):
            unused = {source for source in inputs[name] if source not in read}
            read |= unused
            if name not in read:
                unused.add(name)  # under "blocks": what the block makes and no later one reads
            planned.append(_Planned(name, inputs[name], tuple(sorted(unused))))
        plan.append(planned[::-1])
    return plan[::-1]


def _behind(name: str, inputs: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The steps that `name` depends on, and itself."""
    found: set[str] = set()
    open_names = [name]
    while open_names:
        step = open_names.pop()
        if step in found or step == IMAGES:
            continue
        found.add(step)
        open_names += inputs[step]
    return found
