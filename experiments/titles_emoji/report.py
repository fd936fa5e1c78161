"""Make the record's tables from its runs: intervals over seeds and families, differences paired by query.

python -m experiments.titles_emoji.report experiments/titles_emoji <data/emoji> runs/titles_emoji/*

An arm is a model and a table of make_tables.py, "3tower photos-15"; runs without a result are left out. What the record
holds of other runs stays, so that seeds can be added one by one, and so do rows of arms whose scores it does not keep.
Writes what `KeptRuns` keeps, and

    table.md          image to image, an arm a row
    differences.md    of arms: all queries, with and without skin tones
    transfer.md       trained on one artist's photos, asked with the other's
    composed.md       photo, words and both, by kind of question
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.kept_runs import KeptRuns, QueryAnswers
from experiments.query_scores import QueryScores
from mim_lightning.analysis.record import read_record

PERCENTS = (5, 15, 100)
PHOTO, WORDS, BOTH = "image_to_asked_product", "text_to_product", "composed_to_product"
WITHOUT_SHOWN = "composed_to_other_product"
ARTISTS = ("fluent3d", "twemoji")
METRICS = ("hit@1", "hit@10", "mrr")
DIRECTIONS = ("image_to_image", PHOTO, WORDS, BOTH, WITHOUT_SHOWN)


class ArmRun(NamedTuple):
    """One run of the record."""

    arm: str
    seed: str


class Arms:
    """The runs of the record by arm."""

    def __init__(self, runs: KeptRuns[ArmRun], families: Mapping[str, str]) -> None:
        self._families, self._runs = families, defaultdict[str, dict[str, Mapping[str, QueryAnswers]]](dict)
        for run in sorted(runs.answers):
            self._runs[run.arm][run.seed] = runs.answers[run]

    def __contains__(self, arm: str) -> bool:
        return arm in self._runs

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def num_runs(self, arm: str) -> int:
        return len(self._runs[arm])

    def scores(self, arm: str, direction: str) -> QueryScores:
        return QueryScores.of([run[direction] for run in self._runs[arm].values()], self._families)

    def pair(self, after: str, before: str, direction: str) -> tuple[QueryScores, QueryScores, int] | None:
        """Return the scores of two arms with the seeds that both have, and how many these are; None without any."""
        after_runs, before_runs = self._runs.get(after, {}), self._runs.get(before, {})
        seeds = [seed for seed in after_runs if seed in before_runs]
        if not seeds:
            return None
        one, other = (
            QueryScores.of([runs[seed][direction] for seed in seeds], self._families)
            for runs in (after_runs, before_runs)
        )
        return one, other, len(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of the record")
    parser.add_argument("source", type=Path, help="data/emoji")
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    with (arguments.source / "products.csv").open(newline="", encoding="utf-8") as file:
        families = {row["product_id"]: row["family"] for row in csv.DictReader(file)}
    runs = KeptRuns(arguments.experiment, ArmRun, METRICS)
    for folder in arguments.runs:
        if (folder / "results.json").is_file():
            config = read_record(folder).facts.config
            arm = f"{config['model']['name']} {config['data']['name']}"
            runs.add(ArmRun(arm, str(config["seed"])), folder, DIRECTIONS)
    runs.write()
    arms = Arms(runs, families)
    tables: dict[str, Callable[[Arms], Iterator[str]]] = {
        "table.md": overview,
        "differences.md": differences,
        "transfer.md": transfer,
        "composed.md": composed,
    }
    for name, make in tables.items():
        head, rule, *lines = make(arms)
        if not lines:  # none of its arms: the table is of older runs
            continue
        lines += older_rows(arguments.experiment / name, head, lines)
        text = "\n".join([head, rule, *lines]) + "\n"
        (arguments.experiment / name).write_text(text)
        print(text)


def older_rows(path: Path, head: str, lines: Sequence[str]) -> list[str]:
    """Return the rows of a table of the same head whose arms are not in `lines`: scores of their runs were not kept."""
    table = path.read_text("utf-8").splitlines() if path.is_file() else []
    known = {line.split("|")[1] for line in lines}
    return [row for row in table[2:] if row.split("|")[1] not in known] if table[:1] == [head] else []


def overview(arms: Arms) -> Iterator[str]:
    yield "| arm | runs | hit@1 | hit@10 | mrr | hit@1 without tones | hit@1 of tones |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for arm in arms:
        found = arms.scores(arm, "image_to_image")
        cells = [found.interval(metric) for metric in METRICS]
        cells += [found.where(toned=label).interval("hit@1") for label in ("no", "yes")]
        yield f"| {arm} | {arms.num_runs(arm)} | {' | '.join(cells)} |"


def differences(arms: Arms) -> Iterator[str]:
    pairs = []
    for percent in PERCENTS:
        two, own = f"2tower photos-{percent}", f"2tower own-{percent}"
        three, four = f"3tower photos-{percent}", f"4tower composed-{percent}"
        both = f"3tower own-{percent}"
        pairs += [(three, two), (four, two), (own, two), (three, own), (both, own), (four, three)]
    shuffled = "3tower shuffled-15"
    pairs += [(shuffled, "2tower photos-15"), ("3tower photos-15", shuffled)]
    yield "| image to image | seeds | hit@1 | mrr | hit@1 without tones | hit@1 of tones |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for after, before in pairs:
        if (found := arms.pair(after, before, "image_to_image")) is not None:
            one, other, num_seeds = found
            cells = [one.minus(other, metric) for metric in ("hit@1", "mrr")]
            cells += [one.where(toned=label).minus(other.where(toned=label), "hit@1") for label in ("no", "yes")]
            yield f"| {after} - {before} | {num_seeds} | {' | '.join(cells)} |"


def transfer(arms: Arms) -> Iterator[str]:
    yield "| photos of training | asked with | 2tower, hit@1 | 3tower, hit@1 | 3tower - 2tower, hit@1 | mrr |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for trained in ARTISTS:
        if (found := arms.pair(f"3tower {trained}-15", f"2tower {trained}-15", "image_to_image")) is not None:
            for asked in ARTISTS:
                three, two = (scores.where(domain=asked) for scores in found[:2])
                cells = [two.interval("hit@1"), three.interval("hit@1")]
                cells += [three.minus(two, metric) for metric in ("hit@1", "mrr")]
                yield f"| {trained} | {asked} | {' | '.join(cells)} |"


def composed(arms: Arms) -> Iterator[str]:
    yield "| arm | kind | photo alone | words alone | both | shown one left out | both - photo | both - words |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for percent in PERCENTS:
        arm = f"4tower composed-{percent}"
        if arm in arms:
            for kind in ("tone", "gender"):
                photo, words, both, other = (
                    arms.scores(arm, direction).where(kind=kind) for direction in (PHOTO, WORDS, BOTH, WITHOUT_SHOWN)
                )
                cells = [found.interval("hit@1") for found in (photo, words, both, other)]
                cells += [both.minus(photo, "hit@1"), both.minus(words, "hit@1")]
                yield f"| {arm} | {kind} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
