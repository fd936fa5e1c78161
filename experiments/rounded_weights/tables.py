"""A table of the quantization loss, from the model cards of exports.

    python experiments/rounded_weights/tables.py <folder of exports, one a precision>

Writes table.md beside this file; no number is computed here.
"""

import argparse
from pathlib import Path

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
COMPUTED_IN = {"float16": "float32 on a CPU, else float16", "bfloat16": "bfloat16"}  # others: float32
COMPOSED, IMAGE = "composed_to_product", "image_to_image"
HEADER = (
    "", "file", "computed in", "cosine of query images, mean (smallest)", "composed hit@1", "image hit@1",
    "rounded queries, float32 catalog: composed hit@1",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path)
    exports = parser.parse_args().exports
    counts = {counts_of(exports / precision) for precision in PRECISIONS[1:]}
    lines = [row_of(HEADER), "| --- | ---: | --- | ---: | ---: | ---: | ---: |"]
    lines += [row_of(cells_of(exports, precision)) for precision in PRECISIONS]
    text = "\n".join(lines) + f"\n\n*{' '.join(sorted(counts))}*\n"
    Path(__file__).with_name("table.md").write_text(text)
    print(text)


def cells_of(exports: Path, precision: str) -> tuple[str, ...]:
    """Return a precision's row; every other card has float32's numbers beside its own."""
    folder = exports / precision
    size = f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
    rows = card_rows(exports / ("int8" if precision == "float32" else precision))
    arm = 0 if precision == "float32" else 1
    composed, image = (rows[direction, "hit@1"] for direction in (COMPOSED, IMAGE))
    mean, least = rows["query_image", None]
    return (
        precision,
        size,
        COMPUTED_IN.get(precision, "float32"),
        f"{mean} ({least})" if arm else "",
        f"{float(composed[arm]):.3f}",
        f"{float(image[arm]):.3f}",
        f"{float(composed[2]):.3f}" if arm else "",
    )


def card_rows(folder: Path) -> dict[tuple[str, str | None], list[str]]:
    """Return the tables of "What ... costs" in a card: by tower, and by direction and metric."""
    rows: dict[tuple[str, str | None], list[str]] = {}
    for line in costs_of(folder).splitlines():
        name, *cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) == 2:
            rows[name, None] = cells
        elif len(cells) == 4:
            rows[name, cells[0]] = cells[1:]
    return rows


def counts_of(folder: Path) -> str:
    """Return the card's sentence on how many queries and products these are: the first line, above the tables."""
    if not card_rows(folder):
        raise SystemExit(f"{folder}/README.md: no table of what rounding costs; export with the data available")
    return next(line for line in costs_of(folder).splitlines() if line.strip())


def costs_of(folder: Path) -> str:
    return (folder / "README.md").read_text().split(" costs\n", 1)[-1].split("\n## ")[0]


def row_of(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


if __name__ == "__main__":
    main()
