"""Old name of `python -m mim_lightning.plot`, accepted until version 0.3."""

import sys

from mim_lightning.plot import main

if __name__ == "__main__":
    print("python -m mim_lightning.draw is now: python -m mim_lightning.plot", file=sys.stderr)
    main()
