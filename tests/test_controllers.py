"""benchmark/data/controllers.py, and the datasets that benchmark/data/collect.py makes with it."""

import sys

import minari
import numpy as np
import pytest
from helpers import SCRIPTS, load_script
from scipy.sparse import csgraph

from benchmark.data import collect, controllers
from benchmark.envs import d4rl

script = load_script(SCRIPTS[0])
NAMES = ["antmaze-umaze-v2", "pen-human-v1", "kitchen-mixed-v0"]
SEED = 7  # of episodes; a controller of ants or pens does not succeed with every seed


def play(name: str, act=None) -> tuple[np.ndarray, list[dict]]:
    """Rewards and infos of an episode of this policy, by default of the controller."""
    env = script.load_task(name).make_env()
    obs, info = env.reset(seed=SEED)
    act = act or controllers.controller_for(name)(env, info, np.random.default_rng(SEED))
    rewards, infos, done = [], [], False
    while not done:
        obs, reward, terminated, truncated, info = env.step(act(obs))
        rewards.append(reward)
        infos.append(info)
        done = terminated or truncated
    return np.array(rewards), infos


# --------------------------------------------------------------------------------------------------- AntMaze
@pytest.mark.parametrize("maze, moves", [("umaze", 6), ("medium", 10), ("large", 14)])
def test_shortest_paths_are_scipys(maze, moves):
    cells = controllers.free_cells(maze)
    neighbours = np.abs(np.array(cells)[:, None] - np.array(cells)).sum(axis=2) == 1
    lengths = csgraph.shortest_path(neighbours, unweighted=True)
    for target, column in zip(cells, lengths.T):
        steps = controllers.steps_to(target, cells)
        assert [steps[cell] for cell in cells] == column.tolist()
    (goal,) = controllers.cell_centers(maze, "G")
    assert controllers.steps_to(controllers.cell_of(goal), cells)[0, 0] == moves


@pytest.mark.parametrize("yaw", [0.0, 2.5])
@pytest.mark.parametrize("direction", np.arange(8) * np.pi / 4)
def test_the_gait_walks_where_it_is_told_whichever_way_the_ant_faces(direction, yaw, monkeypatch):
    monkeypatch.setitem(d4rl.MAZES, "hall", "##### #...# #.S.# #..G# #####")
    ant, gait = d4rl.AntMaze("hall", redraw_goal=True), controllers.AntGait()
    ant.reset(seed=SEED)
    qpos = ant.init_qpos.copy()
    qpos[3:7] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
    ant.set_state(qpos, ant.init_qvel)
    obs = ant.state_vector()
    for step in range(40):
        obs, *_ = ant.step(gait.action(obs, step, direction))
    forward = np.array([np.cos(direction), np.sin(direction)])
    assert obs[:2] @ forward > 2.5  # metres in 4 s
    assert abs(obs[:2] @ [-forward[1], forward[0]]) < 1


def test_the_ant_walks_a_shortest_path_from_cell_to_cell(monkeypatch):
    monkeypatch.setattr(controllers.AntController, "GOAL_SHARE", 1.0)
    env = script.load_task("antmaze-medium-play-v2").make_env()
    obs, info = env.reset(seed=SEED)
    controller = controllers.AntController(env, info, np.random.default_rng(SEED))
    cells, terminated = [controller.cell], False
    while not terminated:
        obs, _, terminated, truncated, _ = env.step(controller(obs))
        assert not truncated
        cells += [controller.cell] * (controller.cell != cells[-1])
    assert (np.abs(np.diff(cells, axis=0)).sum(axis=1) == 1).all()
    assert len(cells) - 1 in (9, 10)  # the goal can be reached before its cell's centre is near


# ----------------------------------------------------------------------------------------- reward and success
@pytest.mark.parametrize("name", NAMES)
def test_a_controller_scores_above_0(name):
    rewards, _ = play(name)
    assert rewards.sum() > script.load_task(name).low


@pytest.mark.parametrize("act, solved", [(None, True), (lambda obs: np.zeros(8), False)])
def test_antmazes_return_is_1_exactly_if_its_last_step_is_a_success(act, solved):
    rewards, infos = play("antmaze-umaze-v2", act)
    assert rewards.tolist() == [info["success"] for info in infos]
    assert rewards.sum() == infos[-1]["success"] == solved


