"""mim evaluate checkpoint=<path> [data=...]: retrieval metrics of a checkpoint.

    mim evaluate encoder=clip_vit_b32 model=3tower data=<your set>     untrained

Model, directions and, unless `data` is given, data come from the config in the checkpoint: the results are those of the
training run. Without a checkpoint they come from the command line. `trainer.devices` and launchers such as torchrun and
srun divide the rows among processes; vectors are those of one process, and on a CPU results too. On a GPU results may
differ where two scores differ by rounding alone. With `output`, an evaluation that was interrupted goes on with what it
had embedded, on any number of processes.

With `gallery_checkpoint` the products are embedded by that model: what the queries of this one find in the gallery, or
in an index, of a former model, beside the former's own. It is written into the checkpoint, which may search that
index from then on if it finds as much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mim_lightning.artifact_paths import validate_checkpoint
from mim_lightning.callable_module import make_callable
from mim_lightning.checkpoint_evaluation import evaluate_checkpoint, prepare_evaluation, validate_untrained
from mim_lightning.cli import given_arguments, run_entry_point
from mim_lightning.expected_types import validate_type
from mim_lightning.interruption import Interruption
from mim_lightning.launch import hand_back, is_launched, launch, num_processes_to_launch
from mim_lightning.next_command import folder_beside, print_next

VERBATIM_KEYS = ("checkpoint", "gallery_checkpoint", "output")
TEXT = str | None
KINDS: dict[str, Any] = {
    **dict.fromkeys(("checkpoint", "gallery_checkpoint", "split", "output", "monitor"), TEXT),
    "directions": dict | None,
    "embed_dim": int | None,
    "reuse_memory": bool,
    "save_interval": float | None,
    "whole_gallery": bool,
}


def main() -> None:
    run_entry_point("evaluate", evaluate, VERBATIM_KEYS)


def evaluate(config: dict[str, Any]) -> dict[str, float]:
    """Print a table, write results, record and image of hits into `output` if given, and return the flat results."""
    for key, kind in KINDS.items():
        validate_type(key, config[key], kind)
    # a folder such as 2024 is a number on the command line
    texts = {key: str(config[key]) for key, kind in KINDS.items() if kind == TEXT and config[key] is not None}
    config = {**config, **texts}
    if config["output"] and (Path(config["output"]) / "config.yaml").is_file():
        raise ValueError(f"output={config['output']}: is a run's own folder; give another one")
    for key in ("checkpoint", "gallery_checkpoint"):
        if config[key]:
            validate_checkpoint(config[key])
    if not config["checkpoint"]:
        validate_untrained(config)
    from mim_lightning.lit.console import silence_lightning
    from mim_lightning.lit.results_table import print_run
    from mim_lightning.lit.trainer import validate_trainer

    silence_lightning()
    validate_trainer(config["trainer"], is_training=False)
    try:
        if num_processes := num_processes_to_launch(config["trainer"]):
            prepare_evaluation(config)
            results = dict(launch("mim_lightning.evaluate", config, num_processes))
            _print_next(config)
            return results
        evaluation = evaluate_checkpoint(config)
        if evaluation.is_first:
            print_run(evaluation.title, evaluation.results)
            if config["output"]:
                evaluation.save(folder := Path(config["output"]))
                print(f"results, record and image of hits: {folder}")
            for line in evaluation.record_gallery():
                print(line)
            hand_back(evaluation.results)
            if not is_launched():
                _print_next(config)
    except Interruption as stopped:
        stopped.resumes = bool(config["output"]) and config["save_interval"] is not None
        raise
    return evaluation.results


def _print_next(config: dict[str, Any]) -> None:
    """Print the command that indexes the evaluated data, or that trains the model which was not trained."""
    if not config["checkpoint"]:
        print_next("train", *given_arguments("encoder", "model", "embed_dim", "data", "paths", "trainer", "seed"))
    elif config["gallery_checkpoint"] is None:  # else the last line says which index the model may search
        place = f"checkpoint={config['checkpoint']}", f"output={folder_beside(config['checkpoint'], 'index')}"
        print_next("build_index", *place, *given_arguments("data", "paths"))


make_callable(__name__, evaluate, VERBATIM_KEYS)

if __name__ == "__main__":
    main()
