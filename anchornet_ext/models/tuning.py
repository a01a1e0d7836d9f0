"""A network as fast as PyTorch runs it: folded, in channels_last, in a dtype, compiled.

Nothing here knows of patches or exits. The networks of the two-stage classifier and the dense
network that they are compared with get the same treatment.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anchornet_ext import _extension

from ._structure import Contents
from .fused_network import FusedNetwork
from .mean_pooling import pack_pools
from .native_calls import has_fast_kernels
from .norm_folding import FoldedNorms, fold_batch_norms
from .packed_convolutions import PackedConv2d, pack_convolutions
from .packed_linear import pack_linears
from .residual_runs import fuse_inverted_residuals, fuse_linear_layers

#: Whether PyTorch can keep the code of each call of `torch.compile` apart.
_ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters


def tune(
    network: nn.Module,
    *,
    compile: bool = False,
    dtype: torch.dtype | None = None,
    image_size: tuple[int, int] | None = None,
) -> TunedNetwork:
    """A copy of `network` for inference, with the same results up to rounding.

    In evaluation mode, without gradients, batch norm folded into the convolutions wherever that is
    exact (`norm_folding.fold_batch_norms`), weights and images in channels_last, and on the CPU the
    weights of convolutions in the kernels' own orders (`packed_convolutions`), each of which takes
    as much memory as they do once more: mostly one, two or three of those that meet maps of several
    sizes. And operations are fused where `torch.fx` sees the network's graph
    (`graph_fusion`), all of them where they are a MobileNet or an EfficientNet (`whole_network`).
    `network` itself is left as it is; later changes to it do not reach the copy.

    The copy's weights may be loaded and its modules exchanged; the next call sees it, and compiles
    again where weights are frozen. `parameter.data = other` is not seen: use `parameter.copy_`, or
    move the network (`.to`), after which everything is made anew.

    Args:
        network: maps images (B, C, H, W) to a tensor. A tuned one is taken apart first.
        compile: run it by `torch.compile`. The first batch waits up to minutes for that, and so
            does the first one of another size; after that, any size will do. On the CPU, batches
            that this package's own operators compute faster are left to them and wait for nothing:
            those of MobileNets and EfficientNets in float32, up to eight images of a ResNet, any
            number of a DenseNet. For the others the weights are frozen, which puts them into the
            order that the convolutions want, once. What cannot be compiled as one graph is compiled
            in parts, with a warning.
        dtype: of the weights and the computation, and of the result: float32, float64, float16 or
            bfloat16; images of another are cast on the way in. None keeps the network's.
        image_size: (H, W) that the network takes, to look for batch norms to fold; None tries the
            usual ones, and the result's `norms` say so if it takes none of them.

    Raises:
        TypeError: `network` is no plain module (TorchScript, for example), or `dtype` no floating
            point type.
        RuntimeError: not here but at a call: the compilation failed.
    """
    if isinstance(network, torch.jit.ScriptModule) or not isinstance(network, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(network).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating point type, got {dtype}")
    if isinstance(network, TunedNetwork):
        copied, norms = copy.deepcopy(network.network), network.norms
    else:
        copied = copy.deepcopy(getattr(network, "_orig_mod", network))  # below torch.compile
        norms = fold_batch_norms(copied, image_size)
    return TunedNetwork(copied, norms, compile=compile, dtype=dtype)


class TunedNetwork(nn.Module):
    """What `tune` makes: (B, C, H, W) of any floating point type to what the network gives.

    Runs without gradients, also where they are enabled.

    Attributes:
        network: the copy that was tuned, not compiled.
        norms: which of its batch norms are folded.
        is_compiled: whether calls go through `torch.compile`, where that is the faster.
        dtype: of the computation.
    """

    network: nn.Module
    norms: FoldedNorms

    def __init__(
        self,
        network: nn.Module,
        norms: FoldedNorms,
        *,
        compile: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)
        if dtype is not None:
            self.network.to(dtype)
        pack_convolutions(self.network)
        pack_linears(self.network)
        pack_pools(self.network)
        fuse_inverted_residuals(self.network)
        fuse_linear_layers(self.network)
        self.norms = norms
        self.is_compiled = compile
        self.training = False
        tensors = (*network.parameters(), *network.buffers())
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        self._compiled: _Compiled | None = None
        self._fused: FusedNetwork | None = None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        images = images.to(self.dtype, memory_format=torch.channels_last)
        # Inside of somebody else's compilation, and for shapes alone, the network as it is.
        if not self.is_compiled or images.is_meta or torch.compiler.is_compiling():
            return self._run_plain(images)
        if images.is_cpu and self._graph().is_faster_than_compiled(images):
            return self._run_plain(images)
        return self._run_compiled(images)

    def train(self, mode: bool = True) -> TunedNetwork:
        """Stays in evaluation mode: with its batch norms gone, it cannot train."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TunedNetwork:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._compiled = self._fused = None  # frozen weights are those of before
        weight = next(iter(self.network.parameters()), None)
        if weight is not None and weight.is_floating_point():
            self.dtype = weight.dtype
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A copy is compiled and fused anew.
        return {**self.__dict__, "_compiled": None, "_fused": None}

    def extra_repr(self) -> str:
        return (
            f"norms_folded={self.norms.folded}, norms_kept={len(self.norms.kept)}, "
            f"is_compiled={self.is_compiled}, dtype={self.dtype}"
        )

    @property
    def best_batch(self) -> int | None:
        """Of how many images it takes the least time for each on the CPU, if many are not best."""
        return self._graph().best_batch

    def _graph(self) -> FusedNetwork:
        if self._fused is None or not self._fused.is_of_these_modules():
            self._fused = FusedNetwork(self.network, self.dtype)
        return self._fused

    def _run_plain(self, images: Tensor) -> Any:
        if not images.is_cpu or torch.compiler.is_compiling():
            return self.network(images)
        graph = self._fused or self._graph()
        logits = graph.whole.run(images)  # which looks by itself whether all is as it was
        if logits is not None:
            return logits
        graph = self._graph()
        return (graph if graph.takes(images) else self.network)(images)

    def _run_compiled(self, images: Tensor) -> Any:
        if self._compiled is None or not self._compiled.is_of_these_weights():
            in_graph = images.is_cpu and has_fast_kernels(self.dtype)
            for module in self.network.modules():
                if isinstance(module, PackedConv2d):
                    module.is_frozen = in_graph
            self._compiled = _Compiled(self.network, images.device)
        return self._compiled(images)


