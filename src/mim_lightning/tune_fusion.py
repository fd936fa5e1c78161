"""mim tune_fusion <run>: sweep the weights and kinds of a fusion, on kept embeddings.

    mim tune_fusion runs/4tower-...             query of the composed direction
    mim tune_fusion runs/4tower-... --fusion product --metric mrr --output tuned
    mim tune_fusion runs/4tower-... --kind all  sums, products of scores
    mim tune_fusion runs/4tower-... --store runs/<id>/checkpoints/best.ckpt

Prints the curve, and what the best weight is worth on products it was not chosen on; `--output` draws it; `--store`
writes the checkpoint with the best fusion beside the old one. Of all kinds the best is the one of the highest change on
products it was not chosen on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mim_lightning.artifact_paths import find_record, validate_checkpoint
from mim_lightning.command import CommandParser, count, run_command
from mim_lightning.next_command import folder_beside, print_next

ALL = "all"


def main() -> None:
    run_command(_parser(), tune_fusion)


def tune_fusion(
    run: Path,
    direction: str | None,
    fusion: str | None,
    metric: str,
    num_weights: int,
    kind: str | None,
    center: bool,
    output: Path | None,
    store: Path | None,
) -> None:
    """Sweep, print, and write the requested files."""
    find_record(run)
    if store is not None:
        validate_checkpoint(store)
    # imported here, so that an error on the command line is reported at once
    from mim_lightning.analysis.embeddings import read_embeddings
    from mim_lightning.analysis.fusion_sweep import choose_ends, print_curve, print_kinds, sweep_kinds, write_curve
    from mim_lightning.analysis.record import read_record
    from mim_lightning.metric_names import whole_name
    from mim_lightning.model.checkpoint import store_fusions
    from mim_lightning.run import Run

    record = read_record(run)
    embeddings = read_embeddings(record.folder)
    name, ends, fusion = choose_ends(record, embeddings, direction, fusion)
    curves = sweep_kinds(embeddings, name, ends, fusion, metric, num_weights, None if kind == ALL else [(kind, center)])
    curve = max(curves, key=lambda found: found.chosen.difference)
    if kind == ALL:
        print_kinds(curves)
    print_curve(curve)
    if any(whole_name(scored) != scored for scored in record.directions[name].scores):
        print(f"of a sample of the gallery, as {record.folder} was evaluated: higher than in the whole")
    if output is not None:
        print(f"curve: {', '.join(map(str, write_curve(curve, output)))}")
    if store is not None:
        path = store_fusions(store, {fusion: curve.best}, embeddings.fingerprint)
        print(f"checkpoint with the best fusion: {path}")
        print_next("evaluate", f"checkpoint={path}", f"output={folder_beside(path, f'evaluated-{path.stem}')}")
        return
    config = record.facts.config
    checkpoint = Run(record.facts.run_id, record.folder.parent).checkpoint(config.get("results_from", "best"))
    if checkpoint.exists() and curve.chosen.low > 0:
        print_next("tune_fusion", *sys.argv[1:], "--store", checkpoint)
    elif checkpoint.exists():  # no weight is known to be better than the trained one
        print_next("build_index", f"checkpoint={checkpoint}", f"output={folder_beside(checkpoint, 'index')}")


def _parser() -> CommandParser:
    parser = CommandParser("tune_fusion", __doc__)
    parser.add_argument("run", type=Path, help="folder of a run or of an evaluation")
    parser.add_argument("--direction", help="default: the monitored one, or the first with a fused query")
    parser.add_argument("--fusion", help="whose weights; default: the query side's, else the gallery side's")
    parser.add_argument("--metric", default="hit@1", help="default: hit@1")
    parser.add_argument(
        "--num-weights", "--num-shares", type=count, default=21, metavar="N", help="points of the curve; default: 21"
    )
    parser.add_argument("--kind", help="fixed_sum, standardized_sum, score_product, or all; default: as trained")
    center = "subtract the mean of each tower, measured on these embeddings; default: as trained"
    parser.add_argument("--center", action="store_true", help=center)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for fusion.csv and fusion.png")
    parser.add_argument("--store", type=Path, metavar="CHECKPOINT", help="that was evaluated")
    return parser


if __name__ == "__main__":
    main()
