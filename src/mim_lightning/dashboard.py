"""Old name of `python -m mim_lightning.wandb_workspace`, accepted until version 0.3."""

import sys

from mim_lightning.wandb_workspace import main

if __name__ == "__main__":
    print("python -m mim_lightning.dashboard is now: python -m mim_lightning.wandb_workspace", file=sys.stderr)
    main()
