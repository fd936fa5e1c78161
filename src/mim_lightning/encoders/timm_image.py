"""Image encoders of timm: uint8 images in, pooled features out, without the classifier.

Weights come from the hub, a file or a folder, or stay random until a checkpoint is loaded.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor, nn

from mim_lightning.encoders.hub_connection import cache_unless_connected, why_not_downloaded
from mim_lightning.encoders.interface import (
    PREPROCESSING_FILE,
    HfForm,
    ImageEncoder,
    Preprocessing,
    Pretrained,
    canonical_text,
    checkpoint_vendor,
    names_by_pattern,
    nearest_interpolation,
    one_line,
    unknown_name,
)
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.types import ImageSpec, TowerInput

HUB_PREFIX = "hf-hub:"
HF_PREPROCESSING_FILE = "preprocessor_config.json"  # of transformers
RESERVED = frozenset(inspect.signature(timm.create_model).parameters) | {"num_classes"}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")
SIDE_STEPS = (32, 28, 16, 14, 8)  # sides that architectures take are multiples of one of these
MAX_SIDES_TRIED = 12  # larger ones, and as many smaller ones
MAX_PARAMETERS_TRIED = 100_000_000  # of a model that is built on the CPU for an error message


class TimmImage(ImageEncoder):
    """Any timm image model as an encoder.

    Args:
        name: timm model name, with or without its weights tag.
        pretrained: None or False for random weights, True for the tag's own, else a weights file, a folder
            with one, or `hf-hub:owner/model`.
        image_size: side in pixels; None: the model's own.
        mean, std: by channel in [0, 1]; None: the model's own.
        drop_rate: dropout before the (absent) classifier.
        drop_path_rate: stochastic depth.
        channels_last: memory layout; with it convolutions run 1.1 to 1.7 times as fast on a CPU.
        model_kwargs: further arguments of the timm model, such as `{pad_type: same}`.
        assets: what `export_assets` of the original returned.

    Raises:
        ValueError: no such model, weights that cannot be loaded or do not fit, or a size it cannot take.
    """

    def __init__(
        self,
        name: str,
        pretrained: Pretrained = None,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        channels_last: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
        assets: Mapping[str, str] | None = None,
    ) -> None:
        _validate_name(name)
        arguments = dict(model_kwargs or {})
        for key in arguments:
            if key in RESERVED:  # some of them load weights, unchecked
                raise ValueError(f"encoder '{name}': model_kwargs.{key} is not the model's own; see `pretrained`")
        if image_size is not None and timm.get_pretrained_cfg(name).fixed_input_size:
            arguments["img_size"] = image_size
        if drop_path_rate:
            arguments["drop_path_rate"] = drop_path_rate
        arguments["drop_rate"] = drop_rate
        network = _build(name, pretrained, image_size, arguments)
        if assets is not None:
            with errors_as_damaged_file(PREPROCESSING_FILE):
                preprocessing = Preprocessing.from_json(assets[PREPROCESSING_FILE])
        else:
            preprocessing = _preprocessing(network, image_size, mean, std)
        super().__init__(preprocessing)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.is_contiguous_on_cpu = _has_fragile_layer(network)
        if channels_last and not self.is_contiguous_on_cpu:
            _to_channels_last(network)
        self.network = network
        self.architecture: dict[str, Any] = {"timm": name.split(".")[0], "arguments": dict(model_kwargs or {})}
        self.width = self._measure_width(name, arguments)

    def forward(self, inputs: TowerInput) -> Tensor:
        images = self.normalize(inputs)
        is_plain = self.is_contiguous_on_cpu and images.device.type == "cpu"
        return self.network(
            images.contiguous(memory_format=torch.contiguous_format if is_plain else self.memory_format)
        )

    def names_without_decay(self) -> set[str]:
        listed: Iterable[str] = getattr(self.network, "no_weight_decay", tuple)()
        return {f"network.{name}" for name in names_by_pattern(self.network, listed)}

    def checkpoint_activations(self) -> None:
        checkpoint_vendor(self.network)

    def synchronize_batch_norm(self) -> None:
        # torch's own conversion drops the activations inside timm's norm layers
        self.network = timm.layers.convert_sync_batchnorm(self.network)

    def describe_preprocessing(self) -> str:
        return canonical_text({**self.architecture, "preprocessing": self.preprocessing.to_json()})

    def write_hf(self, folder: Path) -> HfForm:
        from transformers import TimmWrapperConfig, TimmWrapperModel

        name, arguments = self.architecture["timm"], dict(self.architecture["arguments"])
        preprocessing = _hf_preprocessing(self.preprocessing)
        if timm.get_pretrained_cfg(name).fixed_input_size:
            arguments["img_size"] = self.spec.size[0]
        # zero labels: else transformers looks for the names of ImageNet's classes
        config = TimmWrapperConfig(architecture=name, model_args=arguments, num_labels=0, num_features=self.width)
        wrapper = TimmWrapperModel(config)
        wrapper.timm_model.load_state_dict(self.network.state_dict())
        wrapper.save_pretrained(folder)
        (folder / HF_PREPROCESSING_FILE).write_text(json.dumps(preprocessing, indent=2), "utf-8")
        return HfForm("image", "pooler_output", self.width)

    def _measure_width(self, name: str, arguments: Mapping[str, Any]) -> int:
        """Return the number of features of a gray image: `num_features` is wrong for some models with a head."""
        try:
            features = self.embed_sample()
        except Exception as error:  # architectures raise any kind over a size
            raise _refusal(name, self.spec.size[0], arguments, error) from error
        if features.ndim != 2:
            shape = " x ".join(map(str, features.shape[1:]))
            raise ValueError(
                f"encoder '{name}': makes {shape} features of an image, not one vector; give a model that pools them"
            )
        return features.shape[-1]


def _hf_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the image processor of transformers that prepares images this way.

    Perceiver's is the one that crops before it resizes, to `size / crop_size` of the shortest side, rounded down.

    Raises:
        ValueError: there is none.
    """
    spec, (height, width) = preprocessing.spec, preprocessing.spec.size
    facts: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "resample": 3 if spec.interpolation == "bicubic" else 2,
    }
    if spec.resize_mode == "squash":
        return facts
    if spec.resize_mode == "squash_crop":
        frame = {key: math.floor(side / spec.crop_fraction) for key, side in facts["size"].items()}
        for key, side in facts["size"].items():
            if (frame[key] - side) % 4 == 3:  # the smaller half of the margin comes first there, the larger one in timm
                raise ValueError(
                    f"transformers crops {frame[key]} to {side} pixels of {key} one pixel aside from timm "
                    "(resize_mode=squash_crop, a margin of 4 n + 3 pixels); another image_size may have an even margin"
                )
        return facts | {"size": frame, "crop_size": facts["size"], "do_center_crop": True}
    if spec.resize_mode == "shortest" and height == width:
        side = height / spec.crop_fraction * (1 - 1e-9)  # a crop of whole pixels must not be rounded below them
        crop = {"crop_size": {"height": side, "width": side}, "do_center_crop": True}
        return facts | crop | {"image_processor_type": "PerceiverImageProcessor"}
    raise ValueError(
        f"no image processor of transformers prepares images of {height} x {width} by resize_mode={spec.resize_mode}; "
        "there are squash, squash_crop and, of a square, shortest"
    )


