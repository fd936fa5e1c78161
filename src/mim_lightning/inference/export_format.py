"""The export folder: a model as plain files; reading it runs no code.

model.safetensors      weights, rounded to the precision; int8 weights with their scales
config.json            `ExportFacts`: fingerprint, precision, preprocessing, the run's config without local paths
fingerprint            the fingerprint alone, for people and scripts
<tower>/...            preprocessing and tokenizer files of each tower that owns weights
onnx/<tower>.onnx      with onnx=true
README.md              the model card
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from mim_lightning.artifact_paths import EXPORT_FACTS, EXPORT_FINGERPRINT, validate_export
from mim_lightning.config import build_matcher
from mim_lightning.display.text import plain
from mim_lightning.inference.quantization import (
    base_fingerprint,
    dequantize_state,
    quantize_state,
    quantized_fingerprint,
    validate_precision,
)
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.file_name import validate_inside
from mim_lightning.model.checkpoint import load_strictly
from mim_lightning.model.compatibility import parse_galleries
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.matcher import Matcher
from mim_lightning.stored_config import errors_as_value_error, validate_assets, validate_config
from mim_lightning.types import InputSpec, TextSpec

FORMAT = 1
WEIGHTS_FILE, CARD_FILE = "model.safetensors", "README.md"
LOCAL_SECTIONS = ("paths", "logger")  # of a run's config: they are about one machine or account


@dataclass(frozen=True)
class ExportFacts:
    """Content of config.json."""

    fingerprint: str  # with the precision, if that is not float32
    digest: str  # fingerprint of the weights as they are stored; the same in float32 without adapters
    precision: str
    dimension: int
    tower_names: tuple[str, ...]
    inputs: dict[str, str]  # description by tower that owns weights
    preprocessing: dict[str, str]  # likewise, from `describe_preprocessing` of the encoder
    config: dict[str, Any]
    onnx: dict[str, dict[str, Any]] = field(default_factory=dict)  # tower -> fields of `onnx.OnnxFacts`
    galleries: dict[str, Any] = field(default_factory=dict)  # of former models, see `model.compatibility`
    format: int = FORMAT


def write_model(
    folder: Path, matcher: Matcher, config: Mapping[str, Any], base: str, precision: str
) -> tuple[ExportFacts, Matcher]:
    """Write weights and assets into a folder, and return the facts and the matcher, its weights now rounded.

    Args:
        base: fingerprint of the checkpoint, whose adapters the matcher has merged.
    """
    stored = {
        name: tensor.cpu().contiguous() for name, tensor in quantize_state(matcher.state_dict(), precision).items()
    }
    with atomic_write(folder / WEIGHTS_FILE) as partial:
        save_file(stored, partial)
    matcher.load_state_dict(dequantize_state(stored))
    for name in matcher.towers:
        for file, text in matcher.tower(name).encoder.export_assets().items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / file).write_text(text, "utf-8")
    return describe_model(matcher, config, base, precision), matcher


def describe_model(matcher: Matcher, config: Mapping[str, Any], base: str, precision: str) -> ExportFacts:
    """Return the facts of a matcher whose weights are rounded; `base` as in `write_model`."""
    return ExportFacts(
        fingerprint=quantized_fingerprint(base, precision),
        digest=fingerprint(matcher, like=base),
        precision=precision,
        dimension=matcher.dimension,
        tower_names=matcher.tower_names,
        inputs={name: _describe_input(matcher.tower(name).encoder.spec) for name in matcher.towers},
        preprocessing={name: matcher.tower(name).encoder.describe_preprocessing() for name in matcher.towers},
        config=without_local_paths({key: part for key, part in config.items() if key not in LOCAL_SECTIONS}),
    )


def _describe_input(spec: InputSpec | tuple[InputSpec, ...]) -> str:
    if isinstance(spec, tuple):
        return "; ".join(map(_describe_input, spec))
    if isinstance(spec, TextSpec):
        return f"text, {spec.max_length} tokens at most"
    return f"image, {spec.size[0]} x {spec.size[1]} pixels"


def write_facts(folder: Path, facts: ExportFacts) -> None:
    """Write config.json and the fingerprint."""
    (folder / EXPORT_FACTS).write_text(json.dumps(asdict(facts), indent=2, ensure_ascii=False), "utf-8")
    (folder / EXPORT_FINGERPRINT).write_text(f"{facts.fingerprint}\n")


def read_facts(folder: Path) -> ExportFacts:
    """Read config.json.

    Raises:
        ValueError: no export, damaged, of another format, or it names code that is not trusted.
    """
    validate_export(folder)
    path = validate_inside(folder, folder / EXPORT_FACTS)
    with errors_as_damaged_file(path):
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"export format {content['format']}, this code reads {FORMAT}")
        facts = ExportFacts(**{**content, "tower_names": tuple(content["tower_names"])})
        validate_precision(facts.precision)
        parts = facts.inputs, facts.preprocessing, facts.onnx, *getattr(facts.onnx, "values", list)()
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("inputs, preprocessing and onnx must be mappings by tower")
        if not {"model", "data", "callbacks"} <= facts.config.keys():
            raise ValueError("the config lacks model, data or callbacks")
        parse_galleries(facts.galleries)
    facts = replace(facts, config=validate_config(facts.config, path))
    written = _read_text(validate_inside(folder, folder / EXPORT_FINGERPRINT)).strip()
    if not written == facts.fingerprint == quantized_fingerprint(base_fingerprint(facts.fingerprint), facts.precision):
        raise ValueError(
            f"{folder / EXPORT_FINGERPRINT}: fingerprint {plain(written, 40)}, {EXPORT_FACTS} says "
            f"{facts.fingerprint}: it was changed"
        )
    return facts


def read_matcher(folder: Path, facts: ExportFacts) -> Matcher:
    """Rebuild the matcher with the weights of the folder, in evaluation mode on the CPU.

    Raises:
        ValueError: damaged, or changed weights or preprocessing; names both fingerprints.
    """
    assets = _read_assets(folder, list(facts.preprocessing))
    with errors_as_value_error(folder / EXPORT_FACTS):
        matcher = build_matcher(facts.config, assets=assets)
    for name in matcher.towers:
        found, written = matcher.tower(name).encoder.describe_preprocessing(), facts.preprocessing.get(name)
        if found != written:
            raise ValueError(f"{folder / name}: preprocessing {found}, {EXPORT_FACTS} says {written}: it was changed")
    made: dict[str, Any] = {"dimension": matcher.dimension, "tower_names": tuple(matcher.tower_names)}
    for key, value in made.items():
        if getattr(facts, key) != value:
            raise ValueError(f"{folder / EXPORT_FACTS}: {key}={getattr(facts, key)}, its config makes {value}")
    path = validate_inside(folder, folder / WEIGHTS_FILE)
    with errors_as_damaged_file(path):
        stored = dequantize_state(load_file(path))
    load_strictly(matcher, stored, folder / WEIGHTS_FILE)
    if (found := fingerprint(matcher, like=str(facts.digest))) != facts.digest:
        raise ValueError(f"{folder}: fingerprint {found}, {EXPORT_FACTS} says {facts.digest}: it was changed")
    return matcher.eval()


def _read_assets(folder: Path, towers: Sequence[str]) -> dict[str, dict[str, str]]:
    assets: dict[str, dict[str, str]] = {}
    for tower in towers:
        if not tower.isidentifier():  # a name from an untrusted file must not lead out of the folder
            raise ValueError(f"{folder / EXPORT_FACTS}: {tower!r} cannot be the name of a tower")
        paths = sorted((folder / tower).iterdir()) if (folder / tower).is_dir() else []
        assets[tower] = {path.name: _read_text(validate_inside(folder, path)) for path in paths if not path.is_dir()}
    return validate_assets(assets, folder)


def _read_text(path: Path) -> str:
    with errors_as_damaged_file(path):
        return path.read_text("utf-8")


def without_local_paths(value: Any) -> Any:
    """Cut every absolute path in a config to its last part: an export reveals nothing of the machine it was made on."""
    if isinstance(value, Mapping):
        return {key: without_local_paths(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_local_paths(part) for part in value]
    match = re.fullmatch(r"([a-z-]+:)?(/(?!/)|~).*?([^/]+)/?", value) if isinstance(value, str) else None
    return f"{match[1] or ''}{match[3]}" if match else value
