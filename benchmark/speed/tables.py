"""Writes the tables and pictures of docs/speed.md from the files in benchmark/results/speed/.

    python -m benchmark.speed.tables

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; everything else there is written by hand.
"""

import csv
import json
import re
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmark/results/speed", ROOT / "docs/speed.md"
COLUMNS = {"dtql_gaussian": "DTQL", "srpo": "SRPO", "diffusion_ql": "DQL", "idql": "IDQL"}  # of Table 2


def rows_of(part: str) -> pd.DataFrame:
    """This part's rows in all files, the script by its short name."""
    files = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rows = pd.DataFrame([row for file in files for row in file.get(part, [])])
    return rows.assign(script=rows["script"].map(lambda x: Path(x).stem)) if "script" in rows else rows


def paper() -> dict[tuple[str, str], float]:
    """Table 2 by quantity and script."""
    with open(ROOT / "benchmark/paper/table2_time_antmaze_umaze_v0.csv") as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    return {(quantity, script): float(row[name])
            for quantity, row in rows.items() for script, name in COLUMNS.items()}  # fmt: skip


def with_range(row: pd.Series) -> str:
    low, high = row["ratio_range"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def train_table() -> dict[str, list]:
    rows = rows_of("train")
    return {
        "device": rows["device"], "commit": rows["commit"], "script": rows["script"], "phase": rows["phase"],
        "mode": rows["mode"], "seeds": rows["num_seeds"], "ms per step": [f"{x:.1f}" for x in rows["ms"]],
        "over its products (range)": [with_range(row) for _, row in rows.iterrows()],
    }  # fmt: skip


def against_table() -> dict[str, list]:
    rows = rows_of("against")
    return {
        "device": rows["device"], "script": rows["script"], "phase": rows["phase"], "mode": rows["mode"],
        "commit": rows["commit"], "against": rows["against"], "ratio": [f"{x:.2f}" for x in rows["ratio"]],
    }  # fmt: skip


def act_table() -> dict[str, list]:
    rows = rows_of("act")
    return {
        "device": rows["device"], "script": rows["script"], "states": rows["states"],
        "candidates": rows["candidates"], "ms": [f"{x:.2f}" for x in rows["ms"]],
        "ms per state, s per 1000 steps": [f"{x:.2f}" for x in rows["ms"] / rows["states"]],
    }  # fmt: skip


def paper_table() -> dict[str, list]:
    rows, numbers = rows_of("paper"), paper()
    theirs = lambda quantity: [numbers.get((quantity, script), "") for script in rows["script"]]
    return {
        "script": rows["script"],
        "training, s per 1000 steps": [
            ", ".join(f"{phase} {s:.1f}" for phase, s in x.items()) for x in rows["train_s_per_1k_steps"]
        ],
        "paper": theirs("training s per 1k steps"),
        "hours of all training": [f"{x:.1f}" for x in rows["training_hours"]],
        "paper ": theirs("total training hours"),
        "acting, s per trajectory (candidates)": [
            f"{s:.2f} ({n})" for s, n in zip(rows["acting_s_per_trajectory"], rows["candidates"])
        ],
        "with one candidate": [f"{s:.2f}" for s in rows["acting_s_one_candidate"]],
        "paper  ": theirs("inference s per trajectory"),
        "device": rows["device"],
    }


def waiting_table() -> dict[str, list]:
    rows = rows_of("waiting")
    return {
        "setting": rows["setting"], "other processes": rows["busy_processes"],
        "steps per second (range)": [
            f"{x:.1f} ({low:.1f} to {high:.1f})"
            for x, (low, high) in zip(rows["steps_per_second"], rows["range"])
        ],
        "device": rows["device"], "commit": rows["commit"],
    }  # fmt: skip


TABLES = {
    "train": train_table, "against": against_table, "act": act_table, "paper": paper_table,
    "waiting": waiting_table,
}  # fmt: skip


def page(text: str) -> str:
    """The page with every table as the files have it now."""
    for name, make in TABLES.items():
        table = pd.DataFrame(make()).to_markdown(index=False, disable_numparse=True)
        mark = re.compile(rf"(?<=<!-- {name} -->\n).*(?=<!-- /{name} -->)", re.DOTALL)
        assert mark.search(text), f"{PAGE} has no place for the table {name}"
        text = mark.sub(lambda _, table=table: f"{table}\n", text)
    return text


def draw_scaling(path: Path) -> None:
    """Time per step against batch size, width and number of seeds, beside what its products alone take."""
    rows = rows_of("scaling")
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    groups = rows.groupby("varied", sort=False)
    axes = figure.subplots(1, len(groups), sharey=True)
    for ax, (name, group) in zip(axes, groups):
        ax.plot(group[name], group["ms"], "o-", color="#1f5fa8", label="training step")
        ax.plot(group[name], group["ms_other"], "o--", color="#999999", label="its matrix products alone")
        ax.set(xscale="log", yscale="log", xlabel=name.replace("_", " ").replace("num ", ""))
        ax.set_xticks(group[name], labels=group[name])
        ax.minorticks_off()
        ax.grid(color="#eeeeee")
    axes[0].set_ylabel("ms per step")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"dtql_gaussian.py, compiled, on {rows['device'][0]}", fontsize=9)
    figure.savefig(path, dpi=110)


def draw_paper(path: Path) -> None:
    """Fig. 4: the algorithms' times for training and for acting, as multiples of DTQL's, theirs and ours."""
    rows, numbers = rows_of("paper").set_index("script"), paper()
    rows = rows[rows.index.isin(COLUMNS)]
    last = rows["train_s_per_1k_steps"].map(lambda times: [*times.values()][-1])
    panels = {
        "training s per 1k steps": ("training, s per 1000 steps\n(SRPO: of its policy alone)", last),
        "total training hours": ("hours of all training", rows["training_hours"]),
        "inference s per trajectory": ("acting, s per trajectory", rows["acting_s_per_trajectory"]),
    }
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for ax, (quantity, (title, ours)) in zip(figure.subplots(1, len(panels)), panels.items()):
        theirs = pd.Series({script: numbers[quantity, script] for script in rows.index})
        for values, label, color, above in ((ours, f"here, on {rows['device'].iloc[0]}", "#1f5fa8", 5),
                                            (theirs, "paper, on an A5000", "#777777", -11)):  # fmt: skip
            multiples = values / values["dtql_gaussian"]
            ax.plot(multiples, [COLUMNS[x] for x in rows.index], "o", color=color, label=label)
            for x, script in zip(multiples, rows.index):
                ax.annotate(f"{values[script]:.3g}", (x, COLUMNS[script]), (0, above), ha="center",
                            fontsize=7, textcoords="offset points", color=color)  # fmt: skip
        ax.set(xscale="log", xlabel="multiple of DTQL's")
        ax.set_title(title, fontsize=9)
        ax.minorticks_off()
        ax.set_xticks([0.01, 0.1, 1, 10], ["1/100", "1/10", "1", "10"])
        ax.axvline(1, color="#333333", linewidth=0.6)
        ax.margins(x=0.15, y=0.2)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncol=2, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    PAGE.write_text(page(PAGE.read_text()))
    draw_scaling(RESULTS / "scaling.png")
    draw_paper(RESULTS / "paper.png")
    print(f"wrote {PAGE} and the pictures in {RESULTS}")


if __name__ == "__main__":
    main()
