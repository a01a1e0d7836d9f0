"""A two-stage classifier as a folder: config.json and one safetensors file for each network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from anchornet_ext._files import write_whole
from anchornet_ext._formats import require_version
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.policy.exit_policy import ExitPolicy

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

FORMAT = "anchornet_ext two-stage classifier"
FORMAT_VERSION = 2  # 1 had thresholds instead of a whole policy
CONFIG = "config.json"
NETWORKS = ("anchor", "glance", "focus")
STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Where the models that come with the package lie, one folder each.
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))


def resolve(folder_or_name: str | PathLike[str]) -> Path:
    """The folder of a saved model; a name is looked up among the bundled ones.

    Raises:
        FileNotFoundError: there is no such folder and no such bundled model.
    """
    folder = Path(folder_or_name)
    if folder.is_dir():
        return folder
    if str(folder_or_name) in bundled_models():
        return PRETRAINED / folder
    raise FileNotFoundError(
        f"no model at {str(folder_or_name)!r}: it is neither a folder nor one of the bundled "
        f"models ({', '.join(bundled_models()) or 'there are none'})"
    )


def save(
    classifier: TwoStageClassifier,
    folder: str | PathLike[str],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes `classifier` into `folder`, which is made if need be.

    Every file is written beside its place and moved there whole, the configuration last. It holds
    the checksums of the others, so that a save which was cut short is noticed when loading instead
    of giving a mixture of two models.

    Args:
        dtype: how to store weights of two or more dimensions: float32, float16 or bfloat16; None
            keeps them. Vectors (biases, batch-norm statistics) are few and always kept as they are.

    Raises:
        ValueError: the classifier is folded, a backbone's name is unknown, or a weight is too large
            for `dtype`.
    """
    if classifier.is_folded:
        raise ValueError("a folded classifier cannot be saved; save the one it was folded from")
    names = {"glance": classifier.glance_name, "focus": classifier.focus_name}
    for part, name in names.items():
        if name is None:
            raise ValueError(f"the {part} network has no name: set {part}_name before saving")
    if dtype is not None and dtype not in STORED_DTYPES:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype}")

    folder = Path(folder)
    blobs = {
        f"{part}.safetensors": safetensors.torch.save(
            _stored(getattr(classifier, part), dtype, part), metadata={"format": "pt"}
        )
        for part in NETWORKS
    }
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "num_classes": classifier.num_classes,
        "class_names": classifier.class_names,
        "anchor": {"skip": classifier.anchor.skip},
        "glance": {"backbone": classifier.glance_name},
        "focus": {"backbone": classifier.focus_name},
        "preprocessing": classifier.preprocessing.to_dict(),
        "num_patches": classifier.num_patches,
        "iou_threshold": classifier.iou_threshold,
        "glance_size": classifier.glance_size,
        "criterion": classifier.criterion,
        "policy": None if classifier.policy is None else classifier.policy.to_dict(),
        # What `classify` reports: it runs the folded AnchorNet.
        "macs_per_exit": classifier.fold().macs_per_exit(),
        "files": {
            name: {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
            for name, blob in blobs.items()
        },
    }
    text = _as_text(config)
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in blobs.items():
        write_whole(folder / name, blob)
    write_whole(folder / CONFIG, text)


def load(folder_or_name: str | PathLike[str]) -> TwoStageClassifier:
    """Reads what `save` wrote: unfolded, float32, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is corrupt or not of this format, a newer version wrote it, or the
            weights do not fit the configuration (of other classes, say).
    """
    from anchornet_ext.models import AnchorNet, build_backbone

    from .two_stage import TwoStageClassifier

    folder = resolve(folder_or_name)
    config = read_config(folder)
    try:
        classes = int(config["num_classes"])
        classifier = TwoStageClassifier(
            AnchorNet(classes, skip=config["anchor"]["skip"]),
            build_backbone(config["glance"]["backbone"], classes),
            build_backbone(config["focus"]["backbone"], classes),
            num_patches=config["num_patches"],
            iou_threshold=config["iou_threshold"],
            glance_size=config["glance_size"],
            class_names=config["class_names"],
            preprocessing=Preprocessing.from_dict(config["preprocessing"]),
            criterion=config["criterion"],
            glance_name=config["glance"]["backbone"],
            focus_name=config["focus"]["backbone"],
            policy=_policy(config),
        )
        files = config["files"]
        for part in NETWORKS:
            _load_weights(classifier.get_submodule(part), folder / f"{part}.safetensors", files)
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG} has no entry {error}") from error
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG} has an entry of a wrong type: {error}") from error
    return classifier.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a saved model, checked for its format and version.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, not of this format, or of a newer version.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} is not a saved model: it has no {CONFIG}") from None
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not _is_own(config):
        raise ValueError(f"{path} does not describe an {FORMAT}{_what_else(folder, config)}")
    require_version(config, FORMAT_VERSION, str(path))
    return config


