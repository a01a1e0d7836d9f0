"""Classification networks by name: torchvision's, timm's, and the ResNets for CIFAR."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from anchornet_ext._meta import meta_images, meta_twin

#: Networks that train with auxiliary classifiers, which make their output a tuple, and where.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}

#: Name -> (depth, width).
_CIFAR_RESNETS = {
    f"cifar/resnet{depth}{suffix}": (depth, width)
    for depth in (8, 20, 32, 44, 56, 110)
    for suffix, width in (("", 1), ("x2", 2))
}


def build_backbone(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """A classification network with a classifier for `num_classes`.

    Args:
        name: a classification model of torchvision ("resnet50", "mobilenet_v3_small", ...), or
            "timm/NAME" for a model of timm, which must be installed; or "cifar/resnet32" (8, 20,
            32, 44, 56, 110; with x2 behind, twice as wide) for a ResNet of images of 32 x 32.
        num_classes: width of the output. Where it is not that of the pretrained classifier, the
            last layer is a new one.
        pretrained: start from torchvision's default (or timm's) pretrained weights, downloaded to
            torch's hub folder the first time.

    Returns:
        A module that maps (B, 3, H, W) to logits (B, num_classes), in training mode. Auxiliary
        classifiers are left out.

    Raises:
        ValueError: the name is unknown (with the closest names), or num_classes is below 1.
        ImportError: a timm model is asked for and timm is not installed.
        RuntimeError: the pretrained weights could not be downloaded.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if name.startswith("timm/"):
        return _build_timm(name.removeprefix("timm/"), num_classes, pretrained)
    if name.startswith("cifar/"):
        return _build_cifar(name, num_classes, pretrained)
    return _build_torchvision(name, num_classes, pretrained)


def pretrained_classes(name: str) -> int:
    """How many classes the weights are for that `build_backbone(name, ..., pretrained=True)` loads.

    Raises:
        ValueError: the name is unknown, or there are no pretrained weights for it.
        ImportError: a timm model is asked for and timm is not installed.
    """
    if name.startswith("timm/"):
        return _timm_pretrained_classes(name.removeprefix("timm/"))
    if name.startswith("cifar/"):
        raise ValueError(f"there are no pretrained weights for {name!r}")
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise _unknown(name, "torchvision", names)
    return len(torchvision.models.get_model_weights(name).DEFAULT.meta["categories"])


def require_input_size(model: nn.Module, size: int | tuple[int, int], in_channels: int = 3) -> None:
    """Checks that a network takes images of `size`, without computing anything.

    The network is run on the meta device, so this costs shapes only and leaves `model` alone.

    Args:
        model: a network from (B, in_channels, H, W).
        size: height and width in pixels; an int means both.
        in_channels: channels of the images.

    Raises:
        ValueError: the network does not take that size (a vision transformer with fixed position
            embeddings, for example), with its own error chained.
    """
    height, width = (size, size) if isinstance(size, int) else size
    twin = meta_twin(model)
    try:
        with torch.no_grad():
            twin(meta_images(twin, (1, in_channels, height, width)))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{type(twin).__name__} does not take images of {in_channels}x{height}x{width}: "
            f"{reason[0]}"
        ) from error


def _build_cifar(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    from .cifar_resnet import CifarResNet

    if pretrained:
        raise ValueError(f"there are no pretrained weights for {name!r}")
    if name not in _CIFAR_RESNETS:
        raise ValueError(f"there is no {name!r}; there are {', '.join(_CIFAR_RESNETS)}")
    depth, width = _CIFAR_RESNETS[name]
    return CifarResNet(depth, num_classes, width)


def _unknown(name: str, library: str, names: Sequence[str]) -> ValueError:
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return ValueError(f"{library} has no classification model named {name!r}{hint}")


def _build_torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise _unknown(name, "torchvision", names)
    if not pretrained:
        options: dict[str, Any] = {}
        if name in _AUXILIARY:
            # Their own initialisation, which warns when it is not asked for.
            options = {"aux_logits": False, "init_weights": True}
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **options
        )
        return model
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        model = torchvision.models.get_model(name, weights=weights)
    except (URLError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"could not load the pretrained weights of {name!r} from {weights.url} ({error}); "
            f"put the file into {torch.hub.get_dir()}/checkpoints, or use pretrained=False"
        ) from error
    if name in _AUXILIARY:  # the weights cannot be loaded without them
        for attribute, value in (("aux_logits", False), *((a, None) for a in _AUXILIARY[name])):
            setattr(model, attribute, value)
    _replace_classifier(model, len(weights.meta["categories"]), num_classes)
    return model


def _replace_classifier(model: nn.Module, old_classes: int, num_classes: int) -> None:
    """Gives `model` a new last layer where its width is not `num_classes`.

    The last layer has another path and type in each family; it is the one layer as wide as there
    were classes.
    """
    if num_classes == old_classes:
        return
    found = [
        path
        for path, layer in model.named_modules()
        if old_classes in (getattr(layer, "out_features", 0), getattr(layer, "out_channels", 0))
    ]
    if len(found) != 1:
        raise ValueError(
            f"expected one layer of {old_classes} outputs in {type(model).__name__}, got {found}"
        )
    model.set_submodule(found[0], _resized(model.get_submodule(found[0]), num_classes))


def _resized(layer: nn.Module, num_classes: int) -> nn.Module:
    """A new layer like `layer`, with its default initialisation and `num_classes` outputs."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)
    if isinstance(layer, nn.Conv2d):
        if layer.kernel_size != (1, 1):
            raise ValueError(f"expected a 1x1 convolution as classifier, got {layer}")
        return nn.Conv2d(layer.in_channels, num_classes, 1, bias=layer.bias is not None)
    raise ValueError(f"do not know how to replace a classifier of type {type(layer).__name__}")


def _timm_with(name: str) -> Any:
    """The module timm, which has a model of that name."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"timm/{name} needs timm, which is not installed: pip install timm"
        ) from error
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown(name, "timm", timm.list_models())
    return timm


def _timm_pretrained_classes(name: str) -> int:
    config = _timm_with(name).get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"timm has no pretrained weights for {name!r}")
    return int(config.num_classes)


def _build_timm(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    timm = _timm_with(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    except (URLError, OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise RuntimeError(
            f"could not load the pretrained weights of timm/{name} ({error}); use pretrained=False"
        ) from error
    return model
