"""mim compare <run> <run> ...: do models differ, by how much, and on which queries?

    mim compare runs/2tower-* runs/4tower-*
    mim compare runs/a runs/b --metric hit@1,mrr --output compared

Runs that differ only in seed or fold are one group; the group of the first run is the baseline. A folder is that of a
run, or of an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mim_lightning.artifact_paths import find_record
from mim_lightning.command import CommandParser, count, run_command, words
from mim_lightning.next_command import print_next


def main() -> None:
    run_command(_parser(), compare)


def compare(
    runs: Sequence[Path],
    metrics: Sequence[str] = ("hit@1",),
    directions: Sequence[str] = (),
    segments: Sequence[str] | None = None,
    num_queries: int = 8,
    resamples: int = 2000,
    output: Path | None = None,
) -> None:
    """Print a comparison of the runs; with `output`, write compare.html and compare.json there."""
    if len(runs) < 2:
        raise ValueError(f"{runs[0]}: give at least two runs to compare")
    for folder in runs:
        find_record(folder)
    # imported here, so that an error on the command line is reported at once
    from mim_lightning.analysis.comparison.comparison import compare_groups, write_json
    from mim_lightning.analysis.comparison.tables import print_comparison
    from mim_lightning.analysis.html.pages import write_comparison_page
    from mim_lightning.analysis.record import read_record
    from mim_lightning.analysis.run_groups import group_runs
    from mim_lightning.run import PLACEMENT_KEYS

    records = [read_record(folder) for folder in runs]
    groups = group_runs(records, PLACEMENT_KEYS)
    comparison = compare_groups(groups, metrics, directions, segments, num_queries, resamples)
    if output is not None:
        write_json(comparison, output / "compare.json")
        write_comparison_page(comparison, output / "compare.html")
    monitored = records[0].facts.monitored.direction
    shown = list(dict.fromkeys(row.direction for row in comparison.overall))
    print_comparison(comparison, directions or ([monitored] if monitored in shown else shown[:1]))
    if output is not None:
        print(f"page and numbers: {output / 'compare.html'}, {output / 'compare.json'}")
    if find_spec("matplotlib") is not None:
        print_next("plot", *runs, "--output", "figures" if output is None else output / "figures")


def _parser() -> CommandParser:
    parser = CommandParser("compare", __doc__)
    parser.usage = "%(prog)s <run> <run> ... [options]"
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="run", help="folder of a run or of an evaluation")
    add("--metric", dest="metrics", type=_words, default=["hit@1"], metavar="NAMES", help="default: hit@1; or several")
    add("--direction", dest="directions", type=_words, default=[], metavar="NAMES", help="default: all that both have")
    add("--segments", type=_words, metavar="NAMES", help="default: all that the records have; none: no such tables")
    add("--output", type=Path, metavar="FOLDER", help="for compare.html and compare.json")
    add("--num-queries", type=count, default=8, metavar="N", help="to show that gained, and that lost (8)")
    add("--resamples", type=count, default=2000, metavar="N", help="of bootstrap and randomization (2000)")
    return parser


def _words(text: str) -> list[str]:
    return [] if text == "none" else words(text)


if __name__ == "__main__":
    main()
