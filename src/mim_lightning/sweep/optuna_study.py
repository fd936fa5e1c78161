"""The study of a search: what is known of its trials, in a storage that a sweep and its jobs share.

Storage and name come in, Optuna's study goes out; `sweep.search` asks it for trials, `lit.callbacks.pruning` reports
to it from within a job.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import Trial


def open_study(storage: str, name: str, sampler: Any = None, pruner: Any = None) -> Study:
    """Open a study that maximises one number, or begin it.

    Args:
        storage: a database's URL ("sqlite:///...", "postgresql://..."), or the path of a journal file, which needs
            no locks of the file system's and so may lie on a network's.
        name: of the study; a storage holds any number.
        sampler, pruner: Optuna's; None for its own choice of sampler, and for no pruning.

    Raises:
        ValueError: the storage cannot be opened.
    """
    import optuna  # late: an extra, and seconds

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
    except Exception as error:  # every database has exceptions of its own
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"hydra.sweeper.storage={storage}: {type(error).__name__}: {reason}") from error


def open_trial(study: Study, number: int) -> Trial:
    """Return a trial that is under way, to report to it or to go on with it."""
    from optuna.trial import Trial

    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def count_ended(study: Study) -> int:
    """Return how many trials have finished or were pruned."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False))


def _open_storage(storage: str) -> BaseStorage | str:
    if "://" in storage:
        return storage
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def mend_journal(storage: str) -> None:
    """Cut off the line that a killed process left half written; Optuna would refuse all that follows.

    Called by the one process that owns the sweep, before any other writes.
    """
    path = Path(storage)
    if "://" in storage or not path.is_file():
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
