"""Make Minari datasets from nothing, by a policy trained here or by a scripted controller.

`--policy crossq`: CrossQ (Bhatt et al. 2024, the implementation of sbx-rl) trains on the environment.
`{prefix}/medium-v0` is stochastic rollouts of the policy after `--medium-steps` environment steps,
`{prefix}/medium-replay-v0` everything that training saw up to `--replay-steps`. The sets under
`datasets/local/` came out of this recipe:

    pip install -r benchmark/requirements.txt
    python -m benchmark.data.collect --env-id Hopper-v4 --prefix mine/hopper
    python dtql_gaussian.py --env-id mine/hopper/medium-v0

`--policy controller`: the controller of controllers.py beside this file for the AntMaze, pen, kitchen or
Reacher acts, with noise. `{prefix}/{kind}-v0` is its rollouts; nothing is trained:

    pip install -r benchmark/requirements.txt
    python -m benchmark.data.collect --policy controller --env-id antmaze-umaze-v2 --prefix mine/antmaze-umaze
    python dtql_gaussian.py --env-id mine/antmaze-umaze/controller-v0

The scripts' default, `local/reacher/wander-v0`, is

    python -m benchmark.data.collect --policy controller --env-id Reacher-v5 --prefix local/reacher \\
        --kind wander --transitions 50000
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import h5py
import minari
import numpy as np
import tyro
from minari.data_collector import EpisodeBuffer

from benchmark.data.controllers import controller_for
from dtql_gaussian import D4RL_RETURNS

RETURNS = D4RL_RETURNS | {  # that score 0 and 100
    "reacher": (-128.5, -27.2),  # ours, with the weight below: random actions, and a controller of the target
}
OPTIONS = {"reacher": {"reward_dist_weight": 10.0}}  # so that the distance counts more than the torques


@dataclass
class Args:
    policy: Literal["crossq", "controller"] = "crossq"
    """who acts: a policy trained here, or the scripted controller of an AntMaze, pen, kitchen or Reacher"""
    env_id: str = "Hopper-v4"
    """Gymnasium environment with actions in [-1, 1], or a name of benchmark/envs/d4rl.py"""
    prefix: str = "mine/hopper"
    """the sets become {prefix}/medium-v0 and {prefix}/medium-replay-v0, or {prefix}/{kind}-v0"""
    kind: str = "controller"
    """controller: what the set is called"""
    transitions: int = 100_000
    """least number of transitions in a set of rollouts; the last episode is completed"""
    seed: int = 1
    """seed of training, or of the controller's choices; rollouts are reset with 10000, 10001, ..."""
    medium_steps: int = 45_000
    """crossq: environment steps before medium (local/: hopper 45k, walker2d 60k, halfcheetah 55k)"""
    replay_steps: int = 64_000
    """crossq: environment steps whose replay buffer is stored (local/hopper: 64k)"""


def family(env_id: str) -> str:
    return env_id.partition("-")[0].lower()


def make(env_id: str) -> gym.Env:
    return gym.make(env_id, **OPTIONS.get(family(env_id), {}))


def episode_buffer(observations, actions, rewards, terminations, truncations) -> EpisodeBuffer:
    """One episode of T steps from sequences of T (observations: T + 1) rows, floats stored as float32."""
    return EpisodeBuffer(
        observations=np.asarray(observations, np.float32),  # [T + 1, obs_dim]
        actions=np.asarray(actions, np.float32),  # [T, action_dim]
        rewards=np.asarray(rewards, np.float32),
        terminations=np.asarray(terminations, bool),
        truncations=np.asarray(truncations, bool),
    )


def rollouts(env: gym.Env, start, transitions: int) -> list[EpisodeBuffer]:
    """Whole episodes until there are at least `transitions` steps.

    start(info), with what an episode's reset returned, returns its policy: act(observation) is an action.
    """
    episodes, steps = [], 0
    while steps < transitions:
        observation, info = env.reset(seed=10_000 + len(episodes))
        act = start(info)
        rows, observations, done = [], [observation], False
        while not done:
            action = np.asarray(act(observation), np.float32)  # as it will be stored
            observation, reward, terminated, truncated, _ = env.step(action)
            rows.append((action, reward, terminated, truncated))
            observations.append(observation)
            done = terminated or truncated
        episodes.append(episode_buffer(observations, *zip(*rows)))
        steps += len(rows)
    return episodes


