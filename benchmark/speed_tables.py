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


def rows_of(part: str) -> list[dict]:
    """This part's rows of all files of speed.py, each with its device."""
    files = [file[part] for file in files_of("*.json") if part in file]
    return [row | {"device": file["device"]} for file in files for row in file["rows"]]


def table(head: str, rows: list[list]) -> str:
    lines = [f"| {head} |", "|" + "---|" * len(head.split(" | "))]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def short(script: str) -> str:
    return script.rpartition(".")[2]


def speed() -> str:
    """The README's: one thread of a CPU."""
    one_thread = lambda part: [row for row in rows_of(part) if row["device"].endswith("threads: 1")]
    steps: dict[tuple, dict] = {}
    for row in one_thread("train"):
        steps.setdefault((row["script"], row["phase"]), {})[row["mode"]] = row
    ms = {(row["script"], row["candidates"]): row["ms"] for row in one_thread("act") if row["states"] == 1}
    rows = []
    for (script, phase), modes in steps.items():
        cells = [f"{modes[mode]['ms_per_step']:.1f}" for mode in ("eager", "compiled")]
        cells += [f"{modes[mode]['ratio']:.2f}" for mode in ("eager", "compiled")]
        most = max(candidates for name, candidates in ms if name == script)
        cells += [f"{ms[script, 1]:.2f}", f"{ms[script, most]:.1f} ({most})" if most > 1 else ""]
        rows.append([short(script), phase, *cells])
    head = (
        "script | phase | ms per step, eager | compiled | over its products, eager | compiled | "
        "ms to act, by one action | by the best of"
    )
    return table(head, rows)


def train() -> str:
    rows = [
        [row["device"], short(row["script"]), row["phase"], row["mode"], row["num_seeds"],
         f"{row['ms_per_step']:.1f}", f"{row['steps_per_second']:.1f}",
         f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})",
         f"{row['peak_mib']:.0f}"]
        for row in rows_of("train")
    ]  # fmt: skip
    head = "device | script | phase | mode | seeds | ms per step | steps/s | over its products (range) | MiB"
    return table(head, rows)


def act() -> str:
    rows = [
        [row["device"], short(row["script"]), row["states"], row["candidates"], f"{row['ms']:.2f}",
         f"{row['ms'] / row['states']:.2f}"]
        for row in rows_of("act")
    ]  # fmt: skip
    return table("device | script | states | candidates | ms | ms per state, s per 1000 steps", rows)


def paper() -> str:
    rows = [
        [row["device"], short(row["script"]),
         ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in row["of_each_phase"]),
         row["paper_train_s_per_1k_steps"] or "", f"{row['hours_of_all_steps']:.1f}",
         f"{row['inference_s_per_trajectory']:.2f} ({row['candidates']})",
         f"{row['inference_s_one_candidate']:.2f}", row["paper_inference_s_per_trajectory"] or ""]
        for row in rows_of("paper")
    ]  # fmt: skip
    head = (
        "device | script | training, s per 1000 steps | paper's | hours of all steps | "
        "s per trajectory (candidates) | with 1 candidate | paper's"
    )
    return table(head, rows)


def measures() -> str:
    rows = []
    for file in files_of("*-measures.json"):
        for row in file["rows"]:
            low, high = row["ratio_quartiles"]
            rows.append([row["measure"] + ("" if row["kept"] else " (not kept)"), file["device"], row["mode"],
                         row["predicted"], f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"])  # fmt: skip
    return table("measure | device | mode | predicted | measured (quartiles)", rows)


def startup() -> str:
    rows = [
        [file["device"], row["env_id"], f"{row['s_2000']:.1f}", f"{row['s_1000000']:.1f}",
         f"{row['dataset_mib']:.0f}", f"{row['mib_while_loading']:.0f}"]
        for file in files_of("*-runs.json") for row in file["startup"]
    ]  # fmt: skip
    head = "device | sizes of | s, 2000 transitions | s, a million | MiB of the million | MiB to load it"
    return table(head, rows)


def evaluation() -> str:
    rows = [
        [file["device"], row["evaluation"], f"{row['wall_s']:.0f}",
         f"{row['wall_s'] / file['evaluation'][0]['wall_s']:.2f}", f"{row['train_s']:.0f}",
         f"{row['stood_still_s']:.0f}"]
        for file in files_of("*-runs.json") for row in file["evaluation"]
    ]  # fmt: skip
    return table("device | evaluation | wall s | over none | training s | stood still s", rows)


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
