"""The metric by which a run chooses its best checkpoint (`monitor`): whether it exists, and what to give if not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.metric_names import parse_key, sampled_name, whole_name
from mim_lightning.metrics.directions import counts_row
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import AnyOf, Direction, Sample, fields_of


class MonitoredMetric:
    """A metric of one direction on the validation split.

    Args:
        key: "val/image_to_image/hit@1".
        directions: names of those that are evaluated.

    Raises:
        ValueError: the key is of none of them.
    """

    def __init__(self, key: str, directions: Collection[str]) -> None:
        starts = [f"val/{direction}/" for direction in directions]
        if not key.startswith(tuple(starts)):
            raise ValueError(f"monitor={key}: is no metric of a direction; they start with {' or '.join(starts)}")
        self.key = parse_key(key)

    def __str__(self) -> str:
        return str(self.key)

    def validate_sample(self, num_distractors: int | None) -> None:
        """Raise if the metric is named for another gallery than the one that is ranked."""
        named = sampled_name(whole_name(self.key.metric), num_distractors)
        if named != self.key.metric:
            size = "null" if num_distractors is None else num_distractors
            raise ValueError(
                f"monitor={self}: is no metric of callbacks.retrieval_eval.num_distractors={size}; give "
                f"monitor={self.key._replace(metric=named)}"
            )

    def validate_counts(self, queries: ShardSet, directions: Mapping[str, Direction], matcher: Matcher) -> None:
        """Raise before anything is embedded if the direction counts no query of the evaluated split."""
        counting: dict[str, None] = {}
        for number in range(len(queries)):
            (sample,) = queries.read_few([number])
            inputs = _inputs_of(sample, matcher)
            counting |= {
                name: None
                for name, direction in directions.items()
                if counts_row(direction, inputs, matcher.fusions, matcher.fields)
            }
            if self.key.direction in counting:
                return
        raise ValueError(
            f"monitor={self}: {self.key.direction} counts no query of {queries.folder}; "
            + self._advise([name for name in directions if name in counting])
        )

    def explain_absence(
        self, scalars: Collection[str], empty: Mapping[str, str], countable: Sequence[str]
    ) -> ValueError:
        """Return the error of a pass without the metric.

        Args:
            scalars: keys of the pass.
            empty: directions without a query, and why.
            countable: directions with one.
        """
        direction = self.key.direction
        if direction in empty:
            return ValueError(f"{empty[direction]}; {self._advise(countable)}")
        choices = sorted(key for key in scalars if key.startswith(f"val/{direction}/"))
        return ValueError(f"monitor={self}: is no metric; there are {', '.join(choices)}")

    def _advise(self, countable: Sequence[str]) -> str:
        choices = " or ".join(f"monitor={self.key._replace(direction=name)}" for name in countable)
        return f"give {choices}" if choices else "no other direction of the model counts one either"


def _inputs_of(sample: Sample, matcher: Matcher) -> set[str]:
    """Return the fields that a sample has, and the towers that it has inputs for."""
    present = sample.inputs.keys()
    return {*present} | {
        tower
        for tower, spec in matcher.input_specs().items()
        if (present & spec.keys() if isinstance(spec, AnyOf) else fields_of(tower, spec).keys() <= present)
    }


def validate_monitors(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """Raise for a callback whose metric is never logged; before training, as far as metric names are known."""
    known = {*scalars, *trainer.callback_metrics}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or monitor in known or trainer.state.fn != TrainerFn.FITTING:
            continue
        if trainer.sanity_checking and monitor.startswith("train/"):
            continue
        close = get_close_matches(monitor, known, 3) or [name for name in scalars if name.endswith("hit@1")]
        raise ValueError(
            f"callbacks: {type(callback).__name__} monitors '{monitor}', which is no metric; "
            f"there are {', '.join(close)} and more in the CSV file of a run"
        )
