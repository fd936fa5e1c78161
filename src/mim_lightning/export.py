"""python -m mim_lightning.export checkpoint=<path> output=<folder> [onnx=true] [precision=int8] [push=<user>/<repo>]

A checkpoint as one folder for inference: safetensors, preprocessing, tokenisers, fingerprint, a card. Rounded weights
are measured against the float32 ones on the validation split, where the data are at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.cli import run_door
from mim_lightning.config import build
from mim_lightning.expected_types import refuse_mistyped
from mim_lightning.stored_config import data_of

if TYPE_CHECKING:
    from mim_lightning.inference.export import Measuring
    from mim_lightning.model.matcher import Matcher

FREE_TEXTS = ("checkpoint", "output", "evaluation")


def main() -> None:
    run_door("export", export, FREE_TEXTS)


def export(config: dict[str, Any]) -> Path:
    """Write the folder, push it if asked to, and return its path."""
    from mim_lightning.inference.export import export_model, refuse_foreign_folder
    from mim_lightning.inference.hub import check_repo, push
    from mim_lightning.inference.model_card import find_evaluation
    from mim_lightning.model.checkpoint import load_matcher

    checkpoint, output, repo = Path(config["checkpoint"]), Path(config["output"]), config["push"]
    refuse_foreign_folder(output)
    if repo:
        check_repo(repo, f"push={repo}")
    loaded = load_matcher(checkpoint)
    evaluation = find_evaluation(
        checkpoint, Path(config["evaluation"]) if config["evaluation"] else None, loaded.fingerprint
    )
    options = {key: config[key] for key in ("precision", "onnx", "device")}
    named = config.get("data")
    measuring = _measuring(named, None if named else data_of(loaded.config, checkpoint), loaded.matcher, checkpoint)
    facts, losses = export_model(loaded, output, measuring, evaluation, **options)
    print(f"{output}: model {facts.fingerprint}, {facts.dimension} dimensions, {facts.precision}")
    if losses is not None:
        for direction, metrics in losses.recall.items():
            changes = ", ".join(f"{name} {before:.3f} -> {after:.3f}" for name, (before, after, _) in metrics.items())
            print(f"  {direction}: {changes}")
    for part in facts.onnx.values():
        print(f"  {part['file']}: smallest cosine to PyTorch {part['min_cosine']:.6f}")
    if repo:
        print(f"pushed: {push(output, repo, config['private'])}")
    return output


def _measuring(
    named: dict[str, Any] | None, trained: dict[str, Any] | None, matcher: Matcher, checkpoint: Path
) -> Measuring:
    """Return the batches of `named` data, or of the checkpoint's own if they are still where they were."""
    from mim_lightning.inference.export import Measuring
    from mim_lightning.lit.datamodule import MatchDataModule

    data = named or trained or {}
    refuse_mistyped(MatchDataModule, data, "data" if named else f"{checkpoint}: data")
    datamodule = build({**data, "distractors": None}, specs=matcher.input_specs())
    if named:
        datamodule.prepare_data()
        return Measuring(datamodule.val_dataloader())
    try:
        _ = datamodule.opened.catalog
    except ValueError:
        return Measuring(None, f"the data of its training ({data['name']}) were not at hand")
    return Measuring(datamodule.val_dataloader())


if __name__ == "__main__":
    main()
