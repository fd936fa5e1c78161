"""Former name of `mim wandb_workspace`, accepted until version 0.3."""

import sys

from mim_lightning import wandb_workspace


def main() -> None:
    print("mim_lightning.dashboard is now mim_lightning.wandb_workspace", file=sys.stderr)
    wandb_workspace.main()


if __name__ == "__main__":
    main()
