"""A checkpoint as one folder for inference, written aside and renamed: whole or not there at all.

A checkpoint's path and what is asked for come in, the finished folder goes out; the export door calls it, and gives
the batches of an evaluation where the data are at hand.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from mim_lightning.inference.export_format import (
    CARD_FILE,
    FolderFacts,
    is_export,
    read_facts,
    read_matcher,
    write_facts,
    write_model,
)
from mim_lightning.inference.loading import OpenedMatcher, choose_device, encoders_of, round_matcher
from mim_lightning.inference.model_card import Evaluation, write_card
from mim_lightning.inference.quantization import check_precision
from mim_lightning.inference.quantization_loss import NUM_SAMPLES, Batches, Losses, measure_losses, sample_inputs
from mim_lightning.io.atomic import atomic_write_folder
from mim_lightning.model.checkpoint import LoadedCheckpoint
from mim_lightning.types import Direction


@dataclass(frozen=True)
class Measuring:
    """What a rounded model and ONNX towers are measured on: batches of queries and gallery, or why there are none."""

    batches: Batches | None
    why_none: str = ""


def export_model(
    loaded: LoadedCheckpoint,
    output: Path,
    measuring: Measuring,
    evaluation: Evaluation | None = None,
    precision: str = "float32",
    onnx: bool = False,
    device: str = "auto",
) -> tuple[FolderFacts, Losses | None]:
    """Write the export folder of a checkpoint, and return its facts and what rounding lost.

    Args:
        loaded: the checkpoint; its matcher is left with rounded weights.
        output: the folder; an earlier export is replaced.
        measuring: for what rounding costs, and for real inputs of ONNX towers.
        evaluation: of this checkpoint, for the card.
        precision: of the weights.
        onnx: whether ONNX towers are written too.
        device: that losses are measured on.

    Raises:
        ValueError: a folder that holds something else, or an ONNX tower that differs from PyTorch's.
    """
    check_precision(precision)
    refuse_foreign_folder(output)
    losses = _measure(loaded, measuring, precision, device)
    with atomic_write_folder(output) as partial:
        facts, matcher = write_model(partial, loaded.matcher, loaded.config, precision)
        if onnx:
            from mim_lightning.inference.onnx import export_towers

            specs = {name: matcher.tower(name).encoder.spec for name in matcher.towers}
            facts = replace(facts, onnx=export_towers(matcher, partial, sample_inputs(specs, measuring.batches)))
        write_facts(partial, facts)
        checked_on = f"the first {NUM_SAMPLES} of the data" if measuring.batches else "noise and made-up words"
        card = write_card(facts, evaluation, losses, measuring.why_none, checked_on)
        (partial / CARD_FILE).write_text(card, "utf-8")
        read_matcher(partial, read_facts(partial))  # what cannot be read again is no export
    return facts, losses


def refuse_foreign_folder(folder: Path) -> None:
    """Raise a ValueError unless the folder is new, empty, or an earlier export."""
    if folder.exists() and not (folder.is_dir() and (is_export(folder) or not any(folder.iterdir()))):
        raise ValueError(f"output={folder}: exists and is no export; give an empty or new folder")


def _measure(loaded: LoadedCheckpoint, measuring: Measuring, precision: str, device: str) -> Losses | None:
    if precision == "float32" or not measuring.batches:
        return None
    opened = OpenedMatcher(deepcopy(loaded.matcher), loaded.config, loaded.fingerprint, "float32")
    target = choose_device(device)
    rounded = encoders_of(round_matcher(replace(opened, matcher=deepcopy(loaded.matcher)), precision, "export"), target)
    original = encoders_of(opened, target)
    directions = {name: Direction(**ends) for name, ends in loaded.config["directions"].items() if ends is not None}
    return measure_losses(original.encoders, rounded.encoders, measuring.batches, directions, original.fusions)
