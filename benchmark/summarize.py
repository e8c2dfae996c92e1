"""The README's table of results from the files of finished runs.

    python benchmark/summarize.py benchmark/results/local-hopper-medium

Each folder in the given one is the --run-dir of a finished run, less its checkpoint.pt and model.pt.
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def dataset_score(env_id: str) -> float:
    """The normalised score of the mean episode of an embedded dataset."""
    folder = ROOT / "datasets" / env_id / "data"
    reference = json.loads((folder / "metadata.json").read_text())
    low, high = reference["ref_min_score"], reference["ref_max_score"]
    with h5py.File(folder / "main_data.hdf5", "r") as file:
        returns = [float(np.sum(episode["rewards"])) for episode in file.values()]
    return 100 * (np.mean(returns) - low) / (high - low)


def curve(run: Path) -> dict[int, np.ndarray]:
    """The normalised score of each seed at each evaluated step: {step: [seed]}."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "eval/normalized_score" in line]
    steps = sorted({line["step"] for line in lines})
    return {
        step: np.array([x["eval/normalized_score"] for x in lines if x["step"] == step]) for step in steps
    }


def table(results: Path) -> str:
    """Markdown: one row per run, then the mean over seeds at every evaluation."""
    runs = sorted(path.parent for path in results.glob("*/result.json"))
    env_id = json.loads((runs[0] / "config.json").read_text())["env_id"]
    rows = [
        "| policy | last score, mean ± std over seeds | each seed, last | each, best | minutes | command |",
        "|---|---|---|---|---|---|",
        f"| the dataset's mean episode | {dataset_score(env_id):.1f} | | | | |",
    ]
    curves = []
    for run in runs:
        result = json.loads((run / "result.json").read_text())
        last, best = ([seed[key] for seed in result["seeds"].values()] for key in ("last", "best"))
        minutes = (result["train_seconds"] + result["eval_seconds"]) / 60
        command = (run / "command.txt").read_text().strip()
        each = [", ".join(f"{x:.1f}" for x in values) for values in (last, best)]
        name = run.name.partition("-")[2].replace("-", " ")
        spread = f"{np.mean(last):.1f} ± {np.std(last, ddof=1):.1f}"
        rows.append(f"| {name} | {spread} | {each[0]} | {each[1]} | {minutes:.0f} | `{command}` |")
        seen = curve(run).items()
        points = [f"{step // 1000}k: {x.mean():.0f} ({x.min():.0f} to {x.max():.0f})" for step, x in seen]
        curves.append(f"- {name}: {', '.join(points)}")
    return "\n".join(
        [*rows, "", "Mean (least to greatest seed) at each evaluation, step: score:", "", *curves]
    )


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
