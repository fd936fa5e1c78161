"""mim train: train a model, and evaluate its best checkpoint.

    mim train model=4tower trainer.devices=8
    mim train -m model=2tower,3tower,4tower seed=1,2,3

Running it again resumes; a finished run returns its recorded result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from mim_lightning.artifact_paths import validate_checkpoint
from mim_lightning.callable_module import make_callable
from mim_lightning.cli import command_line, given_arguments, is_job_of_sweep, run_entry_point
from mim_lightning.errors import to_error_report, write_note
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.io.locks import lock_and_announce
from mim_lightning.launch import choose_precision, is_first_rank, is_joined, is_launched
from mim_lightning.next_command import print_next
from mim_lightning.prepared_versions import describe_newer_versions
from mim_lightning.run import Run, identify
from mim_lightning.train_validation import parse_max_time, validate_kinds, validate_row_weights, validate_writable
from mim_lightning.training import fit, start


def main() -> None:
    run_entry_point("train", train, resumes=True)


def train(config: dict[str, Any]) -> float:
    """Train one run, or read its results if it is finished; return its monitored metric."""
    # what torchrun or srun started goes on by the command that starts all of its processes
    if not is_joined() and (command := command_line("train")) is not None:
        config["run"]["command"] = command
    return (train_run(config).read_results() or {}).get(config["monitor"], float("nan"))


def train_run(config: dict[str, Any]) -> Run:
    """Train one run, or read its results if it is finished; print them and return the run."""
    validate_kinds(config)
    validate_row_weights(config)
    run, config, description = identify(config)
    max_time = config["trainer"].get("max_time")
    parse_max_time(max_time)
    is_new = not run.is_finished(max_time)
    if is_new:
        validate_writable(run.folder)
        if config["init_from"] and not run.last_checkpoint.exists() and not run.best_checkpoint.exists():
            validate_checkpoint(config["init_from"])
    decides_in_fit = is_joined()  # with the others of its launcher, which read the results at other times
    if is_new or decides_in_fit:
        config["trainer"]["precision"] = choose_precision(config["trainer"])  # recorded for evaluation
    if is_new and is_first_rank() and not is_launched():
        with lock_and_announce(run.lock_path, run.run_id):
            is_new = not run.is_finished(max_time)  # another process may have finished it meanwhile
            if is_new or decides_in_fit:
                with _noted_failure(run):
                    start(config, run, description)
    elif is_new or decides_in_fit:
        fit(config, run, description)  # another process of this run has its lock
    results = run.read_results() or {}
    if results and is_first_rank() and not is_launched():
        from mim_lightning.lit.results_table import describe_decline, print_run

        print_run(run.run_id, results)
        print(f"{'results' if is_new else 'run was finished before; results'}: {run.folder}")
        if not is_new and (newer := describe_newer_versions(run, config["data"])):
            print(newer)
        if decline := describe_decline(results, config["monitor"]):
            print(f"warning: {decline}")
    if is_first_rank() and not is_launched() and not is_job_of_sweep():
        _print_next(run, results, config)
    return run


def _print_next(run: Run, results: Mapping[str, float], config: Mapping[str, Any]) -> None:
    from mim_lightning.lit.results_table import is_of_sample

    checkpoint = f"checkpoint={run.checkpoint(config['results_from'])}"
    if not results:  # of trainer.fast_dev_run
        print_next("train", *(word for word in given_arguments() if "trainer.fast_dev_run=" not in word))
    elif STOPPED_AFTER in results:
        limited = (word for word in given_arguments() if "trainer.max_time=" not in word)
        print_next("train", *limited, "trainer.max_time=null")
    elif is_of_sample(results):
        print_next("evaluate", checkpoint, "whole_gallery=true", f"output={run.folder / 'whole_gallery'}")
    else:
        print_next("build_index", checkpoint, f"output={run.folder / 'index'}")


@contextmanager
def _noted_failure(run: Run) -> Iterator[None]:
    """Note in the run's folder why it failed, for `mim runs`; what failed before it began leaves none."""
    try:
        yield
    except Exception as error:
        if run.config_path.exists():
            with suppress(OSError):
                write_note(run.folder, to_error_report(error, "train"))
        raise


make_callable(__name__, train_run)

if __name__ == "__main__":
    main()
