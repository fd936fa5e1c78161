"""mim wandb_workspace --entity <team> --project <project>: a W&B workspace for a sweep, as code.

Saves a view of the project's runs and prints its URL: metrics by epoch from epoch -1, parallel coordinates, metrics by
tower count and by loss weight, losses, logit scale, throughput, tracked queries.
"""

from __future__ import annotations

import sys

from mim_lightning.analysis.workspace import MONITOR, build_workspace, describe_workspace, save_workspace
from mim_lightning.command import CommandParser, run_command
from mim_lightning.config import compose
from mim_lightning.next_command import print_next


def main() -> None:
    parser = CommandParser("wandb_workspace", __doc__)
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", default="mim_lightning", help="as in logger.wandb.project (default: %(default)s)")
    parser.add_argument("--monitor", default=MONITOR, help="val/<direction>/<metric> (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="list the panels, save nothing")
    run_command(parser, wandb_workspace)


def wandb_workspace(entity: str, project: str, monitor: str, dry_run: bool) -> None:
    """Save a view of the project's runs and print its URL, or list its panels."""
    pairs = compose("train", ["model=4tower"])["model"]["pairs"]
    workspace = build_workspace(entity, project, pairs, monitor)
    print(describe_workspace(workspace) if dry_run else save_workspace(workspace))
    if dry_run:
        print_next("wandb_workspace", *(word for word in sys.argv[1:] if word != "--dry-run"))


if __name__ == "__main__":
    main()
