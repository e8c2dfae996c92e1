"""The README's table of results from the files of finished runs.

    python benchmark/summarize.py benchmark/results/local-hopper-medium

Each folder in the given one is the --run-dir of a finished run, less its checkpoint.pt and model.pt, with
command.txt, and variants.json of benchmark/variants.py if that was made.
"""

import json
import sys
from pathlib import Path

import numpy as np
from report import dataset_score, each, spread

TIMES = {"train_seconds": "training", "eval_seconds": "evaluating"}


def curve(run: Path) -> dict[int, np.ndarray]:
    """The normalised score of each seed at each evaluated step: {step: [seed]}."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "eval/normalized_score" in line]
    steps = sorted({line["step"] for line in lines})
    return {
        step: np.array([x["eval/normalized_score"] for x in lines if x["step"] == step]) for step in steps
    }


def table(results: Path) -> str:
    """Markdown: each run's last score, and the mean over seeds at every evaluation."""
    runs = sorted(path.parent for path in results.glob("*/result.json"))
    env_id = json.loads((runs[0] / "config.json").read_text())["env_id"]
    rows = [
        "| policy | score, mean ± std over seeds | each seed | each seed's best evaluation |",
        "|---|---|---|---|",
        f"| the dataset's mean episode | {dataset_score(env_id):.1f} | | |",
    ]
    notes = []
    for run in runs:
        result = json.loads((run / "result.json").read_text())
        name = run.name.partition("-")[2].replace("-", " ")
        last, best = ([seed[key] for seed in result["seeds"].values()] for key in ("last", "best"))
        rows.append(f"| {name} | {spread(last)} | {each(last)} | {each(best)} |")
        variants = run / "variants.json"
        for variant, scores in json.loads(variants.read_text()).items() if variants.exists() else ():
            means = np.mean(scores, axis=1)
            rows.append(f"| {name}, acting by {variant} | {spread(means)} | {each(means)} | |")
        points = [f"{step // 1000}k: {each(scores)}" for step, scores in curve(run).items()]
        minutes = [f"{result[key] / 60:.0f} min {what}" for key, what in TIMES.items()]
        command = (run / "command.txt").read_text().strip()
        notes.append(
            f"- {name}: `{command}`, {' and '.join(minutes)}. Step, and each seed: {'; '.join(points)}."
        )
    return "\n".join([*rows, "", *notes])


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