def _what_else(folder: Path, config: Any) -> str:
    """What a folder is instead that somebody may well take for a two-stage classifier."""
    other = ", but a {} of the system {!r}; `anchornet evaluate` takes {}"
    if system := _system_of(config):
        return other.format("model", system, folder)
    model = folder / "model"
    try:
        config = json.loads((model / CONFIG).read_bytes())
    except (OSError, ValueError):
        if isinstance(config, dict) and "stages" in config and not model.exists():
            return ", but a run that is not finished; go on with `anchornet train --resume`"
        return ""
    if system := _system_of(config):
        return other.format("run", system, folder)
    return f": it is of a run, whose model is in {model}" if _is_own(config) else ""


def _system_of(config: Any) -> Any:
    """The name in the configuration of another system's saved model."""
    return config.get("system") if isinstance(config, dict) and "format" in config else None


def _is_own(config: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(config, dict) and config.get("format") == FORMAT


def checksum(config: Mapping[str, Any]) -> str:
    """Of a configuration but its policy: the same for the same weights and settings.

    The configuration holds the checksums of the weights, which loading compares.
    """
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("policy", "thresholds", "format_version")  # what installing one changes
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def install_policy(folder: str | PathLike[str], policy: ExitPolicy | None) -> None:
    """Makes `policy` the one that the saved model in `folder` uses by itself; None takes it away.

    Only config.json changes, and it is replaced whole.

    Raises:
        FileNotFoundError: there is no saved model.
        ValueError: its configuration cannot be read, or the policy is for other exits.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        num_exits = 1 + int(config["num_patches"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG} has no valid entry 'num_patches'") from error
    if policy is not None:
        policy.require_exits(num_exits)
    config.pop("thresholds", None)  # of format version 1
    config["format_version"] = FORMAT_VERSION
    config["policy"] = None if policy is None else policy.to_dict()
    write_whole(folder / CONFIG, _as_text(config))


def _as_text(config: Mapping[str, Any]) -> bytes:
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    # Classes are named by folders, whose names need not be text: JSON reads this as the same name.
    return text.encode(errors="backslashreplace")


def _policy(config: Mapping[str, Any]) -> ExitPolicy | None:
    if config["format_version"] == 1:
        thresholds = config["thresholds"]
        return None if thresholds is None else ExitPolicy(thresholds)
    return None if config["policy"] is None else ExitPolicy.from_dict(config["policy"])


def _stored(module: nn.Module, dtype: torch.dtype | None, part: str) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().cpu()
        if dtype is not None and value.is_floating_point() and value.ndim >= 2:
            narrow = value.to(dtype)
            if not torch.equal(narrow.isfinite(), value.isfinite()):
                raise ValueError(
                    f"{part}'s {name} reaches {value.abs().max().item():.3g}, too large for {dtype}"
                )
            value = narrow
        # Contiguous and unshared, as safetensors wants it.
        stored[name] = value.clone(memory_format=torch.contiguous_format)
    return stored


def _load_weights(module: nn.Module, path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} is not complete: it has no {path.name}") from None
    expected = files[path.name]
    if len(blob) != expected["bytes"] or hashlib.sha256(blob).hexdigest() != expected["sha256"]:
        raise ValueError(
            f"{path} is corrupt or of another save: its {len(blob)} bytes do not have the checksum "
            f"in {CONFIG}"
        )
    try:
        weights = safetensors.torch.load(blob)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:  # torch lists the tensors that are missing or of another shape
        raise ValueError(f"{path} does not fit {CONFIG}: {error}") from error