@pytest.mark.parametrize("name", ["kitchen-partial-v0", "kitchen-mixed-v0"])
def test_kitchens_return_is_the_number_of_tasks_done(name):
    rewards, infos = play(name)
    assert rewards.tolist() == [len(info["step_task_completions"]) for info in infos]
    assert rewards.sum() == len(set(infos[-1]["episode_task_completions"])) >= 2


def test_pens_reward_has_the_bonus_exactly_at_success():
    rewards, infos = play("pen-human-v1")
    assert (rewards > 50).tolist() == [info["success"] for info in infos]
    assert max(rewards) > 50


# ---------------------------------------------------------------------------------------------- the data
@pytest.mark.parametrize("name", NAMES)
def test_a_script_loads_what_is_collected(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    flags = ["--policy", "controller", "--env-id", name, "--prefix", f"mine/{name}", "--transitions", "1"]
    monkeypatch.setattr(sys, "argv", ["collect", *flags])
    collect.main()
    dataset_id = f"mine/{name}/controller-v0"
    (episode,) = minari.MinariDataset(tmp_path / dataset_id / "data").iterate_episodes()

    (data, _), task, d4rl = (
        script.load_dataset(dataset_id),
        script.load_task(dataset_id),
        script.load_task(name),
    )
    assert f"{len(data[0])} transitions, 1 episodes" in capsys.readouterr().out
    assert (task.sizes, task.low, task.high) == (d4rl.sizes, d4rl.low, d4rl.high)
    assert task.metric == "Minari score"
    env = task.make_env()

    # Its actions, in the environment that the script evaluates in, give the transitions that it trains on.
    rows = []
    obs, _ = env.reset(seed=10_000)
    for action in episode.actions:
        next_obs, reward, terminated, truncated, _ = env.step(action)
        reward = script.adjust_reward(dataset_id, reward, None)
        rows.append([*obs, *action, reward, *next_obs, terminated])
        obs = next_obs
    assert terminated or truncated
    loaded = np.column_stack([x.numpy() for x in data])
    np.testing.assert_allclose(loaded, np.array(rows), rtol=1e-5, atol=1e-5)


def test_only_four_families_have_a_controller():
    with pytest.raises(SystemExit, match="Hopper-v4: no controller"):
        controllers.controller_for("Hopper-v4")


# --------------------------------------------------------------------------------------------------- Reacher
def reacher_returns(start, episodes: int = 200) -> np.ndarray:
    """Of the policy that start(obs) returns at each first observation."""
    env, returns = collect.make("Reacher-v5"), np.zeros(episodes)
    for i in range(episodes):
        obs, _ = env.reset(seed=i)
        act, done = start(obs), False
        while not done:
            obs, reward, _, done, _ = env.step(act(obs))
            returns[i] += reward
    return returns


def test_reachers_references_are_random_actions_and_the_straight_way():
    rng = np.random.default_rng(0)

    def straight(obs):
        controller = controllers.ReacherController(None, {}, rng)
        controller.NOISE, controller.gain, controller.steps_left = 0.0, 0.5, 50
        controller.wanted = controller.angles_at(obs[4:6])
        return controller

    for start, reference in zip(
        (lambda obs: lambda obs: rng.uniform(-1, 1, 2), straight), collect.RETURNS["reacher"]
    ):
        returns = reacher_returns(start)
        assert abs(returns.mean() - reference) < 4 * returns.std() / len(returns) ** 0.5


def test_the_wandering_arm_does_not_look_at_its_target():
    env = collect.make("Reacher-v5")
    obs, _ = env.reset(seed=0)
    actions = []
    for shift in (0.0, 0.05):
        controller = controllers.ReacherController(env, {}, np.random.default_rng(1))
        moved = obs + shift * np.eye(10)[4:6].sum(axis=0) - shift * np.eye(10)[8:].sum(axis=0)
        actions.append([controller(moved) for _ in range(60)])
    np.testing.assert_array_equal(*actions)
