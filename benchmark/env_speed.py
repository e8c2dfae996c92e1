"""How fast each family of environments steps, and the scripts evaluate in it, on one core and on all.

    pip install -r benchmark/requirements.txt
    python -m benchmark.env_speed

"random" steps one environment with random actions. "1 core" is the evaluation of dtql_gaussian.py in place,
on one thread, "n cores" that with n --eval-workers; once with a single action per state and once with its
choice among 1024 by Q. The policy has its initial weights. Steps per second count all episodes together. The
last column is what an evaluation as in the papers takes on all cores: 5 seeds with 100 episodes each (10 in
gym tasks) of full length, choosing among 1024.
"""

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import torch

import dtql_gaussian as script
from benchmark.speed import ROOT, processor, slug, versions

NAMES = ["hopper-medium-v2", "walker2d-medium-v2", "halfcheetah-medium-v2", "antmaze-umaze-v2",
         "pen-human-v1", "kitchen-mixed-v0"]  # fmt: skip


def random_steps(env: gym.Env, seconds: float) -> float:
    """Steps per second with random actions, resets included."""
    env.action_space.seed(0)
    env.reset(seed=0)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def evaluation_steps(name: str, workers: int, candidates: int, episodes: int) -> tuple[float, float]:
    """Steps per second of one evaluation, after the processes have started and loaded their modules; and the
    mean length of its episodes."""
    args = script.Args(env_id=name, device="cpu", eval_workers=workers, eval_candidates=candidates,
                       eval_episodes=episodes)  # fmt: skip
    device = script.resolve(args)
    task = script.load_task(name)
    env = task.make_env()
    agent = script.Agent(env.observation_space.shape[0], [1.0] * env.action_space.shape[0], args, device)
    config = {"script": "dtql_gaussian.py", "obs_dim": env.observation_space.shape[0]}
    evaluator = script.Evaluator(args, task)
    with tempfile.TemporaryDirectory() as folder:
        script.save_model(path := Path(folder) / "model.pt", agent, config)
        for _ in range(2):  # the first is a warm-up
            start = time.perf_counter()
            evaluator.start(path)
            _, lengths = evaluator.finish()
            seconds = time.perf_counter() - start
    return lengths.sum() / seconds, lengths.mean()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    torch.set_num_threads(1)
    n = args.workers
    output = ROOT / "benchmark" / "results" / "speed" / f"{slug(processor())}-environments-{n}-cores.json"
    source = versions(torch.device("cpu")) | {"device": f"{processor()}, {n} cores"}
    rows = []
    print(f"{processor()}, steps per second")
    print(f"| name | random | 1 action, 1 core | 1 action, {n} cores | 1024, 1 core | 1024, {n} cores | s |")
    print("|---|---|---|---|---|---|---|")
    for name in NAMES:
        env = script.load_task(name).make_env()
        row = {"name": name, "random": random_steps(env, 3.0)}
        _, length = evaluation_steps(name, 0, 1, n)
        for candidates, steps in ((1, 20_000), (1024, 1_000)):
            episodes = max(n, math.ceil(steps / length))
            for workers in (0, n):
                rate, _ = evaluation_steps(name, workers, candidates, episodes)
                row[f"{candidates} candidates, {workers or 1} cores"] = rate
        *_, test_episodes = script.TASKS[name]
        row["seconds"] = 5 * test_episodes * env.spec.max_episode_steps / rate
        rows.append(row)
        output.write_text(json.dumps(source | {"rows": rows}, indent=1) + "\n")
        print(
            "| " + " | ".join(x if isinstance(x, str) else f"{x:.0f}" for x in row.values()) + " |",
            flush=True,
        )
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
