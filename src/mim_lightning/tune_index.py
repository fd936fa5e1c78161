"""mim tune_index <run>: what small vectors cost in an index, on kept embeddings.

    mim tune_index runs/4tower-... --widths 16,32,64 --output curve
    mim tune_index runs/4tower-... --kinds flat,hnsw --rows 100000

Builds an index of every width, precision and type, evaluates the direction's queries with it, and prints nDCG@10 with
its interval, the difference from exact search of whole vectors, bytes a product and queries a second. `--output` writes
index_curve.csv, index_curve.md and index_curve.png. Nothing is embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mim_lightning.artifact_paths import find_record
from mim_lightning.command import CommandParser, count, counts, run_command, words
from mim_lightning.next_command import print_next


def main() -> None:
    run_command(_parser(), tune_index)


def tune_index(
    run: Path,
    direction: str | None,
    widths: Sequence[int],
    precisions: Sequence[str],
    kinds: Sequence[str],
    rows: int | None,
    rerank: int,
    output: Path | None,
    max_loss: float | None = None,
    report: bool = False,
) -> None:
    """Measure, print, and write the requested files."""
    find_record(run)
    # imported here, so that an error on the command line is reported at once
    from mim_lightning.analysis.index_curve import print_points, write_points
    from mim_lightning.analysis.record import read_record
    from mim_lightning.index_tuning import building_arguments, choose_smallest, measure_sizes, write_report

    record = read_record(run)
    ranked, settings, points, num_rows = measure_sizes(record, direction, widths, precisions, kinds, rows, rerank)
    print_points(ranked, points, num_rows)
    paths = []
    if output is not None:
        paths = write_points(ranked, points, num_rows, output, record.facts.fingerprint)
        print(f"curve: {', '.join(map(str, paths))}")
    keys = [] if max_loss is None else choose_smallest(settings, points, max_loss)
    if keys:
        print(f"the smallest that loses at most {max_loss:g}: build_index {' '.join(keys)}")
    elif max_loss is not None:
        print(f"none loses at most {max_loss:g}, at the lower end of its interval: keep whole float32 vectors")
    if report:
        print(f"report: {write_report(record, ranked, points)}")
    if arguments := building_arguments(record, ranked, keys, paths[-1] if paths else None):
        print_next("build_index", *arguments)


def _parser() -> CommandParser:
    parser = CommandParser("tune_index", __doc__)
    parser.add_argument("run", type=Path, help="folder of a run or of an evaluation")
    parser.add_argument("--direction", help="default: the monitored one")
    parser.add_argument("--widths", type=counts, default=[], help="as 16,32,64, besides the full width")
    precisions = ["float32", "int8", "binary"]
    parser.add_argument("--precisions", type=words, default=precisions, help=f"default: {','.join(precisions)}")
    parser.add_argument("--kinds", type=words, default=["flat"], help="of flat,hnsw,ivf,ivf_pq,sq8; default: flat")
    rows = "of a made-up catalog whose queries a second are measured; default: those of the gallery"
    parser.add_argument("--rows", type=count, metavar="N", help=rows)
    rerank = "candidates of coarse codes compared by their vectors for each hit; default: 10"
    parser.add_argument("--rerank", type=count, default=10, metavar="N", help=rerank)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for index_curve.csv, .md, .png and .json")
    loss = "of nDCG@10 that is acceptable: also print the smallest index whose interval stays within it"
    parser.add_argument("--max-loss", type=float, metavar="LOSS", help=loss)
    parser.add_argument("--report", action="store_true", help="write the run's report.html again, with the curve")
    return parser


if __name__ == "__main__":
    main()
