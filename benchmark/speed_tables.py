"""Writes the tables of docs/speed.md, and the one of the README, from benchmark/results/speed/.

    python benchmark/speed_tables.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; everything else there is written by hand.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark" / "results" / "speed"


def files_of(pattern: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def rows_of(part: str, pattern: str = "*.json") -> list[dict]:
    """This part's rows in all files that have it."""
    return [row for file in files_of(pattern) for row in file.get(part, [])]


def table(head: str, rows: list[list]) -> str:
    lines = [f"| {head} |", "|" + "---|" * len(head.split(" | "))]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def short(script: str) -> str:
    return script.rpartition(".")[2]


def speed() -> str:
    """The README's: one seed, one thread of a CPU; acting in the row of the last phase."""
    here = "amd-epyc-threads-1.json"
    steps: dict[tuple, dict] = {}
    for row in rows_of("train", here):
        if row["num_seeds"] == 1:
            steps.setdefault((row["script"], row["phase"]), {})[row["mode"]] = row
    ms = {(row["script"], row["candidates"]): row["ms"] for row in rows_of("act", here) if row["states"] == 1}
    last = dict(list(steps))  # script: its last phase
    rows = []
    for (script, phase), modes in steps.items():
        cells = [f"{modes[mode]['ms_per_step']:.1f}" for mode in ("eager", "compiled")]
        cells += [f"{modes[mode]['ratio']:.2f}" for mode in ("eager", "compiled")]
        most = max(candidates for name, candidates in ms if name == script)
        acting = [f"{ms[script, 1]:.2f}", f"{ms[script, most]:.1f} ({most})" if most > 1 else ""]
        rows.append([short(script), phase, *cells, *(acting if last[script] == phase else ["", ""])])
    head = (
        "script | phase | ms per step, eager | compiled | over its products, eager | compiled | "
        "ms for one action | for the choice among several"
    )
    return table(head, rows)


def train() -> str:
    rows = [
        [row["device"], short(row["script"]), row["phase"], row["mode"], row["num_seeds"],
         f"{row['ms_per_step']:.1f}", f"{row['steps_per_second']:.1f}",
         f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})"]
        for row in rows_of("train")
    ]  # fmt: skip
    head = "device | script | phase | mode | seeds | ms per step | steps/s | over its products (range)"
    return table(head, rows)


def act() -> str:
    rows = [
        [row["device"], short(row["script"]), row["states"], row["candidates"], f"{row['ms']:.2f}",
         f"{row['ms'] / row['states']:.2f}"]
        for row in rows_of("act")
    ]  # fmt: skip
    return table("device | script | states | candidates | ms | ms per state, s per 1000 steps", rows)


def paper() -> str:
    rows = []
    for row in rows_of("paper"):
        of_phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in row["of_each_phase"])
        theirs = [row[f"paper_{name}"] or "" for name in
                  ("train_s_per_1k_steps", "training_hours", "inference_s_per_trajectory")]  # fmt: skip
        acting = [f"{row['inference_s_per_trajectory']:.2f} ({row['candidates']})",
                  f"{row['inference_s_one_candidate']:.2f}"]  # fmt: skip
        hours = f"{row['training_hours']:.1f}"
        rows.append([short(row["script"]), of_phases, theirs[0], hours, theirs[1], *acting, theirs[2],
                     row["device"]])  # fmt: skip
    head = (
        "script | training, s per 1000 steps | paper | hours of all training | paper | "
        "s per trajectory (candidates) | with 1 candidate | paper | device"
    )
    return table(head, rows)


def measures() -> str:
    rows = []
    for row in rows_of("measures"):
        low, high = row["ratio_quartiles"]
        name = row["measure"] + ("" if row["kept"] else " (not kept)")
        rows.append([name, row["mode"], row["predicted"], f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
                     row["device"]])  # fmt: skip
    return table("measure | mode | predicted | measured (quartiles) | device", rows)


def startup() -> str:
    rows = []
    for row in rows_of("startup"):
        seconds = [f"{row[f's_{x}']:.1f}" for x in ("2000", "1000000", "1000000_compiled_warm",
                                                    "1000000_compiled_cold")]  # fmt: skip
        mib = [f"{row[x]:.0f}" for x in ("dataset_mib", "mib_while_loading")]
        rows.append([row["env_id"], *seconds, *mib, row["device"]])
    head = (
        "sizes of | s, 2000 transitions | s, a million | compiled, in the cache | compiled, not in it | "
        "MiB of the million | MiB to load it | device"
    )
    return table(head, rows)


def evaluation() -> str:
    found = rows_of("evaluation")
    pure = {row["device"]: row["wall_s"] for row in found if row["evaluation"] == "none"}
    rows = [
        [row["evaluation"], f"{row['wall_s']:.0f}", f"{row['wall_s'] / pure[row['device']]:.2f}",
         f"{row['train_s']:.0f}", f"{row['stood_still_s']:.0f}", row["device"]]
        for row in found
    ]  # fmt: skip
    return table("evaluation | wall s | over none | training s | stood still s | device", rows)


def environments() -> str:
    rows = []
    for file in files_of("*-environments-*.json"):
        for name, *speeds, seconds in (row.values() for row in file["rows"]):
            rows.append([name, *(f"{x:.0f}" for x in speeds), f"{seconds / 60:.0f}"])
    head = (
        "task | random actions | 1 action, 1 core | 1 action, all cores | of 1024, 1 core | "
        "of 1024, all cores | minutes"
    )
    return table(head, rows)


PAGES = {
    "docs/speed.md": [train, act, paper, measures, startup, evaluation, environments],
    "README.md": [speed],
}


def page(name: str) -> str:
    """The page with every table as the files have it now."""
    text = (ROOT / name).read_text()
    for make in PAGES[name]:
        start, end = (f"<!-- {mark}{make.__name__} -->" for mark in ("", "/"))
        before, found, rest = text.partition(start)
        _, found_end, after = rest.partition(end)
        assert found and found_end, f"{name} has no place for the table {make.__name__}"
        text = f"{before}{start}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(page(name))
        print(f"wrote {name}")