class _Compiled:
    """A network through `torch.compile`, with few compilations for images of one size.

    The first batch is compiled for its shape. Another size of batch is compiled for all, which is
    as fast on a CPU but takes longer to compile; a batch of 1 is a case of its own to PyTorch, and
    batches much larger than those before may be. So neither a stream, whose batches have one size,
    nor a batch that shrinks compiles for ever.

    The code is for the number of threads that there are when it is compiled.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network
        self._compiled = _compile(network, device, fullgraph=True)
        self._device = device
        self._known: set[tuple[Any, ...]] = set()
        # Frozen weights are part of the code.
        own = [(m._modules, m._parameters, m._buffers) for m in network.modules()]
        frozen = device.type == "cpu" and _extension.available()
        self._frozen = Contents([held for three in own for held in three]) if frozen else None

    def is_of_these_weights(self) -> bool:
        """Whether the network has the modules, and they the weights, that the code was made of."""
        return self._frozen is None or self._frozen.are_as_they_were()

    def __call__(self, images: Tensor) -> Any:
        # Another of any of these is compiled anew.
        kind = (*images.shape[1:], images.is_inference())
        batch = len(images)
        exact, any_batch = (*kind, batch), (*kind, "any")
        if (
            exact not in self._known
            and batch > 1
            and any(known[:-1] == kind and known[-1] != 1 for known in self._known)
        ):
            exact = any_batch
            images = images.detach()  # the mark is not to stay on the caller's tensor
            torch._dynamo.maybe_mark_dynamic(images, 0)
        # What is known may be compiled again: PyTorch can take "all" for up to 15, say.
        out = self._compile_and_run(images)
        self._known.add(exact)
        return out

    def _compile_and_run(self, images: Tensor) -> Any:
        # PyTorch counts compilations by the code they are of, so those of all networks of one class
        # together, and has a limit for them that is meant for something else.
        # That weights are frozen it looks up before the options of `torch.compile` apply.
        with (
            torch._dynamo.config.patch(
                recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16
            ),
            torch._inductor.config.patch(freezing=self._device.type == "cpu"),
        ):
            try:
                return self._compiled(images)
            except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError) as error:
                warnings.warn(
                    f"{type(self._network).__name__} is compiled in parts, with Python between "
                    f"them: {_first_line(error)}",
                    stacklevel=2,
                )
                self._compiled = _compile(self._network, self._device, fullgraph=False)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise self._failed(images, error) from error
            try:
                return self._compiled(images)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise self._failed(images, error) from error

    def _failed(self, images: Tensor, error: Exception) -> RuntimeError:
        return RuntimeError(
            f"torch.compile failed for {type(self._network).__name__} on images "
            f"{tuple(images.shape)} on {images.device}: {_first_line(error)}; "
            f"tune(..., compile=False) runs it without"
        )


def _compile(
    network: nn.Module, device: torch.device, *, fullgraph: bool
) -> Callable[[Tensor], Any]:
    options: dict[str, str | int | bool | Callable[..., Any]] = {}
    if device.type == "cpu":
        options["freezing"] = True
        # Among the patterns are the activations that frozen convolutions are given to do: oneDNN's
        # ReLU, ReLU6 and hard sigmoid make a number of NaN, and a network that diverged would be
        # sure of its answers.
        options["pattern_matcher"] = False
    own: dict[str, Any] = {}
    # PyTorch keeps code by the class of a network, and would find that with the weights of before.
    if _ISOLATES:
        own["isolate_recompiles"] = True
    elif device.type == "cpu":  # an older PyTorch can only forget all code
        torch.compiler.reset()
    compiled: Callable[[Tensor], Any] = torch.compile(
        network, dynamic=False, fullgraph=fullgraph, options=options, **own
    )
    return compiled


def _first_line(error: Exception) -> str:
    error = getattr(error, "inner_exception", error)  # what happened, without where it came by
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
