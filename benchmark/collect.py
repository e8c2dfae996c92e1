"""Make a Minari dataset pair `{prefix}/medium-v0` and `{prefix}/medium-replay-v0` from nothing.

CrossQ (Bhatt et al. 2024, the implementation of sbx-rl) trains on the environment. `medium` is stochastic
rollouts of the policy after `--medium-steps` environment steps; `medium-replay` is everything that training
saw up to `--replay-steps`. The sets under `datasets/local/` came out of this recipe:

    pip install -r benchmark/requirements.txt
    python -m benchmark.collect --env-id Hopper-v4 --prefix mine/hopper
    python dtql_gaussian.py --env-id mine/hopper/medium-v0
"""

import os
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import tyro
from minari.data_collector import EpisodeBuffer

REFERENCE_SCORES = {  # (min, max) of D4RL's infos.py: a score of 100 means D4RL's expert
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
}


@dataclass
class Args:
    env_id: str = "Hopper-v4"
    """Gymnasium environment with a Box action space"""
    prefix: str = "mine/hopper"
    """the two sets become {prefix}/medium-v0 and {prefix}/medium-replay-v0"""
    medium_steps: int = 45_000
    """environment steps before the policy is taken as the medium one (local/: 45k, 60k, 55k)"""
    replay_steps: int = 64_000
    """environment steps whose replay buffer is stored (local/: 64k, 69k, 56k)"""
    transitions: int = 100_000
    """least number of transitions in the medium set; the last episode is completed"""
    seed: int = 1
    """seed of training; rollouts are reset with 10000, 10001, ..."""


def episode_buffer(observations, actions, rewards, terminations, truncations) -> EpisodeBuffer:
    """One episode of T steps from sequences of T (observations: T + 1) rows, floats stored as float32."""
    return EpisodeBuffer(
        observations=np.asarray(observations, np.float32),  # [T + 1, obs_dim]
        actions=np.asarray(actions, np.float32),  # [T, action_dim]
        rewards=np.asarray(rewards, np.float32),
        terminations=np.asarray(terminations, bool),
        truncations=np.asarray(truncations, bool),
    )


def rollouts(env: gym.Env, act, transitions: int) -> list[EpisodeBuffer]:
    """Whole episodes of `act(observation)` until there are at least `transitions` steps."""
    episodes, steps = [], 0
    while steps < transitions:
        observation, _ = env.reset(seed=10_000 + len(episodes))
        rows, observations, done = [], [observation], False
        while not done:
            action = act(observation)
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
    """Write the episodes as a compressed Minari dataset with D4RL's reference scores; print what is in it."""
    name = env_id.partition("-")[0]
    reference = dict(zip(("ref_min_score", "ref_max_score"), REFERENCE_SCORES.get(name, ())))
    dataset = minari.create_dataset_from_buffers(
        dataset_id, episodes, env=env_id, description=description, **reference, **metadata
    )
    compress(dataset.storage.data_path / "main_data.hdf5")
    returns = [np.sum(e.rewards) for e in episodes]
    steps = sum(len(e.rewards) for e in episodes)
    print(
        f"{dataset_id}: {steps} transitions, {len(episodes)} episodes, "
        f"return {np.mean(returns):.0f} ± {np.std(returns):.0f}"
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


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    from sbx import CrossQ  # jax loads only when something is trained

    os.environ.setdefault("MINARI_DATASETS_PATH", str(Path(__file__).resolve().parents[1] / "datasets"))
    env = gym.make(args.env_id)
    low, high = env.action_space.low, env.action_space.high
    if not (np.all(low == -1) and np.all(high == 1)):
        raise SystemExit(
            f"{args.env_id}: Stable-Baselines3 stores actions in [-1, 1], the environment's differ"
        )
    model = CrossQ("MlpPolicy", env, learning_starts=2000, seed=args.seed, buffer_size=args.replay_steps)
    how = f"CrossQ (sbx-rl) on {args.env_id}, seed {args.seed}"
    model.learn(args.medium_steps, progress_bar=False)
    episodes = rollouts(
        gym.make(args.env_id), lambda obs: model.predict(obs, deterministic=False)[0], args.transitions
    )
    save(
        f"{args.prefix}/medium-v0", args.env_id, episodes,
        f"Stochastic rollouts of {how}, after {args.medium_steps} steps.", algorithm_name="CrossQ",
    )  # fmt: skip
    model.learn(args.replay_steps - args.medium_steps, reset_num_timesteps=False)
    save(
        f"{args.prefix}/medium-replay-v0", args.env_id, replay_episodes(model.replay_buffer),
        f"Replay buffer of {how}, up to step {args.replay_steps}.", algorithm_name="CrossQ",
    )  # fmt: skip


if __name__ == "__main__":
    main()
