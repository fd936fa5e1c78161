"""Towers in ONNX: encoder, projection and unit length in one file per tower; needs the extra `onnx`."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_lightning.inference.quantization_loss import Batches
from mim_lightning.inference.tower_encoder import TowerEncoder
from mim_lightning.io.file_name import validate_inside
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from mim_lightning.types import FieldInput, InputSpec, TextSpec, TowerInput, TowerSpec, map_tensors

EXTRA = "pip install 'mim-lightning[onnx]'"
FOLDER = "onnx"
MIN_COSINE = 0.999  # to PyTorch's embedding of the same input; below it the export fails
NUM_SAMPLES = 32  # inputs that a tower is compared on
IMAGES = "images"  # name of the only input of an image tower


@dataclass(frozen=True)
class OnnxFacts:
    """One ONNX file, and how far its embeddings are from PyTorch's."""

    file: str  # in the export folder
    digest: str
    inputs: tuple[str, ...]
    num_samples: int
    max_abs_difference: float
    min_cosine: float


@dataclass(frozen=True)
class OnnxTower:
    """A tower in ONNX Runtime; safe to call from many threads."""

    session: Any
    spec: TowerSpec

    def __call__(self, inputs: TowerInput) -> Tensor:
        """Return (n, D) float32 vectors of unit length."""
        assert not isinstance(inputs, tuple)
        tensors = inputs if isinstance(inputs, dict) else {IMAGES: inputs}
        wanted = {part.name: tensors[part.name].numpy() for part in self.session.get_inputs()}
        return torch.from_numpy(self.session.run(None, wanted)[0])


def export_towers(matcher: Matcher, folder: Path, samples: Mapping[str, TowerInput]) -> dict[str, dict[str, Any]]:
    """Write `onnx/<tower>.onnx` for every tower that owns weights, and compare each with PyTorch on its samples.

    Args:
        matcher: float32, on the CPU, in evaluation mode.
        folder: of the export.
        samples: prepared inputs by tower that owns weights.

    Raises:
        ValueError: the extra is missing, a tower cannot be exported, or its embeddings differ.
        OSError: a file cannot be written; names it.
    """
    _require_extra()
    (folder / FOLDER).mkdir()
    return {name: asdict(_export(matcher.tower(name), name, folder, samples[name])) for name in matcher.towers}


def sample_inputs(
    specs: Mapping[str, InputSpec | tuple[InputSpec, ...]], batches: Batches | None
) -> dict[str, TowerInput]:
    """Return a few inputs of each tower: the first of the data, or noise and made-up words without any."""
    found: dict[str, TowerInput] = {}
    for loader in batches or ():
        inputs = next(iter(loader)).inputs
        found |= {name: map_tensors(inputs[name], lambda part: part[:NUM_SAMPLES]) for name in inputs.keys() & specs}
    return {name: found[name] if name in found else _made_up(spec) for name, spec in specs.items()}


def _made_up(spec: InputSpec | tuple[InputSpec, ...]) -> Any:
    if isinstance(spec, tuple):
        return tuple(map(_made_up, spec))
    if isinstance(spec, TextSpec):
        return spec.tokenize([" ".join(["red", "apple", "shop", "blue"][: 1 + n % 4]) for n in range(NUM_SAMPLES)])
    # from large color patches to fine noise: embeddings of noise alone are alike, and would prove little
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 3, 2 + 2 * n, 2 + 2 * n, generator=generator) for n in range(NUM_SAMPLES)]
    return torch.cat([F.interpolate(image, spec.size) for image in images]).mul(255).round().to(torch.uint8)


def open_towers(
    folder: Path, facts: Mapping[str, Mapping[str, Any]], owner_of: Mapping[str, str], specs: Mapping[str, TowerSpec]
) -> dict[str, TowerEncoder]:
    """Open the ONNX towers of an export, by tower name; tied towers share one.

    Raises:
        ValueError: there are none, the extra is missing, or a file was changed.
    """
    if not facts:
        raise ValueError(f"{folder}: holds no ONNX towers; export with onnx=true")
    _require_extra()
    if missing := set(owner_of.values()) - facts.keys():
        raise ValueError(f"{folder}: holds no ONNX tower of {min(missing)}; export with onnx=true")
    sessions = {owner: _open(folder, owner, facts[owner]) for owner in set(owner_of.values())}
    return {name: OnnxTower(sessions[owner], specs[name]) for name, owner in owner_of.items()}


