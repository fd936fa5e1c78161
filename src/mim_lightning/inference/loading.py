"""From a path to a model: checkpoint, export folder or hub, which runtime, which device, how rounded.

What a user asked `loaded.load` for comes in, an `Opened` goes out, whose parts are those of a LoadedModel.
`open_matcher` stops before towers become encoders, for whoever embeds with a trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mim_lightning.inference.export_format import read_facts, read_matcher
from mim_lightning.inference.hub import download, is_hub_path
from mim_lightning.inference.quantization import check_precision, compute_type, name_of, restore, store
from mim_lightning.inference.tower_encoder import TowerEncoder, torch_towers
from mim_lightning.model.checkpoint import load_matcher
from mim_lightning.model.matcher import Matcher

RUNTIMES = ("torch", "onnx")


@dataclass(frozen=True)
class OpenedMatcher:
    """A matcher in evaluation mode on the CPU, its weights float32 in memory, rounded to `precision`."""

    matcher: Matcher
    config: dict[str, Any]  # of the run, resolved
    fingerprint: str
    precision: str


@dataclass(frozen=True)
class Opened:
    """What a LoadedModel is made of."""

    fingerprint: str
    dimension: int
    fusions: dict[str, dict[str, float]]
    config: dict[str, Any]
    device: torch.device
    precision: str
    encoders: Mapping[str, TowerEncoder]


def open_model(path: str | Path, device: str, precision: str, runtime: str) -> Opened:
    """Open a checkpoint, an export folder, or one on the hub; arguments and errors as in `loaded.load`."""
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime}: there are {', '.join(RUNTIMES)}")
    if runtime == "onnx":
        return _open_onnx(_fetched(path), device, precision)
    target = choose_device(device)
    return encoders_of(open_matcher(path, precision), target)


def open_matcher(path: str | Path, precision: str = "auto") -> OpenedMatcher:
    """Open the matcher of a checkpoint, an export folder, or one on the hub.

    Raises:
        ValueError: nothing there, damaged or changed, or already rounded to another precision.
    """
    place = _fetched(path)
    if place.is_dir():
        facts = read_facts(place)
        opened = OpenedMatcher(read_matcher(place, facts), facts.config, facts.fingerprint, facts.precision)
    else:
        loaded = load_matcher(place)
        opened = OpenedMatcher(loaded.matcher, loaded.config, loaded.fingerprint, "float32")
    return opened if precision in ("auto", opened.precision) else round_matcher(opened, precision, str(path))


def round_matcher(opened: OpenedMatcher, precision: str, where: str) -> OpenedMatcher:
    """Round the weights of a float32 matcher, in place.

    Raises:
        ValueError: no such precision, or they are rounded already.
    """
    check_precision(precision)
    if opened.precision != "float32":
        raise ValueError(
            f"{where}: holds {opened.precision} weights; "
            f"for precision={precision} load the checkpoint or a float32 export"
        )
    opened.matcher.load_state_dict(restore(store(opened.matcher.state_dict(), precision)))
    return OpenedMatcher(opened.matcher, opened.config, name_of(opened.fingerprint, precision), precision)


def encoders_of(opened: OpenedMatcher, device: torch.device) -> Opened:
    """Move a matcher to its device, as encoders by tower."""
    return Opened(
        fingerprint=opened.fingerprint,
        dimension=opened.matcher.dimension,
        fusions=opened.matcher.fusions,
        config=opened.config,
        device=device,
        precision=opened.precision,
        encoders=torch_towers(opened.matcher, device, compute_type(opened.precision, device)),
    )


def choose_device(device: str) -> torch.device:
    """Return the device that a name stands for; "auto" is a GPU if there is one.

    Raises:
        ValueError: no such device on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without the device
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device}: cannot be used here ({reason}); give auto, cpu or cuda") from error
    return chosen


def _fetched(path: str | Path) -> Path:
    return download(str(path)) if is_hub_path(path) else Path(path)


def _open_onnx(folder: Path, device: str, precision: str) -> Opened:
    from mim_lightning.inference.onnx import open_towers

    if device not in ("auto", "cpu"):
        raise ValueError(f"device={device}: runtime=onnx computes on the CPU")
    facts = read_facts(folder)
    if precision not in ("auto", facts.precision):
        raise ValueError(f"{folder}: holds ONNX towers of {facts.precision} weights, not of {precision}")
    # for the check of its fingerprint, and for preprocessing and tokenisers; the weights go again
    matcher = read_matcher(folder, facts)
    return Opened(
        fingerprint=facts.fingerprint,
        dimension=facts.dimension,
        fusions=matcher.fusions,
        config=facts.config,
        device=torch.device("cpu"),
        precision=facts.precision,
        encoders=open_towers(folder, facts.onnx, matcher.owner_of, matcher.input_specs()),
    )
