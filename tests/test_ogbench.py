"""OGBench's single-task sets as Minari sets, from small files in its layout."""

import importlib.util
import json

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from helpers import ROOT, SCRIPTS, fork, fork_script, load_script, run_program

from benchmark.data import ogbench as converter

LENGTHS = 6, 1, 9  # transitions of the trajectories
MAZE, CUBE = "antmaze-medium-navigate-singletask-v0", "cube-single-play-singletask-task2-v0"
IDS = {MAZE: "ogbench/ant-maze-medium-navigate-singletask-v0", CUBE: f"ogbench/{CUBE}"}
needs_ogbench = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None,
    reason="ogbench (benchmark/requirements.txt) is not installed",
)


def transitions(obs_dim: int, action_dim: int) -> dict[str, np.ndarray]:
    """As OGBench's loader holds them: the state that a trajectory ends in is no row of its own, and the next
    trajectory starts elsewhere. Masks are 0 within a trajectory, where one starts, and at the end of one."""
    rng, n, ends = np.random.default_rng(0), sum(LENGTHS), np.cumsum(LENGTHS)
    states = [rng.normal(size=(length + 1, obs_dim)).astype(np.float32) for length in LENGTHS]
    masks = np.ones(n, np.float32)
    masks[[2, 3, 6, n - 1]] = 0
    return {
        "observations": np.concatenate([x[:-1] for x in states]),
        "next_observations": np.concatenate([x[1:] for x in states]),
        "actions": rng.uniform(-1, 1, (n, action_dim)).astype(np.float32),
        "terminals": np.isin(np.arange(n), ends - 1).astype(np.float32),
        "rewards": -masks,
        "masks": masks,
    }


def assert_equal(data: list[torch.Tensor], theirs: dict[str, np.ndarray]):
    expected = (theirs["observations"], theirs["actions"], theirs["rewards"], theirs["next_observations"],
                1 - theirs["masks"])  # fmt: skip
    assert len(data) == len(expected)
    for ours, x in zip(data, expected):
        np.testing.assert_array_equal(ours.numpy(), x)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_read_the_transitions_and_no_others(script, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = transitions(5, 2)
    minari.create_dataset_from_buffers(
        "ogbench/test-v0", converter.episodes(data), observation_space=gym.spaces.Box(-np.inf, np.inf, (5,)),
        action_space=gym.spaces.Box(-1, 1, (2,)),
    )  # fmt: skip
    assert_equal(load_script(script).load_dataset("ogbench/test-v0")[0], data)


def test_success_is_the_reward_and_a_seed_gives_the_start():
    class Maze(gym.Env):
        """Draws as OGBench's mazes do, and is done when the action is positive, at a reward of 0."""

        observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            return np.array([np.random.uniform(), self.action_space.sample()[0]]), {}

        def step(self, action):
            success = bool(action[0] > 0)
            return np.zeros(2), success - 1.0, success, False, {"success": success}

    env = converter.Success(Maze())
    starts = [env.reset(seed=seed)[0].tolist() for seed in (2**33, 2**33, 3)]
    assert starts[0] == starts[1]
    assert not set(starts[0]) & set(starts[2])
    assert env.step(np.array([-1.0]))[1:3] == (0.0, False)
    assert env.step(np.array([1.0]))[1:3] == (1.0, True)


def write_npz(path, name: str) -> None:
    """A small file in OGBench's layout: a row for each state, the last one of a trajectory with terminals 1
    and an action that nothing follows. In every third state the task is done."""
    import ogbench

    env = ogbench.make_env_and_datasets(name, env_only=True)
    env.reset(seed=0)
    rng, lengths = np.random.default_rng(0), np.add(LENGTHS, 1)
    n, obs_dim, (action_dim,) = sum(lengths), len(env.reset()[0]), env.action_space.shape
    qpos = rng.normal(size=(n, 30)) + 100
    if name == CUBE:
        qpos[::3, 14:17] = env.unwrapped._data.mocap_pos[0]
    else:
        qpos[::3, :2] = env.unwrapped.cur_goal_xy
    np.savez(path, observations=rng.normal(size=(n, obs_dim)).astype(np.float32),
             actions=rng.uniform(-1, 1, (n, action_dim)).astype(np.float32), qpos=qpos, qvel=qpos,
             terminals=np.concatenate([np.arange(length) == length - 1 for length in lengths]))  # fmt: skip


def convert(home, *argv):
    return fork(
        run_program, "-m", "benchmark.data.ogbench", *map(str, argv), cwd=ROOT, env={"HOME": str(home)}
    )


@needs_ogbench
@pytest.mark.parametrize("name", IDS)
def test_the_command_makes_a_set_that_trains_and_is_evaluated_by_success(name, tmp_path, monkeypatch):
    import ogbench

    file = tmp_path / ".ogbench/data/cube-single-play-v0.npz"  # where the package would download it to
    file.parent.mkdir(parents=True)
    write_npz(file, name)
    file.with_name("cube-single-play-v0-val.npz").write_bytes(file.read_bytes())
    done = convert(tmp_path, name, *(["--file", file] if name == MAZE else []))
    assert done.returncode == 0, done.stderr
    assert f"--env-id {IDS[name]}: {sum(LENGTHS)} transitions" in done.stdout

    monkeypatch.setenv("HOME", str(tmp_path))
    script = load_script(SCRIPTS[0])
    theirs, _ = ogbench.make_env_and_datasets(name, dataset_path=str(file))[1:]
    assert {0.0, 1.0} == set(theirs["masks"])
    data, _ = script.load_dataset(IDS[name])
    assert_equal(data, theirs)

    task = script.load_task(IDS[name])
    assert (task.low, task.high, task.metric) == (0, 1, "Minari score")
    assert task.sizes == (data[0].shape[1], data[1].shape[1])
    env = task.make_env()
    starts = [env.reset(seed=7)[0] for _ in range(2)]
    np.testing.assert_array_equal(*starts)
    assert env.spec.max_episode_steps == gym.spec(env.unwrapped.spec.id).max_episode_steps
    assert env.step(np.zeros(env.action_space.shape))[1] == 0
    if name == CUBE:  # a step from a state that solves the task ends the episode
        env.unwrapped._success = True
    else:
        env.unwrapped.set_xy(env.unwrapped.cur_goal_xy)
    assert env.step(np.zeros(env.action_space.shape))[1:3] == (1, True)

    flags = ["--env-id", IDS[name], "--pretrain-steps", 10, "--train-steps", 10, "--batch-size", 8]
    for episodes in (0, 1):
        run = fork_script(SCRIPTS[0], *flags, "--eval-episodes", episodes, "--eval-candidates", 1,
                          "--run-dir", tmp_path / f"run{episodes}", cwd=tmp_path)  # fmt: skip
        assert run.returncode == 0, run.stderr
        result = json.loads((tmp_path / f"run{episodes}/result.json").read_text())
        assert result["step"] == 20
    assert result["metric"] == "Minari score"
    assert result["seeds"]["1"]["last"] in (0, 100)


@needs_ogbench
def test_a_file_of_another_set_and_other_kinds_of_sets_are_refused(tmp_path):
    write_npz(tmp_path / "small.npz", CUBE)
    for name in (MAZE, "cube-single-play-v0", "visual-cube-single-play-singletask-v0"):
        done = convert(tmp_path, name, "--file", tmp_path / "small.npz")
        assert done.returncode == 1
        assert name in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / ".minari").exists()
