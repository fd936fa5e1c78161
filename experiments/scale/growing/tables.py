"""The tables of this record, from results.json and memory.json."""

import json
from pathlib import Path

HERE = Path(__file__).parent

found = json.loads((HERE / "results.json").read_text())
seconds = found["cpu_seconds"]
rows = ["| step | all rows again, CPU s | 1 % added, CPU s | fraction |", "| --- | ---: | ---: | ---: |"]
for step, again, added in (("prepare", "prepare_again", "add"), ("embed and index", "index_again", "index_update")):
    rows.append(f"| {step} | {seconds[again]:.1f} | {seconds[added]:.1f} | {seconds[added] / seconds[again]:.3f} |")
(HERE / "table.md").write_text("\n".join(rows) + "\n")

measured = json.loads((HERE / "memory.json").read_text())
*_, few, many = (one for one in measured if one["there"] == measured[0]["there"])
a_row = (many["peak_bytes"] - few["peak_bytes"]) / (many["added"] - few["added"])
rows = ["| rows that are there | rows added | peak memory, MB | CPU s |", "| ---: | ---: | ---: | ---: |"]
rows += [
    f"| {one['there']:,} | {one['added']:,} | {one['peak_bytes'] / 1e6:.0f} | {one['cpu_seconds']:.1f} |"
    for one in measured
]
rows += ["", f"*{a_row / 1e3:.1f} kB a row added; a million rows, extrapolated: {a_row / 1e3:.1f} GB.*"]
(HERE / "memory.md").write_text("\n".join(rows) + "\n")
