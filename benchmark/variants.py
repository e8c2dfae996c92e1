"""Score a trained policy when it acts without noise, and by one sample, in place of ranking candidates by Q.

    python benchmark/variants.py dtql_gaussian RUN_DIR      # writes RUN_DIR/variants.json

It separates what the policy learned from what the choice among candidates adds or costs.
"""

import importlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(script_name: str, run_dir: Path) -> None:
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


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
