"""Score a trained policy when it acts without noise, and by one sample, in place of ranking candidates by Q.

    python benchmark/variants.py dtql_gaussian RUN_DIR      # writes RUN_DIR/variants.json
    python benchmark/variants.py benchmark/results          # prints a table of those below a folder

It separates what the policy learned from what the choice among candidates adds or costs.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark import report, runs


def measure(script_name: str, run_dir: Path) -> None:
    script = importlib.import_module(script_name)
    device = torch.device("cpu")
    saved = script.load_model(run_dir / "model.pt", device)
    args = script.saved_args(saved["config"])
    args.eval_candidates = 1
    agent, task = script.load_agent(saved, args, device), script.load_task(args.env_id)
    sample, scores = agent.policy.sample, {}
    without_noise = "its mean action" if script_name == "dtql_gaussian" else "its action at zero noise"
    for name, scale in ((without_noise, 0.0), ("one sample", 1.0)):
        agent.policy.sample = lambda obs, noise, scale=scale: sample(obs, scale * noise)
        returns, _ = script.evaluate(agent, task.make_env, range(args.eval_episodes))
        scores[name] = task.score(returns).tolist()  # [seed, episode]
        print(name, task.score(returns).mean(axis=1).round(1))
    (run_dir / "variants.json").write_text(json.dumps(scores) + "\n")


def table(folder: Path) -> str:
    """Markdown: the same seeds, acting as in their evaluation, without noise, and by one sample."""
    rows = []
    for comparison in runs.collect(folder):
        for cell in comparison.cells.values():
            for run in cell.runs:
                if (run.path / "variants.json").exists():
                    last = [seed["last"] for seed in run.result["seeds"].values()]
                    variants = json.loads((run.path / "variants.json").read_text())
                    spreads = [report.spread(np.mean(scores, axis=1)) for scores in variants.values()]
                    evaluated = f"{report.spread(last)} ({run.config['eval_candidates']})"
                    rows.append(
                        [cell.setting.label, run.commit[:7], report.each(run.seeds), evaluated, *spreads]
                    )
    header = ["policy", "commit", "seeds", "as evaluated (candidates)", "without noise", "by one sample"]
    return report.markdown_table(header, rows)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(table(Path(sys.argv[1])))
    else:
        measure(sys.argv[1], Path(sys.argv[2]))
