"""The 2D bandits of DTQL (arXiv 2405.19690) and SRPO (arXiv 2310.07297), as pictures and as numbers.

python -m benchmark.bandit.run                               # every panel, on one core
python -m benchmark.bandit.run --panels theorem1 far         # these alone
"""

import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from . import dtql_panels, srpo_panels
from .toy import save_picture

ROOT = Path(__file__).resolve().parents[2]
PANELS = dtql_panels.PANELS | srpo_panels.PANELS
OVERVIEW = "near", "swiss_far"  # panels of the README's picture


@dataclass
class Args:
    panels: tuple[str, ...] = tuple(PANELS)  # names of the panels to make
    seeds: int = 3  # how many; they train together
    out: Path = ROOT / "benchmark/results/bandit"  # bandit.json, the panels made beside the others, and *.png


def verdict(seen: list[bool]) -> str:
    """Of a claim, seen or not with each seed."""
    return "yes" if all(seen) else f"{sum(seen)} of {len(seen)} seeds" if any(seen) else "no"


def rounded(x):
    """Floats to four significant digits."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return float(f"{x:.4g}") if isinstance(x, float) else x


def report(name: str, results: dict, seeds: int, commit: str, seconds: float) -> dict:
    """A panel's entry in bandit.json."""
    panel = PANELS[name]
    rows = [rounded(panel.measure(results, i)) for i in range(seeds)]
    return {
        "figure": panel.figure,
        "claims": [{"claim": x, "seen": verdict([test(row) for row in rows])} for x, test in panel.claims],
        "commit": commit,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one core",
        "seconds": round(seconds, 1),  # less where an earlier panel trained what this one needs
        "seeds": [{"seed": i + 1} | row for i, row in enumerate(rows)],
    }


def table(panels: dict) -> str:
    """What docs/bandit.md shows: each claim, then each panel's numbers of every seed."""
    lines = ["| panel | figure | claim | seen |", "|---|---|---|---|"]
    for name, panel in panels.items():
        lines += [f"| {name} | {panel['figure']} | {x['claim']} | {x['seen']} |" for x in panel["claims"]]
    lines += ["", "| panel | of | seeds 1, 2, ... |", "|---|---|---|"]
    for name, panel in panels.items():
        for key in [key for key in panel["seeds"][0] if key != "seed"]:
            groups = [row[key] if isinstance(row[key], dict) else {key: row[key]} for row in panel["seeds"]]
            numbers = (f"{label} {', '.join(f'{x[label]:.3g}' for x in groups)}" for label in groups[0])
            lines.append(f"| {name} | {key} | {'; '.join(numbers)} |")
    return "\n".join(lines)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if unknown := set(args.panels) - set(PANELS):
        sys.exit(f"no panel {', '.join(unknown)}; there are {', '.join(PANELS)}")
    torch.set_num_threads(1)  # with networks of this size a second thread waits for the first
    path, results = args.out / "bandit.json", {}
    commit = subprocess.getoutput(f"git -C '{ROOT}' describe --always --dirty --exclude='*'")
    for name in tqdm(args.panels, unit="panel"):
        start = time.process_time()
        results[name] = PANELS[name].run(args.seeds)
        entry = report(name, results[name], args.seeds, commit, time.process_time() - start)
        save_picture(PANELS[name].draw(results[name]), args.out / f"{name}.png")
        panels = (json.loads(path.read_text()) if path.exists() else {}) | {name: entry}
        panels = {name: panels[name] for name in PANELS if name in panels}
        path.write_text(json.dumps(panels, indent=1) + "\n")
        for claim in entry["claims"]:
            tqdm.write(f"{name}: {claim['claim']}: {claim['seen']}")
    if results.keys() >= set(OVERVIEW):
        rows = [(*dtql_panels.COLUMNS[name], results[name]) for name in OVERVIEW]
        save_picture(dtql_panels.draw_policies(rows), args.out / "overview.png")
    print(table(json.loads(path.read_text())))
    print(f"wrote {path} and its pictures")


if __name__ == "__main__":
    main()
