"""python -m mim_lightning.evaluate checkpoint=<path> [data=...]: retrieval metrics of a checkpoint.

    python -m mim_lightning.evaluate encoder=clip_vit_b32 model=3tower data=<your set>     untrained

Model, directions and, unless `data` is given, data come from the config in the checkpoint: the results are those of the
training run. Without a checkpoint they come from the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mim_lightning.cli import run_entry_point
from mim_lightning.config import build
from mim_lightning.expected_types import validate_arguments, validate_type
from mim_lightning.launch import set_up_process
from mim_lightning.run import Run
from mim_lightning.stored_config import data_of, data_versions_of
from mim_lightning.training import load_model

TEXT = str | None
KINDS: dict[str, Any] = {
    **dict.fromkeys(("checkpoint", "split", "output", "monitor"), TEXT),
    "directions": dict | None,
    "embed_dim": int | None,
    "reuse_memory": bool,
    "whole_gallery": bool,
}


def main() -> None:
    run_entry_point("evaluate", evaluate)


def evaluate(config: dict[str, Any]) -> dict[str, float]:
    """Print a table, write results, record and image of hits into `output` if given, and return the flat results."""
    for key, kind in KINDS.items():
        validate_type(key, config[key], kind)
    # a folder such as 2024 is a number on the command line
    texts = {key: str(config[key]) for key, kind in KINDS.items() if kind == TEXT and config[key] is not None}
    config = {**config, **texts}
    if config["output"] and (Path(config["output"]) / "config.yaml").is_file():
        raise ValueError(f"output={config['output']}: is a run's own folder; give another one")
    from mim_lightning.lit.console import ProgressBar, print_run, silence_lightning
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.lit.evaluation import evaluate_module, flatten, save_evaluation
    from mim_lightning.lit.module import MatchModule
    from mim_lightning.lit.trainer import keep_batches, validate_trainer
    from mim_lightning.types import whole_name

    silence_lightning()
    validate_trainer(config["trainer"], is_training=False)
    set_up_process(config, config["trainer"]["accelerator"])
    model = load_model(config)
    matcher, trained = model.matcher, model.config
    data = config.get("data") or data_of(trained, config["checkpoint"])
    validate_arguments(MatchDataModule, data, "data" if config.get("data") else f"{config['checkpoint']}: data")
    data = {**data, "val_split": config["split"] or data["val_split"]}
    # without data of its own, an evaluation repeats that of the run: in the versions that the run read
    versions = None if config.get("data") else {"main": 1, **data_versions_of(trained)}
    datamodule = build(data, specs=matcher.input_specs(), versions=versions)
    if config["trainer"]["devices"] != 1:
        raise ValueError(f"trainer.devices={config['trainer']['devices']}: evaluation runs on one device")
    directions = {**(trained.get("directions") or {}), **(config["directions"] or {})}
    changed = {"directions": directions, "monitor": config["monitor"] or trained.get("monitor")}
    evaluation = trained["callbacks"].get("retrieval_eval")
    if evaluation is None:
        raise ValueError(f"{config['checkpoint']}: callbacks.retrieval_eval: is missing, nothing is evaluated")
    if config["whole_gallery"]:
        evaluation = {**evaluation, "num_distractors": None}
        changed["monitor"] = whole_name(changed["monitor"])
    precision = config["trainer"]["precision"]
    as_trained = (trained.get("trainer") or {}).get("precision") if precision == "auto" else precision
    options = {**config["trainer"], "precision": as_trained}
    trainer = build(options, callbacks=[build({**evaluation, **changed}), ProgressBar()], logger=False)
    keep_batches(trainer)
    reports = evaluate_module(trainer, MatchModule(matcher), datamodule)
    results = flatten(reports, datamodule)
    print_run(f"{config['checkpoint'] or trained['run']['id']} ({model.fingerprint})", results)
    if config["output"]:
        folder = Path(config["output"])
        run_config = {**trained, **changed, "data": data}
        save_evaluation(trainer, matcher, datamodule, run_config, folder, model.fingerprint)
        Run(trained["run"]["id"], folder).write_results(results)
        print(f"results, record and image of hits: {folder}")
    return results


if __name__ == "__main__":
    main()
