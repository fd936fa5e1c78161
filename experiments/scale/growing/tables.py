"""The table of this record, from results.json."""

import json
from pathlib import Path

HERE = Path(__file__).parent

found = json.loads((HERE / "results.json").read_text())
seconds = found["cpu_seconds"]
rows = ["| step | all rows again, CPU s | 1 % added, CPU s | fraction |", "| --- | ---: | ---: | ---: |"]
for step, again, added in (("prepare", "prepare_again", "add"), ("embed and index", "index_again", "index_update")):
    rows.append(f"| {step} | {seconds[again]:.1f} | {seconds[added]:.1f} | {seconds[added] / seconds[again]:.3f} |")
(HERE / "table.md").write_text("\n".join(rows) + "\n")
