"""python -m mim_lightning.evaluate checkpoint=<path> [data=...]: retrieval metrics of a checkpoint.

    python -m mim_lightning.evaluate encoder=clip_vit_b32 model=3tower data=<your set>     untrained

Model, directions and, unless `data` is given, data come from the config in the checkpoint: the results are those of the
training run. Without a checkpoint they come from the command line. `trainer.devices` and launchers such as torchrun and
srun divide the rows among processes; the results are those of one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.cli import run_entry_point
from mim_lightning.config import build, build_preparation
from mim_lightning.expected_types import validate_arguments, validate_type
from mim_lightning.launch import hand_back, is_launched, launch, num_processes_to_launch, set_up_process
from mim_lightning.run import Run
from mim_lightning.stored_config import data_of, data_versions_of
from mim_lightning.training import load_model

if TYPE_CHECKING:
    from mim_lightning.model.checkpoint import TrainedMatcher

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
    from mim_lightning.lit.evaluation import evaluate_module, flatten, save_evaluation
    from mim_lightning.lit.module import MatchModule
    from mim_lightning.lit.trainer import keep_batches, validate_trainer
    from mim_lightning.model.fingerprint import fingerprint
    from mim_lightning.model.sharding import is_sharded
    from mim_lightning.types import whole_name

    silence_lightning()
    validate_trainer(config["trainer"], is_training=False)
    if num_processes := num_processes_to_launch(config["trainer"]):
        _prepare(config)
        return dict(launch("mim_lightning.evaluate", config, num_processes))
    set_up_process(config, config["trainer"]["accelerator"])
    model = load_model(config)
    matcher, trained, data = model.matcher, model.config, _data_of(config, model)
    # without data of its own, an evaluation repeats that of the run: in the versions that the run read
    versions = None if config.get("data") else {"main": 1, **data_versions_of(trained)}
    # the process that launched this one has prepared the data
    built = {**data, "source": None} if is_launched() else data
    datamodule = build(built, specs=matcher.input_specs(), versions=versions)
    datamodule.as_one_process = True
    directions = {**(trained.get("directions") or {}), **(config["directions"] or {})}
    changed = {"directions": directions, "monitor": config["monitor"] or trained.get("monitor")}
    evaluation = trained["callbacks"].get("retrieval_eval")
    if evaluation is None:
        raise ValueError(f"{config['checkpoint']}: callbacks.retrieval_eval: is missing, nothing is evaluated")
    if config["whole_gallery"]:
        evaluation = {**evaluation, "num_distractors": None}
        changed["monitor"] = whole_name(str(changed["monitor"]))
    precision = config["trainer"]["precision"]
    as_trained = (trained.get("trainer") or {}).get("precision") if precision == "auto" else precision
    options = {**config["trainer"], "precision": as_trained}
    trainer = build(options, callbacks=[build({**evaluation, **changed}), ProgressBar()], logger=False)
    keep_batches(trainer)
    reports = evaluate_module(trainer, MatchModule(matcher), datamodule)
    results = flatten(reports, datamodule)
    # every process brings its part of sharded weights
    found = fingerprint(matcher, like=model.fingerprint) if config["output"] and is_sharded(matcher) else None
    if not trainer.is_global_zero:
        return results
    print_run(f"{config['checkpoint'] or trained['run']['id']} ({model.fingerprint})", results)
    if config["output"]:
        folder, run_config = Path(config["output"]), {**trained, **changed, "data": data}
        run_config["callbacks"] = {**trained["callbacks"], "retrieval_eval": evaluation}
        save_evaluation(trainer, matcher, datamodule, run_config, folder, model.fingerprint, found)
        Run(trained["run"]["id"], folder).write_results(results)
        print(f"results, record and image of hits: {folder}")
    hand_back(results)
    return results


def _data_of(config: dict[str, Any], model: TrainedMatcher) -> dict[str, Any]:
    """Return the config of the data to evaluate on."""
    from mim_lightning.lit.datamodule import MatchDataModule

    data = config.get("data") or data_of(model.config, config["checkpoint"])
    validate_arguments(MatchDataModule, data, "data" if config.get("data") else f"{config['checkpoint']}: data")
    return {**data, "val_split": config["split"] or data["val_split"]}


def _prepare(config: dict[str, Any]) -> None:
    """Prepare the data for processes to launch, which would not wait for hours, and let go of the model."""
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import prepare_data
    from mim_lightning.types import specs_by_field

    model = load_model(config)
    data = _data_of(config, model)
    specs = specs_by_field(model.matcher.input_specs())
    prepare_data(build_preparation(data), write_validation_report, specs=specs, needed=(data["val_split"],))


if __name__ == "__main__":
    main()