def replay_episodes(buffer) -> list[EpisodeBuffer]:
    """The whole episodes in a Stable-Baselines3 buffer of one environment, without an unfinished last one."""
    size = buffer.size()
    done, truncated = buffer.dones[:size, 0].astype(bool), buffer.timeouts[:size, 0].astype(bool)
    ends = np.flatnonzero(done) + 1
    episodes = []
    for start, end in zip(np.concatenate([[0], ends[:-1]]), ends):
        rows = slice(start, end)
        final = buffer.next_observations[end - 1 : end, 0]
        observations = np.concatenate([buffer.observations[rows, 0], final])
        actions, rewards = buffer.actions[rows, 0], buffer.rewards[rows, 0]
        terminations = done[rows] & ~truncated[rows]
        episodes.append(episode_buffer(observations, actions, rewards, terminations, truncated[rows]))
    return episodes


def save(dataset_id: str, env_id: str, episodes: list[EpisodeBuffer], description: str, **metadata) -> None:
    """Write the episodes as a compressed Minari dataset with its reference scores; print what is in it."""
    returns_of_scores = RETURNS.get(family(env_id), ())
    reference = dict(zip(("ref_min_score", "ref_max_score"), returns_of_scores))
    with warnings.catch_warnings(action="ignore"):  # no author, no permanent link to code
        dataset = minari.create_dataset_from_buffers(
            dataset_id, episodes, env=make(env_id), description=description, **reference, **metadata
        )
    compress(dataset.storage.data_path / "main_data.hdf5")
    returns = [np.sum(e.rewards) for e in episodes]
    steps = sum(len(e.rewards) for e in episodes)
    print(
        f"{dataset_id}: {steps} transitions, {len(episodes)} episodes, "
        f"return {np.mean(returns):.2f} ± {np.std(returns):.2f}"
    )


def compress(path: Path) -> None:
    """Rewrite an HDF5 file with gzip, which Minari does not offer and reads all the same."""
    smaller = path.with_suffix(".part")
    with h5py.File(path, "r") as source, h5py.File(smaller, "w", libver="latest") as target:
        target.attrs.update(source.attrs)

        def copy(name: str, item) -> None:
            if isinstance(item, h5py.Dataset):
                new = target.create_dataset(name, data=item[()], compression="gzip", shuffle=True)
            else:
                new = target.create_group(name)
            new.attrs.update(item.attrs)

        source.visititems(copy)
    os.replace(smaller, path)


def collect_crossq(args: Args, env: gym.Env) -> None:
    """Train, and write the medium and the medium-replay set."""
    from sbx import CrossQ  # jax loads only when something is trained

    model = CrossQ("MlpPolicy", env, learning_starts=2000, seed=args.seed, buffer_size=args.replay_steps)
    how = f"CrossQ (sbx-rl) on {args.env_id}, seed {args.seed}"
    model.learn(args.medium_steps, progress_bar=False)
    act = lambda observation: model.predict(observation, deterministic=False)[0]
    save(
        f"{args.prefix}/medium-v0", args.env_id,
        rollouts(make(args.env_id), lambda info: act, args.transitions),
        f"Stochastic rollouts of {how}, after {args.medium_steps} steps.", algorithm_name="CrossQ",
    )  # fmt: skip
    model.learn(args.replay_steps - args.medium_steps, reset_num_timesteps=False)
    save(
        f"{args.prefix}/medium-replay-v0", args.env_id, replay_episodes(model.replay_buffer),
        f"Replay buffer of {how}, up to step {args.replay_steps}.", algorithm_name="CrossQ",
    )  # fmt: skip


def collect_controller(args: Args, env: gym.Env) -> None:
    """Write the set of the environment's scripted controller."""
    controller = controller_for(args.env_id)
    rng = np.random.default_rng(args.seed)
    save(
        f"{args.prefix}/{args.kind}-v0", args.env_id,
        rollouts(env, lambda info: controller(env, info, rng), args.transitions),
        f"Rollouts of controllers.{controller.__name__} on {args.env_id}, seed {args.seed}",
        algorithm_name=controller.__name__,
    )  # fmt: skip


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    os.environ.setdefault("MINARI_DATASETS_PATH", str(Path(__file__).resolve().parents[2] / "datasets"))
    kinds = {"crossq": ("medium-v0", "medium-replay-v0"), "controller": (f"{args.kind}-v0",)}[args.policy]
    there = [kind for kind in kinds if Path(os.environ["MINARI_DATASETS_PATH"], args.prefix, kind).exists()]
    if there:
        raise SystemExit(f"{args.prefix}/{there[0]} is there already; remove it or choose another --prefix")
    env = make(args.env_id)
    low, high = env.action_space.low, env.action_space.high
    if not (np.all(low == -1) and np.all(high == 1)):
        raise SystemExit(f"{args.env_id}: policies here act in [-1, 1], the environment's actions differ")
    {"crossq": collect_crossq, "controller": collect_controller}[args.policy](args, env)


if __name__ == "__main__":
    main()
