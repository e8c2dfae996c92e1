"""Makes a Minari set of one of OGBench's single-task sets (Park et al., https://arxiv.org/abs/2410.20092).

    python -m benchmark.data.ogbench cube-single-play-singletask-v0
    python dtql_gaussian.py --env-id ogbench/cube-single-play-singletask-v0 --eval-episodes 50

The package `ogbench` (benchmark/requirements.txt) downloads the file to ~/.ogbench/data, and one for
validation that nothing uses, unless --file names it; it cuts the transitions, and gives them the rewards of
the task: 0 in a state that solves it, which is terminal, and in others -1, or -1 for each part that is not
done. Its trajectories go on from such states, and so do the Minari set's: terminations lie within episodes.

The score is OGBench's: the percentage of episodes that end in success. For this the environment to evaluate
in has a reward of its own (Success), another one than the data: returns of the two cannot be compared.

The set is ogbench/NAME, but antmaze is spelt ant-maze: from the rewards of an id with antmaze in it the
scripts subtract 1, and these start from -1 already. Sets of pixels (visual-...) are refused: the scripts
take vectors.
"""

import argparse
import dataclasses
import importlib.metadata
import os
import re

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import WrapperSpec


class Success(gym.Wrapper):
    """Reward 1 for the step that OGBench calls a success, with which an episode ends, and 0 for all others.

    A reset with a seed draws the same start each time: OGBench's mazes draw it from NumPy's global generator
    and by random actions, which seeds do not reach."""

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed is not None:
            np.random.seed(seed % 2**32)
            self.unwrapped.action_space.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray):
        obs, _, terminated, truncated, info = self.env.step(action)
        return obs, float(info["success"]), terminated, truncated, info


def episodes(data: dict[str, np.ndarray]) -> list[minari.data_collector.EpisodeBuffer]:
    """One for each trajectory of transitions as OGBench holds them: `terminals` is 1 at its last one, `masks`
    is 0 where no value comes after the reward."""
    obs, next_obs = data["observations"], data["next_observations"]
    ends = np.flatnonzero(data["terminals"]) + 1
    return [
        minari.data_collector.EpisodeBuffer(
            observations=np.concatenate([obs[i:j], next_obs[j - 1 : j]]),
            actions=data["actions"][i:j],
            rewards=data["rewards"][i:j],
            terminations=data["masks"][i:j] == 0,
            truncations=np.arange(i, j) == j - 1,
        )
        for i, j in zip([0, *ends], ends)
    ]


def convert(name: str, file: str | None = None) -> minari.MinariDataset:
    import ogbench
    from ogbench.relabel_utils import relabel_dataset
    from ogbench.utils import DEFAULT_DATASET_DIR

    if "-singletask" not in name or name.startswith("visual"):
        raise SystemExit(f"{name} is no single-task set of vectors, as cube-single-play-singletask-v0 is")
    env = ogbench.make_env_and_datasets(name, env_only=True)
    if file is None:
        data_name = re.sub(r"-singletask(-task\d)?", "", name)
        ogbench.download_datasets([data_name])
        file = f"{DEFAULT_DATASET_DIR}/{data_name}.npz"
    data = ogbench.load_dataset(os.path.expanduser(file), add_info=True)
    if data["observations"].shape[1:] != env.observation_space.shape:
        raise SystemExit(f"{file} is not of {name}: observations have other sizes")
    relabel_dataset(env.spec.id, env, data)
    success = WrapperSpec("Success", "benchmark.data.ogbench:Success", {})
    return minari.create_dataset_from_buffers(
        f"ogbench/{name.replace('antmaze', 'ant-maze')}", episodes(data), env=env,
        eval_env=dataclasses.replace(env.spec, additional_wrappers=(success,)),
        ref_min_score=0, ref_max_score=1, requirements=[f"ogbench=={importlib.metadata.version('ogbench')}"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="OGBench's, e.g. cube-single-play-singletask-task2-v0")
    parser.add_argument("--file", help="the npz, e.g. cube-single-play-v0.npz; default: downloaded")
    args = parser.parse_args()
    dataset = convert(args.name, args.file)
    spec = dataset.spec
    print(f"--env-id {spec.dataset_id}: {spec.total_steps} transitions in {spec.data_path}")


if __name__ == "__main__":
    main()
