"""How far physics is from D4RL's, in one step and in a policy's score: writes benchmark/results/physics/.

    python -m benchmark.envs.physics                                         # steps.json
    python -m benchmark.envs.physics --scores hopper walker2d halfcheetah    # hopper.json, ...

steps.json: how far positions and velocities are, after one step of the environment, from what MuJoCo 2.1.0
made of the same state and control (tests/mujoco210.npz; record_mujoco210.py says how and what).

ROBOT.json: scores of one policy under two engines' masses. The policy is deterministic behaviour cloning
(mean squared error, 3 layers of 256) on local/ROBOT/medium-v0, data that has today's masses. It is evaluated,
on the same seeds of episodes, in Gymnasium's -v4 environment as it stands and with D4RL's masses.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import minari
import mujoco
import numpy as np
import torch
from torch import nn

from dtql_gaussian import D4RL_RETURNS, ROBOTS, with_d4rl_masses

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmark/results/physics"
STEPS = {  # environment that has the model, and simulation steps in one step of it
    "hopper": ("Hopper-v4", 4), "walker2d": ("Walker2d-v4", 4), "halfcheetah": ("HalfCheetah-v4", 5),
    "antmaze": ("antmaze-umaze-v2", 5), "pen": ("pen-human-v1", 5), "hammer": ("hammer-human-v1", 5),
    "door": ("door-human-v1", 5), "relocate": ("relocate-human-v1", 5), "kitchen": ("kitchen-mixed-v0", 40),
}  # fmt: skip
KETTLE = [*range(23, 30), *range(53, 59)]  # in the kitchen's state: 30 positions, 29 velocities


# ------------------------------------------------------------------------------------------------- one step
def make(name: str) -> gym.Env:
    """The innermost environment (model, data, do_simulation) that scores of this name come from."""
    gym.logger.min_level = gym.logger.ERROR  # "Hopper-v4 is out of date"
    if name in ROBOTS:
        return with_d4rl_masses(gym.make(ROBOTS[name])).unwrapped
    env = gym.make(f"benchmark.envs:{STEPS[name][0]}", disable_env_checker=True).unwrapped
    return getattr(env, "robot_env", env)


def errors(recorded: dict, name: str, simulation: gym.Env) -> np.ndarray:
    """[episodes, steps, nq + nv]: how far qpos and qvel after each single step are from the recorded ones."""
    state, control = recorded[f"{name}/state"], recorded[f"{name}/control"]
    model, data = simulation.model, simulation.data
    result = np.zeros_like(state[:, 1:])
    for index in np.ndindex(control.shape[:2]):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = np.split(state[index], [model.nq])
        simulation.do_simulation(control[index], STEPS[name][1])
        result[index] = np.concatenate([data.qpos, data.qvel]) - state[index[0], index[1] + 1]
    return np.abs(result)


def compare_steps() -> dict:
    """By model: the number of steps, and the largest error of a position and of a velocity."""
    recorded, result = dict(np.load(ROOT / "tests/mujoco210.npz")), {"mujoco": mujoco.__version__}
    for name in STEPS:
        simulation = make(name)
        error = errors(recorded, name, simulation)
        steps, largest = error[..., 0].size, error.max(axis=(0, 1))
        is_kettle = np.isin(np.arange(len(largest)), KETTLE if name == "kitchen" else [])
        is_position = np.arange(len(largest)) < simulation.model.nq
        for part, of in {name: ~is_kettle, "kettle": is_kettle}.items():
            if of.any():
                position, velocity = largest[of & is_position].max(), largest[of & ~is_position].max()
                result[part] = {"steps": steps, "position": position, "velocity": velocity}
    return result


# -------------------------------------------------------------------------------------------------- a score
def clone(robot: str, steps: int) -> nn.Module:
    """The policy, from observations [n, obs] to actions [n, action] in [-1, 1]."""
    episodes = list(minari.MinariDataset(ROOT / f"datasets/local/{robot}/medium-v0/data").iterate_episodes())
    obs = torch.as_tensor(np.concatenate([x.observations[:-1] for x in episodes]), dtype=torch.float32)
    action = torch.as_tensor(np.concatenate([x.actions for x in episodes]), dtype=torch.float32)
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
            action = policy(torch.as_tensor(obs, dtype=torch.float32)).numpy()
            obs, reward, terminated, truncated, _ = env.step(action)
            done, total = terminated or truncated, total + float(reward)
        sums.append(total)
    return sums


def compare_scores(robot: str, steps: int, episodes: int) -> dict:
    policy, (low, high) = clone(robot, steps), D4RL_RETURNS[robot]
    result = {"dataset": f"local/{robot}/medium-v0", "steps": steps, "python": platform.python_version()}
    result |= {package: version(package) for package in ("mujoco", "gymnasium", "torch", "numpy")}
    for name, env in {ROBOTS[robot]: gym.make(ROBOTS[robot]), "with D4RL's masses": make(robot)}.items():
        values = returns(env, policy, episodes)
        scores = 100 * (np.array(values) - low) / (high - low)
        error = float(scores.std(ddof=1) / len(scores) ** 0.5)
        mass = float(env.unwrapped.model.body_mass.sum())
        result[name] = {
            "mass": mass,
            "score": float(scores.mean()),
            "standard_error": error,
            "returns": values,
        }
    return result


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--scores", nargs="+", choices=ROBOTS, help="of these robots, in place of steps")
    parser.add_argument("--steps", type=int, default=50_000, help="of training")
    parser.add_argument("--episodes", type=int, default=40, help="per environment")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.scores or ["steps"]:
        result = compare_scores(name, args.steps, args.episodes) if args.scores else compare_steps()
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {RESULTS / name}.json")


if __name__ == "__main__":
    main()
