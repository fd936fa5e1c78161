"""The Optuna study of a sweep: its trials, in a storage that the sweep and its jobs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import Trial


def open_study(storage: str, name: str, sampler: Any = None, pruner: Any = None) -> Study:
    """Open or create a study that maximizes one number.

    Args:
        storage: a database's URL ("sqlite:///...", "postgresql://..."), or the path of a journal file, which needs no
            locks of the file system and so may be on a network.
        name: of the study; a storage holds any number.
        sampler: Optuna's; None for its default.
        pruner: Optuna's; None for no pruning.

    Raises:
        ValueError: the storage cannot be opened.
    """
    import optuna  # here: an extra, and takes seconds

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            storage=_open_storage(storage),
            study_name=name,
            sampler=sampler,
            pruner=pruner or optuna.pruners.NopPruner(),
            direction="maximize",
            load_if_exists=True,
        )
    except Exception as error:  # every database has its own exceptions
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"hydra.sweeper.storage={storage}: {type(error).__name__}: {reason}") from error


def open_trial(study: Study, number: int) -> Trial:
    """Return a trial that has not ended, to report to it or to resume it."""
    from optuna.trial import Trial

    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def count_ended(study: Study) -> int:
    """Return how many trials have finished or were pruned."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False))


def truncate_partial_line(storage: str) -> None:
    """Remove the last line of a journal if a killed process left it incomplete: Optuna would read nothing after it.

    To be called by the process that has locked the sweep, before any other writes.
    """
    path = Path(storage)
    if "://" in storage or not path.is_file():
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _open_storage(storage: str) -> BaseStorage | str:
    if "://" in storage:
        return storage
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))