class _ByPosition(nn.Module):
    """A tower with positional inputs: the exporter would flatten a dict in an order of its own."""

    def __init__(self, tower: Tower, names: tuple[str, ...]) -> None:
        super().__init__()
        self.tower, self.names = tower, names

    def forward(self, *tensors: Tensor) -> Tensor:
        is_text = isinstance(self.tower.encoder.spec, TextSpec)
        return self.tower(dict(zip(self.names, tensors, strict=True)) if is_text else tensors[0])


def _export(tower: Tower, name: str, folder: Path, samples: TowerInput) -> OnnxFacts:
    path = folder / FOLDER / f"{name}.onnx"
    spec = tower.encoder.spec
    if isinstance(spec, tuple):
        raise ValueError(f"onnx: tower '{name}' reads several fields together; towers over one field can be exported")
    assert not isinstance(samples, tuple)
    tensors, sizes = _traced_inputs(spec)
    try:
        with _silence():
            program = torch.onnx.export(
                _ByPosition(tower, tuple(tensors)).eval(),
                tuple(tensors.values()),
                dynamo=True,
                input_names=list(tensors),
                output_names=["embeddings"],
                dynamic_shapes=((sizes,) * len(tensors),),
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except Exception as error:  # torch.export and the exporter raise dozens of kinds
        if isinstance(error, OSError) and error.errno is not None:  # a full disk
            raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"onnx: tower '{name}' cannot be exported ({type(error).__name__}: {reason})") from error
    inputs = tuple(part.name for part in _session(path).get_inputs())
    num_samples = len(next(iter(samples.values())) if isinstance(samples, dict) else samples)
    difference, cosine = _compare(OnnxTower(_session(path), spec), tower, samples)
    if not cosine >= MIN_COSINE:  # nan too
        raise ValueError(f"onnx: tower '{name}' differs from PyTorch: smallest cosine {cosine:.5f} of {num_samples}")
    return OnnxFacts(f"{FOLDER}/{name}.onnx", _digest(path), inputs, num_samples, difference, cosine)


def _traced_inputs(spec: InputSpec) -> tuple[dict[str, Tensor], dict[int, Any]]:
    """Return inputs to trace a tower with, two rows because a size of one would become a constant.

    Also the dimensions that may vary: rows, and the length of texts unless the tokenizer fixes it.
    """
    free = torch.export.Dim.DYNAMIC
    if not isinstance(spec, TextSpec):
        return {IMAGES: torch.zeros(2, 3, *spec.size, dtype=torch.uint8)}, {0: free}
    texts = spec.tokenize(["a red apple on a table", "green"])
    shorter = spec.tokenize(["a red apple", "green"])
    is_free = any(texts[name].shape != shorter[name].shape for name in texts)
    return texts, {0: free, 1: free} if is_free else {0: free}


@torch.inference_mode()
def _compare(exported: OnnxTower, tower: Tower, samples: FieldInput) -> tuple[float, float]:
    """Return the largest difference and the smallest cosine, over all samples at once and the first one alone."""
    first = {name: part[:1] for name, part in samples.items()} if isinstance(samples, dict) else samples[:1]
    pairs = [(exported(inputs), tower(inputs)) for inputs in (samples, first)]
    differences = [(left - right).abs().max() for left, right in pairs]
    cosines = [torch.cosine_similarity(left, right).min() for left, right in pairs]
    return float(torch.stack(differences).max()), float(torch.stack(cosines).min())


def _open(folder: Path, owner: str, facts: Mapping[str, Any]) -> Any:
    path = folder / FOLDER / f"{owner}.onnx"
    if not path.is_file():
        raise ValueError(f"{path}: the ONNX tower is missing")
    for part in _parts(path):
        validate_inside(folder, part)
    found, written = _digest(path), str(facts.get("digest") if isinstance(facts, Mapping) else facts)
    if found != written:
        raise ValueError(f"{path}: digest {found[:16]}, config.json says {written[:16]}: it was changed")
    try:
        return _session(path)
    except Exception as error:  # ONNX Runtime raises a dozen kinds, one of them for missing weights
        raise ValueError(f"{path}: not readable by ONNX Runtime ({' '.join(str(error).split())[:200]})") from error


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _digest(path: Path) -> str:
    """Return the digest of an ONNX file and of the file with its weights, which a large model has beside it."""
    digest = hashlib.sha256()
    for part in _parts(path):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    return [part for part in (path, path.with_name(f"{path.name}.data")) if part.is_file()]


def _require_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ONNX: {error.name} is not installed; install the extra: {EXTRA}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Silence the exporter, whose notes are about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
