"""Scores of one policy under two engines' masses: writes benchmark/results/physics/ROBOT.json.

    python -m benchmark.physics_scores hopper walker2d halfcheetah

The policy is deterministic behaviour cloning (mean squared error, 3 layers of 256) on local/ROBOT/medium-v0,
data that has today's masses. It is evaluated, on the same seeds of episodes, in gymnasium's -v4 environment
as it stands and with D4RL's masses.
"""

import argparse
import importlib.metadata
import json
import platform
import warnings
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import torch
from torch import nn

from benchmark.d4rl_envs import with_d4rl_masses

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark" / "results" / "physics"
ROBOTS = {  # environment, and D4RL's returns that score 0 and 100
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
}


def clone(robot: str, steps: int) -> nn.Module:
    """The policy, from observations [n, obs] to actions [n, action] in [-1, 1]."""
    episodes = list(minari.MinariDataset(ROOT / f"datasets/local/{robot}/medium-v0/data").iterate_episodes())
    obs = np.concatenate([episode.observations[:-1] for episode in episodes])
    obs = torch.as_tensor(obs, dtype=torch.float32)
    action = torch.as_tensor(np.concatenate([episode.actions for episode in episodes]), dtype=torch.float32)
    torch.manual_seed(0)
    sizes = [obs.shape[1], 256, 256, 256]
    layers = [layer for n, m in zip(sizes, sizes[1:]) for layer in (nn.Linear(n, m), nn.ReLU())]
    policy = nn.Sequential(*layers, nn.Linear(256, action.shape[1]), nn.Tanh())
    optimizer = torch.optim.Adam(policy.parameters(), 3e-4)
    for _ in range(steps):
        rows = torch.randint(len(obs), (256,))
        loss = nn.functional.mse_loss(policy(obs[rows]), action[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


@torch.no_grad()
def returns(env: gym.Env, policy: nn.Module, episodes: int) -> list[float]:
    """The sum of rewards of each episode; the episodes' seeds count from 0."""
    sums = []
    for seed in range(episodes):
        obs, done, total = env.reset(seed=seed)[0], False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(
                policy(torch.as_tensor(obs, dtype=torch.float32)).numpy()
            )
            done, total = terminated or truncated, total + float(reward)
        sums.append(total)
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("robots", nargs="+", choices=ROBOTS)
    parser.add_argument("--steps", type=int, default=50_000, help="of training")
    parser.add_argument("--episodes", type=int, default=40, help="per environment")
    args = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for robot in args.robots:
        env_id, low, high = ROBOTS[robot]
        policy = clone(robot, args.steps)
        result = {
            "dataset": f"local/{robot}/medium-v0",
            "steps": args.steps,
            "python": platform.python_version(),
        }
        result |= {
            name: importlib.metadata.version(name) for name in ("mujoco", "gymnasium", "torch", "numpy")
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Hopper-v4 is out of date"
            envs = {env_id: gym.make(env_id), "with D4RL's masses": with_d4rl_masses(gym.make(env_id))}
        for name, env in envs.items():
            values = returns(env, policy, args.episodes)
            scores = 100 * (np.array(values) - low) / (high - low)
            error = scores.std(ddof=1) / len(scores) ** 0.5
            result[name] = {
                "mass": float(env.unwrapped.model.body_mass.sum()),
                "score": float(scores.mean()),
                "standard_error": float(error),
                "returns": values,
            }
            print(f"{robot} {name}: score {scores.mean():.1f} ± {error:.1f}", flush=True)
        (RESULTS / f"{robot}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
