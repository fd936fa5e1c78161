"""Former name of `mim plot`, accepted until version 0.3."""

import sys

from mim_lightning import plot


def main() -> None:
    print("mim_lightning.draw is now mim_lightning.plot", file=sys.stderr)
    plot.main()


if __name__ == "__main__":
    main()
