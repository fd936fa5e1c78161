"""Loading a trained model from a checkpoint, an export folder or the hub, for a device, a precision and a runtime."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from mim_lightning.artifact_paths import is_sharded_checkpoint
from mim_lightning.inference.export_format import read_facts, read_matcher
from mim_lightning.inference.hub import download_export, is_hub_path
from mim_lightning.inference.model import LoadedModel
from mim_lightning.inference.quantization import (
    compute_dtype,
    dequantize_state,
    quantize_state,
    quantized_fingerprint,
    validate_precision,
)
from mim_lightning.inference.tower_encoder import torch_towers
from mim_lightning.io.digest import has_same_scheme
from mim_lightning.model.checkpoint import TrainedMatcher, load_matcher
from mim_lightning.model.compatibility import parse_galleries
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.fusion import Fusion
from mim_lightning.model.matcher import Matcher

RUNTIMES = ("torch", "onnx")


def load(
    path: str | Path, device: str = "auto", precision: str = "auto", runtime: str = "torch", like: str | None = None
) -> LoadedModel:
    """Load a model for inference.

    Args:
        path: a checkpoint, an export folder, or `hf://<user>/<repo>[@<revision>]` for an export on the hub.
        device: "auto" takes a GPU if there is one; "cpu", "cuda", "cuda:1" ...
        precision: "auto" as in the file, float32 for a checkpoint; "bfloat16", "float16" or "int8" round the weights,
            and the fingerprint says so.
        runtime: "torch", or "onnx" for the ONNX towers of an export folder, on the CPU.
        like: a fingerprint to compare with, such as an index's, which may be computed as versions before 0.2 did: the
            model's is then computed likewise, as far as its file allows.

    Raises:
        ValueError: nothing there, damaged or changed since it was written, or a choice that the file does not allow.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime}: there are {', '.join(RUNTIMES)}")
    if runtime == "onnx":
        return _load_onnx(_local(path), device, precision)
    target = choose_device(device)
    return to_device(load_trained(path, precision, like), target)


def load_trained(path: str | Path, precision: str = "auto", like: str | None = None) -> TrainedMatcher:
    """Load the matcher alone, in evaluation mode on the CPU, for embedding with a trainer; arguments as in `load`."""
    place = _local(path)
    if place.is_dir() and not is_sharded_checkpoint(place):
        facts = read_facts(place)
        matcher = read_matcher(place, facts)
        galleries = parse_galleries(facts.galleries)
        trained = TrainedMatcher(matcher, facts.config, facts.fingerprint, facts.precision, galleries)
        is_as_trained = facts.digest == facts.fingerprint  # else adapters are merged, or weights rounded
        if is_as_trained and like is not None and not has_same_scheme(like, facts.fingerprint):
            trained = replace(trained, fingerprint=fingerprint(matcher, like=like))
    else:
        trained = load_matcher(place, like).merged()
    return trained if precision in ("auto", trained.precision) else quantize(trained, precision, str(path))


def quantize(trained: TrainedMatcher, precision: str, where: str) -> TrainedMatcher:
    """Round the weights of a float32 matcher, in place; `where` names it in errors.

    Raises:
        ValueError: an unknown precision, or weights that are rounded already.
    """
    validate_precision(precision)
    if trained.precision != "float32":
        raise ValueError(
            f"{where}: holds {trained.precision} weights; "
            f"for precision={precision} load the checkpoint or a float32 export"
        )
    trained.matcher.load_state_dict(dequantize_state(quantize_state(trained.matcher.state_dict(), precision)))
    return replace(trained, fingerprint=quantized_fingerprint(trained.fingerprint, precision), precision=precision)


def to_device(trained: TrainedMatcher, device: torch.device) -> LoadedModel:
    """Return a matcher as a model for inference; the matcher itself is moved to the device."""
    return LoadedModel(
        fingerprint=trained.fingerprint,
        dimension=trained.matcher.dimension,
        fusions=_for_inference(trained.matcher),
        config=trained.config,
        device=device,
        precision=trained.precision,
        encoders=torch_towers(trained.matcher, device, compute_dtype(trained.precision, device)),
        galleries=trained.galleries,
    )


def choose_device(device: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one.

    Raises:
        ValueError: this machine has no such device.
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


def _for_inference(matcher: Matcher) -> dict[str, Fusion]:
    """Return copies of the fusions on the CPU, where the vectors of towers are."""
    return {name: deepcopy(fusion).cpu().eval().requires_grad_(False) for name, fusion in matcher.fusions.items()}


def _local(path: str | Path) -> Path:
    return download_export(str(path)) if is_hub_path(path) else Path(path)


def _load_onnx(folder: Path, device: str, precision: str) -> LoadedModel:
    from mim_lightning.inference.onnx import open_towers

    if device not in ("auto", "cpu"):
        raise ValueError(f"device={device}: runtime=onnx computes on the CPU")
    facts = read_facts(folder)
    if precision not in ("auto", facts.precision):
        raise ValueError(f"{folder}: holds ONNX towers of {facts.precision} weights, not of {precision}")
    # verifies the fingerprint and brings preprocessing and tokenizers; the weights themselves are not kept
    matcher = read_matcher(folder, facts)
    return LoadedModel(
        fingerprint=facts.fingerprint,
        dimension=facts.dimension,
        fusions=_for_inference(matcher),
        config=facts.config,
        device=torch.device("cpu"),
        precision=facts.precision,
        encoders=open_towers(folder, facts.onnx, matcher.owner_of, matcher.input_specs()),
        galleries=parse_galleries(facts.galleries),
    )
