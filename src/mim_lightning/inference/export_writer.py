"""Writing a checkpoint as an export folder: aside, read back, and renamed into place whole."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from mim_lightning.artifact_paths import is_export, is_for_sentence_transformers
from mim_lightning.inference.export_format import (
    CARD_FILE,
    ExportFacts,
    read_facts,
    read_matcher,
    write_facts,
    write_model,
)
from mim_lightning.inference.loading import choose_device, quantize, to_device
from mim_lightning.inference.model_card import Evaluation, Terms, write_card
from mim_lightning.inference.quantization import validate_precision
from mim_lightning.inference.quantization_loss import Batches, QuantizationLoss, measure_loss
from mim_lightning.io.atomic import atomic_write_folder
from mim_lightning.model.checkpoint import TrainedMatcher
from mim_lightning.model.compatibility import describe_galleries
from mim_lightning.types import Direction


@dataclass(frozen=True)
class ReferenceData:
    """What rounded weights and ONNX towers are measured on: batches of queries and gallery, or why there are none."""

    batches: Batches | None
    why_none: str = ""


def export_model(
    trained: TrainedMatcher,
    output: Path,
    data: ReferenceData,
    evaluation: Evaluation | None = None,
    terms: Terms | None = None,
    precision: str = "float32",
    onnx: bool = False,
    device: str = "auto",
) -> tuple[ExportFacts, QuantizationLoss | None]:
    """Write the export folder of a checkpoint, and return its facts and what rounding costs.

    Args:
        trained: the checkpoint; its matcher is left with merged and rounded weights.
        output: the folder; an earlier export is replaced.
        data: to measure what rounding costs, and to compare ONNX towers on.
        evaluation: of this checkpoint, for the card.
        terms: of use, for the card.
        precision: of the weights.
        onnx: whether to write ONNX towers too.
        device: to measure on.

    Raises:
        ValueError: a folder of something else, or an ONNX tower that differs from PyTorch's.
    """
    validate_precision(precision)
    validate_output(output)
    trained = trained.merged()
    loss = _measure(trained, data, precision, device)
    with atomic_write_folder(output) as partial:
        facts, matcher = write_model(partial, trained.matcher, trained.config, trained.fingerprint, precision)
        facts = replace(facts, galleries=describe_galleries(trained.galleries))
        compared_on = ""
        if onnx:
            from mim_lightning.inference.onnx import NUM_SAMPLES, export_towers, sample_inputs

            specs = {name: matcher.tower(name).encoder.spec for name in matcher.towers}
            facts = replace(facts, onnx=export_towers(matcher, partial, sample_inputs(specs, data.batches)))
            compared_on = f"the first {NUM_SAMPLES} of the data" if data.batches else "noise and made-up words"
        write_facts(partial, facts)
        card = write_card(facts, evaluation, loss, data.why_none, compared_on, terms or Terms())
        (partial / CARD_FILE).write_text(card, "utf-8")
        read_matcher(partial, read_facts(partial))  # an export that cannot be read again is none
    return facts, loss


def validate_output(folder: Path) -> None:
    """Raise a ValueError unless the folder is new, empty, or an earlier export."""
    is_ours = is_export(folder) or is_for_sentence_transformers(folder)
    if folder.exists() and not (folder.is_dir() and (is_ours or not any(folder.iterdir()))):
        raise ValueError(f"output={folder}: exists and is no export; give an empty or new folder")


def _measure(trained: TrainedMatcher, data: ReferenceData, precision: str, device: str) -> QuantizationLoss | None:
    if precision == "float32" or not data.batches:
        return None
    target = choose_device(device)
    copies = [replace(trained, matcher=deepcopy(trained.matcher)) for _ in range(2)]
    original, rounded = (to_device(each, target) for each in (copies[0], quantize(copies[1], precision, "export")))
    directions = {name: Direction(**ends) for name, ends in trained.config["directions"].items() if ends is not None}
    return measure_loss(original.encoders, rounded.encoders, data.batches, directions, original.fusions)