def _validate_name(name: str) -> None:
    if ":" in name or "/" in name:
        raise ValueError(
            f"encoder '{name}': name must be a timm architecture; give the hub or the folder with `pretrained`"
        )
    if not timm.is_model(name.split(".")[0]):
        raise unknown_name("timm model", name, timm.list_models())
    tagged = timm.list_pretrained(name.split(".")[0] + ".*")
    if "." in name and name not in tagged:
        raise unknown_name("weights tag of this timm model", name, tagged)


def _to_channels_last(network: nn.Module) -> None:
    """Do what `network.to(memory_format=...)` does, which fails for weights of five dimensions."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _has_fragile_layer(network: nn.Module) -> bool:
    """Return whether the backward pass of a layer writes past its memory on a CPU in channels_last.

    That of oneDNN does for 1 x 1 convolutions of stride 2 over 2 to 15 channels (torch 2.15): a segmentation fault.
    RepVGG and FastViT, the image half of MobileCLIP, begin with such a layer.
    """
    return any(
        isinstance(part, nn.Conv2d)
        and (part.kernel_size, part.groups) == ((1, 1), 1)
        and max(part.stride) > 1
        and part.in_channels < 16
        for part in network.modules()
    )


def _build(name: str, pretrained: Pretrained, image_size: int | None, arguments: Mapping[str, Any]) -> nn.Module:
    overlay = _find_weights(name, pretrained) if isinstance(pretrained, str) else None
    try:
        with cache_unless_connected(name, offline=not pretrained or "state_dict" in (overlay or ())):
            network = timm.create_model(
                name, pretrained=bool(pretrained), num_classes=0, pretrained_cfg_overlay=overlay, **arguments
            )
    except Exception as error:  # the hub's client raises a dozen kinds, constructors any
        fault = _constructor_error(name, arguments) if pretrained else error
        if fault is None:
            raise _weights_error(name, pretrained, error) from error
        if isinstance(fault, TypeError):  # a keyword that the model's constructor does not know
            raise ValueError(f"encoder '{name}': {fault}; see model_kwargs, image_size, drop_path_rate") from error
        if image_size is None:
            reason = f"{type(fault).__name__}: {one_line(fault)}"
            raise ValueError(f"encoder '{name}': cannot be built with {dict(arguments)} ({reason})") from error
        raise _refusal(name, image_size, arguments, fault) from error
    network.pretrained_cfg.pop("state_dict", None)  # else the tensors of the file stay in memory with the network
    return network


def _constructor_error(name: str, arguments: Mapping[str, Any]) -> Exception | None:
    """Return the error of building the architecture without weights, or None."""
    try:
        timm.create_model(name, num_classes=0, **arguments)
    except Exception as error:  # constructors raise any kind
        return error
    return None


def _refusal(name: str, side: int, arguments: Mapping[str, Any], error: Exception) -> ValueError:
    """Return the error for a size that a model cannot take, with the nearest sizes that it can."""
    own = timm.get_pretrained_cfg(name).input_size[-1]
    if side == own:
        reason = f"{type(error).__name__}: {one_line(error)}"
        return ValueError(f"encoder '{name}': cannot embed an image with {dict(arguments)} ({reason})")
    near = " and ".join(f"{size} x {size}" for size in _sides_near(name, side, arguments))
    remedy = f"it takes {near}" if near else f"it was made for {own} x {own}"
    return ValueError(f"encoder '{name}': cannot take images of {side} x {side}; {remedy}")


def _sides_near(name: str, side: int, arguments: Mapping[str, Any]) -> list[int]:
    """Return the nearest smaller and larger side that a model takes, among multiples of the usual steps."""
    sides = sorted({k * step for step in SIDE_STEPS for k in range(1, math.ceil(2 * side / step) + 1)})
    below, above = [s for s in reversed(sides) if s < side], [s for s in sides if s > side]
    near = (next((s for s in part[:MAX_SIDES_TRIED] if _takes(name, s, arguments)), None) for part in (below, above))
    return [size for size in near if size is not None]


@torch.no_grad()
def _takes(name: str, side: int, arguments: Mapping[str, Any]) -> bool:
    given = {"img_size": side} if "img_size" in arguments else {}
    for device in ("meta", "cpu"):  # meta checks shapes fast; only the CPU notices an index out of bounds
        try:
            with torch.device(device):
                network = timm.create_model(name, num_classes=0, **{**arguments, **given}).eval()
                network(torch.zeros(1, 3, side, side))
        except Exception:  # as above
            return False
        if sum(weights.numel() for weights in network.parameters()) > MAX_PARAMETERS_TRIED:
            return True  # the CPU pass would take too much memory and time
    return True


def _find_weights(name: str, pretrained: str) -> dict[str, Any]:
    """Return the overlay of timm's config that takes the weights from a hub repository, a folder or a file."""
    if pretrained.startswith(HUB_PREFIX):
        return {"hf_hub_id": pretrained.removeprefix(HUB_PREFIX), "source": "hf-hub"}
    path = Path(pretrained).expanduser()
    if path.is_dir():
        held = [path / file for file in WEIGHT_FILES if (path / file).is_file()]
        if not held:
            raise ValueError(f"encoder '{name}': folder {path} holds none of {', '.join(WEIGHT_FILES)}")
        path = held[0]
    if not path.is_file():
        raise ValueError(
            f"encoder '{name}': weights file {path} does not exist; give a .safetensors or .pth file, "
            f"a folder, or {HUB_PREFIX}owner/model"
        )
    return _read_weights(name, path)


