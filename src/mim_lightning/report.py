"""Old name of `python -m mim_lightning.ab_report`, accepted until version 0.3."""

import sys

from mim_lightning.ab_report import main

if __name__ == "__main__":
    print("python -m mim_lightning.report is now: python -m mim_lightning.ab_report", file=sys.stderr)
    main()
