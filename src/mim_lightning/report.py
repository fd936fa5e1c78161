"""Former name of `mim ab_report`, accepted until version 0.3."""

import sys

from mim_lightning import ab_report


def main() -> None:
    print("mim_lightning.report is now mim_lightning.ab_report", file=sys.stderr)
    ab_report.main()


if __name__ == "__main__":
    main()
