"""Writes the tables of docs/speed.md from the files in benchmark/results/speed/.

    python -m benchmark.speed.tables

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; everything else there is written by hand.
"""

import argparse
import json
import re
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmark/results/speed", ROOT / "docs/speed.md"
NAMES = {"dtql_gaussian": "DTQL", "srpo": "SRPO", "diffusion_ql": "DQL", "idql": "IDQL"}  # in the paper
RATIO = {"over its products (range)": "{ratio:.2f} ({ratio_range[0]:.2f} to {ratio_range[1]:.2f})"}
STEP = {"device": "{device}", "script": "{script}", "phase": "{phase}", "mode": "{mode}"}
TABLES = {  # part of the files: column: what of a row it shows
    "train": STEP | {"seeds": "{num_seeds}", "ms per step": "{ms:.1f}"} | RATIO | {"commit": "{commit}"},
    "scaling": {"batch size": "{batch_size}", "width": "{width}", "seeds": "{num_seeds}",
                "ms per step": "{ms:.1f}"} | RATIO | {"device": "{device}", "commit": "{commit}"},
    "against": STEP | {"commit": "{commit}", "against": "{against}", "ratio": "{ratio:.2f}"},
    "act": {"device": "{device}", "script": "{script}", "states": "{states}", "candidates": "{candidates}",
            "ms": "{ms:.2f}", "ms per state, s per 1000 steps": "{ms_per_state:.2f}"},
    "paper": {"script": "{script}", "training, s per 1000 steps": "{phases}", "paper": "{paper[0]}",
              "hours of all training": "{training_hours:.1f}", "paper ": "{paper[1]}",
              "acting, s per trajectory (candidates)": "{acting_s_per_trajectory:.2f} ({candidates})",
              "with one candidate": "{acting_s_one_candidate:.2f}", "paper  ": "{paper[2]}",
              "device": "{device}"},
}  # fmt: skip


def rows_of(part: str) -> list[dict]:
    """This part's rows in all files, the script by its short name, with what the tables compute of them."""
    files = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rows = [row | {"script": Path(row["script"]).stem} for file in files for row in file.get(part, [])]
    paper = pd.read_csv(
        ROOT / "benchmark/paper/table2_time_antmaze_umaze_v0.csv", index_col="quantity", dtype=str
    )
    quantities = ["training s per 1k steps", "total training hours", "inference s per trajectory"]
    for row in rows:
        if part == "act":
            row["ms_per_state"] = row["ms"] / row["states"]
        if part == "paper":
            row["phases"] = ", ".join(f"{phase} {s:.1f}" for phase, s in row["train_s_per_1k_steps"].items())
            name = NAMES.get(row["script"])
            row["paper"] = [paper[name][quantity] if name else "" for quantity in quantities]
    return rows


def page(text: str) -> str:
    """The page with every table as the files have it now."""
    for name, columns in TABLES.items():
        rows = [{title: shown.format(**row) for title, shown in columns.items()} for row in rows_of(name)]
        table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
        mark = re.compile(rf"(?<=<!-- {name} -->\n).*(?=<!-- /{name} -->)", re.DOTALL)
        assert mark.search(text), f"{PAGE} has no place for the table {name}"
        text = mark.sub(lambda _, table=table: f"{table}\n", text)
    return text


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=raw).parse_args()
    PAGE.write_text(page(PAGE.read_text()))
    print(f"wrote the tables of {PAGE}")
