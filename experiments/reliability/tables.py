"""Make the tables of a campaign from the outcomes that its tests recorded.

    python experiments/reliability/tables.py outcomes.jsonl [more.jsonl ...]

Writes into this folder:

    outcomes.csv   a distinct input and outcome a row, with how often; targets that were not run again stay, and with
                   --add the inputs that were not
    table.md       how often inputs were tried by part and target, how many are distinct, and how many tries hold
    kinds.md       the same counts by what was done, and to which targets
    found.md       what became of them
"""

import argparse
import csv
import json
import re
from collections import Counter
from pathlib import Path

PARTS = ("kill", "signal", "starved", "rubbish")
COLUMNS = ("part", "target", "input", "outcome", "holds")
CHECKS = ("room on the disk again",)  # that follow inputs, and are none
# what can happen to any file and stand in the place of any JSON: "card is empty" and "log is empty" are one input
WAYS = (
    *("missing", "empty", "half", "without its last byte", "of NULs", "a page of HTML", "a folder", "a pipe"),
    *("a link to itself", "an array", "a number", "null", "an empty object", "NaN", "nested 100,000 deep", "not UTF-8"),
    *("two objects", "a number of 5,000 digits", "with a byte order mark before nothing"),
)

KINDS = (  # of inputs: what differs between those of a kind, and what they are called together
    (r"(?<=^kill -9) before (open|rename|remove|mkdir|rmdir) .*", " before a file is changed"),
    (r"(?<=^kill -9) at [\d.]+ of the CPU time", " at a random moment"),
    (r" of rank\d alone at [\d.]+ of its CPU time", " -9 of one of two processes, at a random moment"),
    (r"after \d+ clicks", "under load"),
    (
        r"^(SIGTERM|Ctrl-C) (at random: .*|before (training|open|rename|remove|mkdir|rmdir) .*)",
        r"\1 at a random moment",
    ),
    (r"(SIGTERM|Ctrl-C) to \w+ at [\d.]+ of them", r"\1 while it imports"),
    (r"^(SIGTERM|Ctrl-C) (?!.*, and again$)", "SIGTERM or Ctrl-C "),
    (r"^disk full at .*", "disk full at a kind of write"),
    (r"^[\w-]+ /dev/shm$", "/dev/shm missing, tiny or read-only"),
    (r"^(reads a )?read-only .*", r"\1read-only folder"),
    (r"^\d+ (descriptors|MB of memory)$", r"few \1"),
    (r"^data set altered at step \d+: .*", "data set altered under it"),
    (r"^(\w+) (once|always): .*", r"store: \1 \2"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "records", type=Path, nargs="*", help="files that MIM_CAMPAIGN_RECORD named; none: tables alone"
    )
    parser.add_argument("--add", action="store_true", help="replace the inputs that were tried again alone")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    counts = Counter(tuple(row) for path in arguments.records for row in read_record(path))
    num_named = 3 if arguments.add else 2
    again = {row[:num_named] for row in counts}
    stored = arguments.folder / "outcomes.csv"
    if stored.is_file():
        with stored.open(newline="") as file:
            rows_before = list(csv.DictReader(file))
        kept = [row for row in rows_before if tuple(row[name] for name in COLUMNS[:num_named]) not in again]
        counts.update({tuple(row[name] for name in COLUMNS): int(row["count"]) for row in kept})
    rows = sorted(counts.items(), key=lambda item: (PARTS.index(item[0][0]), item[0][1:]))
    with stored.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, "count"))
        writer.writerows((*row, count) for row, count in rows)
    inputs = [(row, count) for row, count in rows if row[2] not in CHECKS or row[4] == "no"]
    for name, lines in (("table.md", targets(inputs)), ("kinds.md", kinds(inputs)), ("found.md", outcomes(inputs))):
        text = "\n".join(lines) + "\n"
        (arguments.folder / name).write_text(text)
        print(text)


def read_record(path: Path) -> list[list[str]]:
    with path.open() as file:
        found = [json.loads(line) for line in file]
    return [[*(one[name] for name in COLUMNS[:4]), "yes" if one["holds"] else "no"] for one in found]


def targets(rows: list[tuple[tuple[str, ...], int]]) -> list[str]:
    """Return the table of counts by part and target, with a sum for each part."""
    lines = ["| part | target | tried | distinct | hold | do not |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for part in PARTS:
        found = [(row, count) for row, count in rows if row[0] == part]
        for target in dict.fromkeys(row[1] for row, _ in found):
            lines.append(f"| {part} | {cell(target)} | {sums([one for one in found if one[0][1] == target])} |")
        if found:
            lines.append(f"| **{part}** | all | {sums(found)} |")
    return lines


def kinds(rows: list[tuple[tuple[str, ...], int]]) -> list[str]:
    """Return the table of counts by what was done; malformed inputs are too many for it."""
    found: dict[tuple[str, str], list[tuple[tuple[str, ...], int]]] = {}
    for row, count in rows:
        if row[0] != "rubbish":
            found.setdefault((row[0], kind_of(row[2])), []).append((row, count))
    lines = ["| part | what was done | to | tried | distinct | hold | do not |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for (part, kind), done in sorted(found.items(), key=lambda item: (PARTS.index(item[0][0]), item[0][1])):
        names = dict.fromkeys(row[1].split(",")[0] for row, _ in done)  # "train, 2 processes" and others as one
        lines.append(f"| {part} | {cell(kind)} | {', '.join(names)} | {sums(done)} |")
    return lines


def kind_of(named: str) -> str:
    for pattern, name in KINDS:
        named = re.sub(pattern, name, named)
    return named


def sums(rows: list[tuple[tuple[str, ...], int]]) -> str:
    total, held = sum(count for _, count in rows), sum(count for row, count in rows if row[4] == "yes")
    return f"{total} | {len({distinct(row) for row, _ in rows})} | {held} | {total - held}"


def distinct(row: tuple[str, ...]) -> tuple[str, ...]:
    """Return what rows of one input share. A malformed input is the same for every target."""
    part, target, named = row[:3]
    way = named.rpartition(" is ")[2]
    if part == "rubbish":
        return part, way if way in WAYS and way != named else named
    return part, target, named


def outcomes(rows: list[tuple[tuple[str, ...], int]]) -> list[str]:
    """Return the table of what was found, the most frequent of a target first."""
    counts: Counter[tuple[str, ...]] = Counter()
    for (part, target, _, outcome, holds), count in rows:
        counts[part, target, outcome, holds] += count
    order = sorted(counts.items(), key=lambda item: (PARTS.index(item[0][0]), item[0][1], -item[1], item[0]))
    lines = ["| part | target | outcome | tried | holds |", "| --- | --- | --- | ---: | --- |"]
    return lines + [
        f"| {part} | {cell(target)} | {cell(outcome)} | {count} | {holds} |"
        for (part, target, outcome, holds), count in order
    ]


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