def _read_weights(name: str, path: Path) -> dict[str, Any]:
    """Return a file's weights without its classifier.

    timm loads strictly only if the numbers of classes agree; otherwise missing weights silently stay random. So the
    classifier is removed here, and zero classes are declared.
    """
    try:
        weights = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # safetensors, pickle and zip readers raise their own
        raise _weights_error(name, str(path), error) from error
    classifiers = timm.get_pretrained_cfg(name).classifier or ()
    for layer in (classifiers,) if isinstance(classifiers, str) else classifiers:
        weights.pop(f"{layer}.weight", None)
        weights.pop(f"{layer}.bias", None)
    return {"state_dict": weights, "num_classes": 0}


def _weights_error(name: str, pretrained: Pretrained, error: Exception) -> ValueError:
    is_local = isinstance(pretrained, str) and not pretrained.startswith(HUB_PREFIX)
    # PyTorch and timm both raise RuntimeError: only the text distinguishes weights that do not fit from missing ones
    if is_local or "loading state_dict" in str(error):
        reason = " ".join(str(error).split())[:200]
        return ValueError(f"encoder '{name}': weights (pretrained={pretrained}) do not fit this model: {reason}")
    return ValueError(
        f"encoder '{name}': weights cannot be downloaded ({why_not_downloaded()}); copy HF_HOME from a machine that "
        "has them, or give encoder.image.pretrained=<file>, or encoder.image.pretrained=false for random weights"
    )


def _preprocessing(
    network: nn.Module, image_size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    own = resolve_model_data_config(network)
    mean = tuple(mean if mean is not None else own["mean"])
    levels = [round(255 * value) for value in mean]
    crop_fraction, mode = float(own["crop_pct"]), own["crop_mode"]
    if mode == "squash":
        mode = "squash" if crop_fraction == 1 else "squash_crop"
    elif mode != "border":
        mode = "shortest" if crop_fraction <= 1 else "shortest_pad"
    spec = ImageSpec(
        size=(image_size, image_size) if image_size is not None else tuple(own["input_size"][1:]),
        interpolation=nearest_interpolation(own["interpolation"]),
        crop_fraction=crop_fraction,
        resize_mode=mode,
        fill=(levels[0], levels[1], levels[2]) if mode == "border" else (0, 0, 0),
    )
    return Preprocessing(spec, mean, tuple(std if std is not None else own["std"]))
