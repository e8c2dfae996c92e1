"""The entropy of a trained Gaussian policy: how wide it is where the data is.

    python benchmark/entropy.py RUN_DIR      # of dtql_gaussian.py; writes RUN_DIR/entropy.json

E_s[H(π(.|s))] in nats, over states of the run's dataset, of the actions themselves: that of the Gaussian plus
the mean of log |da/dz| for a = a_max tanh(z). -inf would be a policy in one point; log 2 for each dim uniform
actions in [-1, 1], the most there is.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dtql_gaussian as script  # noqa: E402

STATES = 10_000  # of the dataset at most, at equal distances
SAMPLES = 16  # actions for each of them


def entropy(mean: Tensor, std: Tensor, max_action: Tensor, noise: Tensor) -> Tensor:
    """Of a_max tanh(N(mean, std²)), all [..., action_dim]; noise [sample, ..., action_dim]. [...]"""
    gaussian = std.log() + 0.5 * math.log(2 * math.pi * math.e)
    z = mean + std * noise
    log_slope = max_action.log() + 2 * (math.log(2) - z - F.softplus(-2 * z))  # log(a_max (1 - tanh² z))
    return (gaussian + log_slope.mean(dim=0)).sum(dim=-1)


def main(run_dir: Path) -> None:
    device = torch.device("cpu")
    saved = script.load_model(run_dir / "model.pt", device)
    args = script.saved_args(saved["config"])
    args.device = "cpu"
    agent = script.load_agent(saved, args, device)
    dataset = script.load_dataset(args.env_id)
    n = len(dataset.transitions)
    rows = np.linspace(0, n - 1, min(n, STATES)).astype(int)
    obs = torch.from_numpy(dataset.transitions[rows, : dataset.dims[0]]).expand(args.num_seeds, -1, -1)
    with torch.no_grad():
        mean, std = agent.policy(obs)
        noise = torch.randn(SAMPLES, *mean.shape, generator=torch.Generator().manual_seed(0))
        values = entropy(mean, std, agent.max_action, noise).mean(dim=1)
    of_seeds = dict(zip(script.seeds_of(args), values.tolist()))
    script.write_json(run_dir / "entropy.json", {"unit": "nats", "states": obs.shape[1], "seeds": of_seeds})
    print(f"entropy {', '.join(f'{x:.2f}' for x in of_seeds.values())} nats")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("entropy.py: takes one argument, the run directory of a dtql_gaussian.py", file=sys.stderr)
        raise SystemExit(2)
    main(Path(sys.argv[1]))
