"""benchmark/envs/d4rl.py against D4RL's AntMaze, Adroit and Kitchen: figures, each with its source in D4RL.

test_physics.py compares masses and steps with the engine of D4RL's time."""

import contextlib
import json
import re
import warnings
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import SCRIPTS, load_script, write_d4rl
from scipy import stats

from benchmark.envs import d4rl

MAZE_OF = {  # D4RL's locomotion/__init__.py
    "umaze": "umaze", "umaze-diverse": "umaze", "medium-play": "medium", "medium-diverse": "medium",
    "large-play": "large", "large-diverse": "large",
}  # fmt: skip
ANTMAZE = [f"antmaze-{kind}-{version}" for kind in MAZE_OF for version in ("v0", "v2")]
KINDS = ("human", "cloned", "expert")
PEN = [f"pen-{kind}-v1" for kind in KINDS]
ARM = [f"{task}-{kind}-v1" for task in ("hammer", "door", "relocate") for kind in KINDS]
KITCHEN = ["kitchen-complete-v0", "kitchen-partial-v0", "kitchen-mixed-v0"]
NAMES = [*ANTMAZE, *PEN, *ARM, *KITCHEN]
# One of each environment that differs from the others.
DISTINCT = ["antmaze-umaze-v0", "antmaze-umaze-v2", "antmaze-medium-play-v2", "antmaze-large-play-v2",
            "pen-human-v1", "hammer-human-v1", "door-human-v1", "relocate-human-v1", "kitchen-partial-v0",
            "kitchen-mixed-v0"]  # fmt: skip
SIZES = {"antmaze": (29, 8), "pen": (45, 24), "hammer": (46, 26), "door": (39, 28), "relocate": (39, 30),
         "kitchen": (60, 9), "hopper": (11, 3), "walker2d": (17, 6), "halfcheetah": (17, 6)}  # fmt: skip
REFERENCES = {  # infos.py: the returns that score 0 and 100
    "antmaze": (0, 1), "pen": (96.262799, 3076.8331017826877), "kitchen": (0, 4),
    "hammer": (-274.856578, 12794.134825156867), "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
    "hopper": (-20.272305, 3234.3), "walker2d": (1.629008, 4592.3), "halfcheetah": (-280.178953, 12135.0),
}  # fmt: skip
MAPS = {  # locomotion/maze_env.py: U_MAZE_TEST, BIG_MAZE_TEST, HARDEST_MAZE_TEST; 1 is a wall
    "umaze": ["11111", "1R001", "11101", "1G001", "11111"],
    "medium": ["11111111", "1R011001", "10010001", "11000111",
               "10010001", "10100101", "100010G1", "11111111"],
    "large": ["111111111111", "1R0001000001", "101101010101", "100000010001", "101111011101",
              "100101000001", "110101010111", "100100010G01", "111111111111"],
}  # fmt: skip
GOAL_CELLS = {"umaze": (0, 8), "medium": (20, 20), "large": (32, 24)}  # x, y of the centre in metres


def make(name: str, **kwargs) -> gym.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "antmaze-umaze-v0 is out of date"
        return gym.make(f"benchmark.envs:{name}", disable_env_checker=True, **kwargs)


def horizon(name: str) -> int:
    steps = {"kitchen": 280, "pen": 100, "hammer": 200, "door": 200, "relocate": 200}
    return steps.get(name.split("-")[0], 700 if "umaze" in name else 1000)


def freeze(env: gym.Env, monkeypatch) -> gym.Env:
    """Steps no longer move anything; what a step makes of the state can then be tested exactly."""
    simulated = getattr(env.unwrapped, "robot_env", env.unwrapped)
    monkeypatch.setattr(simulated, "do_simulation", lambda action, n_frames: None)
    return env


def rest(env: gym.Env) -> np.ndarray:
    return np.zeros(env.action_space.shape, env.action_space.dtype)


# ------------------------------------------------------------------------------------------------ all of them
def test_the_registered_names_are_those_of_the_scripts():
    families = ("antmaze", "pen", "hammer", "door", "relocate", "kitchen")
    known = {name for name in load_script(SCRIPTS[0]).D4RL_FILES if name.startswith(families)}
    assert known == set(NAMES) == {name for name in gym.registry if name.startswith(families)}


@pytest.mark.parametrize("name", NAMES)
def test_gymnasiums_checker_finds_nothing(name):
    env = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        warnings.filterwarnings("ignore", message=".*is out of date")
        warnings.filterwarnings("ignore", message=".*(minimum|maximum) value is -?infinity")
        check_env(env, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_horizon(name, monkeypatch):
    env = freeze(make(name), monkeypatch)
    obs_dim, action_dim = SIZES[name.split("-")[0]]
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float64)
    assert env.action_space.shape == (action_dim,)
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    obs, _ = env.reset(seed=0)
    assert obs.shape == (obs_dim,) and obs.dtype == np.float64
    ends = [env.step(rest(env))[2:4] for _ in range(horizon(name))]
    assert ends == [(False, False)] * (horizon(name) - 1) + [(False, True)]


def episode(env: gym.Env, seed: int, steps: int = 25) -> list:
    """Everything that an episode returns, as comparable values."""
    actions = np.random.default_rng(3).uniform(-1, 1, (steps, *env.action_space.shape))
    obs, info = env.reset(seed=seed)
    results = [(obs.tolist(), plain(info))]
    for action in actions.astype(env.action_space.dtype):
        obs, reward, terminated, truncated, info = env.step(action)
        results.append((obs.tolist(), reward, terminated, truncated, plain(info)))
    return results


def plain(info: dict) -> dict:
    return {key: np.asarray(value).tolist() for key, value in info.items()}


@pytest.mark.parametrize("name", DISTINCT)
def test_an_episode_depends_on_its_seed_alone(name):
    """Not on the object, nor on what that has done before: an evaluation may use any number of them."""
    used, new = make(name), make(name)
    for seed in (7, 8):
        episode(used, seed, steps=5)
    used.reset()
    first = episode(used, 1)
    assert first == episode(new, 1)
    assert first[0][0] != new.reset(seed=2)[0].tolist()


@pytest.mark.parametrize(  # what differs between the scripts does not depend on the task
    "script, name",
    [(SCRIPTS[0], name) for name in load_script(SCRIPTS[0]).TASKS if not re.fullmatch("antmaze.*v0", name)]
    + [(script, "antmaze-umaze-v2") for script in SCRIPTS[1:]],
)
def test_a_script_trains_and_evaluates_on_each_task_of_the_paper(script, name, tmp_path, monkeypatch):
    family = name.partition("-")[0]
    obs_dim, action_dim = SIZES[family]
    module = load_script(script)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    keys = {"next_observations": None} | ({"timeouts": None} if family == "kitchen" else {})
    write_d4rl(tmp_path / Path(module.D4RL_FILES[name]).name, obs_dim=obs_dim, action_dim=action_dim, **keys)
    flags = {f"{phase}_steps": 2 for phase in module.PHASES} | {"batch_size": 8}
    flags |= {"behavior_batch_size": 8} if script == "srpo.py" else {"eval_candidates": 2}
    run_dir = tmp_path / "run"
    module.train(module.Args(env_id=name, eval_episodes=1, run_dir=str(run_dir), **flags))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if "eval/returns" in line)
    assert 1 <= line["eval/length"] <= horizon(name)
    low, high = REFERENCES[family]
    assert line["eval/normalized_score"] == pytest.approx(100 * (line["eval/return"] - low) / (high - low))
    assert json.loads((run_dir / "result.json").read_text())["metric"] == "score"


# ---------------------------------------------------------------------------------------------------- AntMaze
@pytest.mark.parametrize("kind, maze", MAZE_OF.items())
def test_goals_are_drawn_near_the_corner_of_the_goals_cell(kind, maze):
    """maze_env.py: `_rowcol_to_xy` adds U(0, 1) to each coordinate, `goal_sampler` U(0, 0.5) more."""
    env = make(f"antmaze-{kind}-v2").unwrapped
    goals = np.array([env.reset(seed=seed)[1]["goal"] for seed in range(500)]) - GOAL_CELLS[maze]
    sum_of_both = stats.trapezoid(1 / 3, 2 / 3, scale=1.5)
    for offsets in goals.T:
        assert 0 <= offsets.min() < 0.1 and 1.4 < offsets.max() < 1.5
        assert stats.kstest(offsets, sum_of_both.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(goals.T)[0, 1]) < 0.15  # x and y are drawn independently


def test_v2_draws_a_goal_at_each_reset_and_v0_once_per_object():
    """ant.py's AntMazeEnv: `v2_resets` calls set_target in reset(), otherwise only __init__ does."""
    goals = {}
    for version in ("v0", "v2"):
        env = make(f"antmaze-medium-play-{version}")
        goals[version] = [tuple(env.reset(seed=5)[1]["goal"])]
        goals[version] += [tuple(env.reset()[1]["goal"]) for _ in range(3)]
        assert tuple(env.unwrapped.goal) == goals[version][-1]
        assert tuple(env.step(rest(env))[-1]["goal"]) == goals[version][-1]
    assert len(set(goals["v0"])) == 1 and len(set(goals["v2"])) == 4


def test_a_reset_with_a_seed_draws_the_goal_of_a_new_object_in_both_versions():
    v0, v2 = make("antmaze-umaze-v0"), make("antmaze-umaze-v2")
    goals = [[tuple(env.reset(seed=seed)[1]["goal"]) for seed in (1, 2, 1)] for env in (v0, v2)]
    assert goals[0] == goals[1] and goals[0][0] == goals[0][2] != goals[0][1]


@pytest.mark.parametrize("distance, reached", [(0.5, True), (np.nextafter(0.5, 1), False), (0.4, True)])
@pytest.mark.parametrize("direction", [(1, 0), (0, -1)])
def test_success_is_a_distance_of_half_a_metre_in_the_plane(distance, reached, direction, monkeypatch):
    """goal_reaching_env.py: `np.linalg.norm(self.get_xy() - self.target_goal) <= 0.5`. The torso is put
    at the origin, 0.75 above the ground: a distance in space would be larger."""
    env = freeze(make("antmaze-large-diverse-v0"), monkeypatch)
    env.reset(seed=0)
    env.unwrapped.set_state(env.unwrapped.init_qpos, env.unwrapped.init_qvel)
    env.unwrapped.goal = distance * np.array(direction)
    _, reward, terminated, truncated, info = env.step(rest(env))
    assert (reward, terminated, truncated) == (float(reached), reached, False)
    assert info["success"] is reached


def test_the_start_is_the_rest_position_with_noise():
    """ant.py's reset_model: qpos + uniform(-.1, .1), qvel + .1 randn; the engine makes a unit quaternion."""
    env = make("antmaze-large-play-v2").unwrapped
    obs = np.array([env.reset(seed=seed)[0] for seed in range(1000)])
    rest_position = np.array([0, 0, 0.75, *[0] * 8])
    noise = obs[:, [0, 1, 2, *range(7, 15)]] - rest_position
    for column in noise.T:
        assert np.abs(column).max() <= 0.1
        assert stats.kstest(column, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-4
    np.testing.assert_allclose(np.linalg.norm(obs[:, 3:7], axis=1), 1, rtol=1e-12)
    tilt = obs[:, 4:7] / obs[:, 3:4]  # U(-0.1, 0.1) / (1 + U(-0.1, 0.1))
    assert 0.09 < np.abs(tilt).max() <= 0.1 / 0.9
    for column in obs[:, 15:].T:
        assert stats.kstest(column, stats.norm(scale=0.1).cdf).pvalue > 1e-4
    correlation = np.corrcoef(np.concatenate([noise, tilt, obs[:, 15:]], axis=1).T)
    assert np.abs(correlation - np.eye(28)).max() < 0.2  # each is drawn by itself; the tilts share a divisor


def test_the_observation_is_qpos_then_qvel():
    env = make("antmaze-umaze-v2")
    env.reset(seed=0)
    obs, *_ = env.step(rest(env))
    data = env.unwrapped.data
    assert obs.tolist() == [*data.qpos, *data.qvel] and len(data.qpos) == 15


def touched(env, geom_type) -> bool:
    """Whether the ant touches a geom of this type."""
    pairs = [contact.geom for contact in env.data.contact]
    return any((env.model.geom_type[pair] == geom_type).any() for pair in pairs)


@pytest.mark.parametrize("maze, rows", MAPS.items())
def test_an_ant_collides_in_the_cells_of_walls_and_in_no_other(maze, rows):
    """maze_env.py: block (i, j) is centred at x = 4 j - torso_x, y = 4 i - torso_y, and 2 metres high; the
    torso is in cell R, which is (1, 1) in all three maps."""
    env = make(f"antmaze-{next(kind for kind in MAZE_OF if MAZE_OF[kind] == maze)}-v2").unwrapped
    env.reset(seed=0)
    qpos = env.init_qpos.copy()
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            qpos[:2] = 4 * j - 4, 4 * i - 4
            env.set_state(qpos, env.init_qvel)
            assert touched(env, mujoco.mjtGeom.mjGEOM_BOX) == (cell == "1"), (i, j)
    boxes = env.model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
    assert boxes.sum() == "".join(rows).count("1")
    assert (env.model.geom_size[boxes] == [2, 2, 1]).all() and (env.model.geom_pos[boxes, 2] == 1).all()


@pytest.mark.parametrize(
    "velocity, passes", [((6, 0), True), ((-6, 0), False), ((0, 6), False), ((0, -6), False)]
)
def test_walls_stop_an_ant_that_is_thrown_at_them(velocity, passes):
    """From cell R of the umaze only +x is open; its other borders are 2 metres away."""
    env = make("antmaze-umaze-v2").unwrapped
    env.reset(seed=0)
    qvel = env.init_qvel.copy()
    qvel[:2] = velocity
    env.set_state(env.init_qpos, qvel)
    furthest = max(np.abs(env.step(rest(env))[0][:2]).max() for _ in range(15))
    assert (furthest > 2) == passes


def test_a_fallen_or_jumping_ant_goes_on(monkeypatch):
    """Gymnasium's Ant ends an episode when the torso is below 0.2 or above 1; D4RL's AntMaze does not."""
    env = freeze(make("antmaze-umaze-v2"), monkeypatch)
    env.reset(seed=0)
    for height, quaternion in [(0.1, (0, 1, 0, 0)), (1.5, (1, 0, 0, 0))]:
        qpos = env.unwrapped.init_qpos.copy()
        qpos[2:7] = height, *quaternion
        env.unwrapped.set_state(qpos, env.unwrapped.init_qvel)
        assert env.step(rest(env))[1:4] == (0.0, False, False)


def test_actions_beyond_one_act_as_one():
    """D4RL wraps the environment in NormalizedBoxEnv, which clips them."""
    env = make("antmaze-umaze-v2")
    results = []
    for scale in (0.5, 1, 5):
        env.reset(seed=0)
        results.append(env.step(scale * np.array([1, -1, 1, -1, 1, -1, 1, -1], np.float32))[0])
    assert (results[1] == results[2]).all() and not np.allclose(results[0], results[1])


# The figures of D4RL's locomotion/assets/ant.xml. It gives shapes and a density of 5 kg/m³, from which MuJoCo
# computes masses and inertias. Here they are computed by hand, for a ball of radius 0.25, and for capsules of
# radius r = 0.08 and length sqrt(2) 0.2 or sqrt(2) 0.4, which D4RL's engine took for a cylinder longer by r:
#   ball: m = 5 4/3 pi r³, I = 2/5 m r²
#   cylinder of length L: m = 5 pi r² L, I_axis = m r²/2, I_across = m (L²/12 + r²/4)
TORSO = (0.32724923, (0.00818123, 0.00818123, 0.00818123))
LEG = (0.03647693, (0.00045856, 0.00045856, 0.00011672617))  # L = 0.36284271
SHIN = (0.06491138, (0.00235904, 0.00235904, 0.00020772))  # L = 0.64568542


@pytest.fixture(scope="module")
def ant():
    return make("antmaze-umaze-v2").unwrapped.model


def test_masses_and_inertias(ant):
    bodies = [
        TORSO,
        *[LEG, LEG, SHIN] * 4,
    ]  # each leg: two capsules of 0.28 m, the second after the hip, a shin
    np.testing.assert_allclose(ant.body_mass[1:], [mass for mass, _ in bodies], rtol=1e-6)
    np.testing.assert_allclose(ant.body_inertia[1:], [inertia for _, inertia in bodies], rtol=2e-5)
    assert ant.body_mass.sum() == pytest.approx(0.87871, abs=1e-5)


def test_legs_and_joints(ant):
    """ant.xml: `joint limited="true" armature="1" damping="1"`; the free joint has neither."""
    names = [ant.joint(i).name for i in range(ant.njnt)]
    assert names == ["root", *(f"{joint}_{leg}" for leg in (1, 2, 3, 4) for joint in ("hip", "ankle"))]
    hip, out, back = (-30, 30), (30, 70), (-70, -30)
    ranges = [hip, out, hip, back, hip, back, hip, out]
    np.testing.assert_allclose(np.degrees(ant.jnt_range[1:]), ranges, atol=1e-9)
    assert ant.jnt_limited.tolist() == [0, *[1] * 8]
    assert ant.dof_armature.tolist() == ant.dof_damping.tolist() == [0] * 6 + [1] * 8
    r = np.sqrt(0.5)
    axes = [(0, 0, 1), (-r, r, 0), (0, 0, 1), (r, r, 0), (0, 0, 1), (-r, r, 0), (0, 0, 1), (r, r, 0)]
    np.testing.assert_allclose(ant.jnt_axis[1:], axes, atol=1e-12)
    corners = [(1, 1), (-1, 1), (-1, -1), (1, -1)]  # where each leg points
    for leg, (x, y) in enumerate(corners):
        np.testing.assert_allclose(ant.body_pos[2 + 3 * leg : 5 + 3 * leg],
                                   [(0, 0, 0), (0.2 * x, 0.2 * y, 0), (0.2 * x, 0.2 * y, 0)])  # fmt: skip


def test_motors(ant):
    """ant.xml: eight motors in this order, of ±30 N m. D4RL's have controls of ±30 and gear 1, and its
    environment multiplies actions in [-1, 1] by 30; here it is the gear."""
    joints = [ant.joint(i).name for i in ant.actuator_trnid[:, 0]]
    assert joints == [f"{joint}_{leg}" for leg in (4, 1, 2, 3) for joint in ("hip", "ankle")]
    assert ant.actuator_gear.tolist() == [[30, 0, 0, 0, 0, 0]] * 8
    assert ant.actuator_ctrlrange.tolist() == [[-1, 1]] * 8 and ant.actuator_ctrllimited.all()


def test_contacts(ant):
    """ant.xml's default geom: condim 3, conaffinity 0, margin .01, friction 1 .5 .5, solref .02 1, solimp
    .8 .8 .01 (the two others of solimp, .5 and 2, are MuJoCo's). Floor and walls have conaffinity 1: legs
    touch them, and not each other."""
    n = ant.ngeom
    assert n == 1 + 13 + MAPS["umaze"][0].count("1") * 2 + sum(row.count("1") for row in MAPS["umaze"][1:-1])
    assert ant.geom_contype.tolist() == [1] * n and ant.geom_condim.tolist() == [3] * n
    solid = np.isin(ant.geom_type, [mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX])
    assert ant.geom_conaffinity.tolist() == solid.astype(int).tolist() and solid.sum() == n - 13
    assert ant.geom_margin.tolist() == [0.01] * n and ant.geom_gap.tolist() == [0] * n
    assert ant.geom_friction.tolist() == [[1, 0.5, 0.5]] * n
    assert ant.geom_solref.tolist() == [[0.02, 1]] * n
    assert ant.geom_solimp.tolist() == [[0.8, 0.8, 0.01, 0.5, 2]] * n


def test_time_steps(ant):
    """ant.xml: `timestep="0.02" integrator="RK4"`; ant.py: frame_skip 5."""
    assert ant.opt.timestep == 0.02 and ant.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    assert ant.opt.gravity.tolist() == [0, 0, -9.81]
    env = make("antmaze-umaze-v2")
    env.reset(seed=0)
    env.step(rest(env))
    assert env.unwrapped.data.time == pytest.approx(0.1) and env.metadata["render_fps"] == 10


@pytest.mark.parametrize("gap, contact", [(0.009, True), (0.011, False), (0.019, False)])
def test_a_contact_begins_at_the_larger_of_two_margins(gap, contact):
    """MuJoCo 3.5 takes their sum, 0.02, and is another environment than D4RL's. Hence the pinned version.
    Legs straight out, the ant's lowest point is the torso's, 0.25 below its centre."""
    env = make("antmaze-umaze-v2").unwrapped
    env.reset(seed=0)
    qpos = env.init_qpos.copy()
    qpos[2] = 0.25 + gap
    env.set_state(qpos, env.init_qvel)
    assert touched(env, mujoco.mjtGeom.mjGEOM_PLANE) == contact


# ----------------------------------------------------------------------------------------------------- Adroit
class Heights(gym.Env):
    """Observations that say nothing but how high the pen is."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (45,))

    def __init__(self, *heights):
        self.heights = iter(heights)

    def step(self, action):
        obs = np.ones(45)
        obs[26] = next(self.heights)
        return obs, 2.5, False, False, {}


def test_the_episode_ends_below_a_height_of_75_millimetres():
    """pen_v0.py: `if obj_pos[2] < 0.075: reward -= 5; done = True`."""
    heights = Heights(0.2, 0.075, np.nextafter(0.075, 0), -1)
    heights.model = make("pen-human-v1").unwrapped.model
    env = d4rl.Adroit(heights, "pen")
    assert [env.step(None)[1:4] for _ in range(4)] == [
        (2.5, end, False) for end in (False, False, True, True)
    ]


@pytest.mark.parametrize("name", PEN)
def test_a_dropped_pen_ends_the_episode_at_a_cost_of_five(name):
    """pen_v0.py's reward: minus the distance, plus the cosine of the directions, bonuses, -5 if dropped."""
    env = make(name)
    env.reset(seed=0)
    obs, held, terminated, *_ = env.step(rest(env))
    assert not terminated and obs[26] > 0.15
    env.unwrapped.data.joint("OBJTx").qpos += 0.25  # the pen's own x axis points downwards
    obs, reward, terminated, truncated, _ = env.step(rest(env))
    assert obs[26] < 0.075 and terminated and not truncated
    distance, cosine = np.linalg.norm(obs[39:42]), obs[33:36] @ obs[36:39]
    assert distance > 0.075 and reward == pytest.approx(-distance + cosine - 5)
    assert held > reward + 4


def reward_by_d4rl(env: gym.Env, task: str) -> float:
    """The reward that {hammer,door,relocate}_v0.py compute for the state that the simulation is in."""
    model, data = env.unwrapped.model, env.unwrapped.data
    body, site = lambda name: data.body(name).xpos, lambda name: data.site(name).xpos
    distance = lambda a, b: np.linalg.norm(a - b)
    if task == "hammer":
        hammer, head, nail = body("Object"), site("tool"), site("S_target")
        depth = distance(nail, site("nail_goal"))
        reward = -0.1 * distance(site("S_grasp"), hammer) - distance(head, nail) - 10 * depth
        reward -= 0.01 * np.linalg.norm(data.qvel)
        return reward + 2 * (hammer[2] > 0.04 and head[2] > 0.04) + 25 * (depth < 0.02) + 75 * (depth < 0.01)
    if task == "door":
        angle = data.qpos[model.joint("door_hinge").qposadr[0]]
        reward = -0.1 * distance(site("S_grasp"), site("S_handle")) - 0.1 * (angle - 1.57) ** 2
        reward -= 1e-5 * (data.qvel**2).sum()
        return reward + 2 * (angle > 0.2) + 8 * (angle > 1) + 10 * (angle > 1.35)
    palm, ball, target = site("S_grasp"), body("Object"), site("target")
    reward = (
        -0.1 * distance(palm, ball)
        + 10 * (distance(ball, target) < 0.1)
        + 20 * (distance(ball, target) < 0.05)
    )
    return reward + (ball[2] > 0.04) * (1 - 0.5 * distance(palm, target) - 0.5 * distance(ball, target))


@pytest.mark.parametrize("task, joint, positions", [
    ("hammer", "nail_dir", (0, 0.075, 0.085, 0.09)),  # metres
    ("hammer", "OBJTy", (0, 0.1)),
    ("door", "door_hinge", (0, 0.3, 1.1, 1.4)),  # radians
    ("relocate", "OBJTz", (0, 0.05, 0.1, 0.15, 0.2)),
])  # fmt: skip
def test_rewards_of_hammer_door_and_relocate(task, joint, positions):
    env = make(f"{task}-human-v1")
    env.reset(seed=0)
    start = env.unwrapped.data.qpos.copy()
    if task == "relocate":  # the ball's way up is through its target
        model = env.unwrapped.model
        model.site("target").pos[:2] = model.body("Object").pos[:2]
    rewards = []
    for position in positions:
        env.unwrapped.set_state(start, 0 * env.unwrapped.data.qvel)
        env.unwrapped.data.joint(joint).qpos += position
        _, reward, terminated, truncated, _ = env.step(rest(env))
        assert reward == pytest.approx(reward_by_d4rl(env, task), abs=1e-9) and type(reward) is float
        assert not terminated and not truncated
        rewards.append(reward)
    assert np.ptp(rewards) > 1  # some bonus is had and some is not


# ---------------------------------------------------------------------------------------------------- kitchen
# D4RL's kitchen_envs.py, OBS_ELEMENT_INDICES and OBS_ELEMENT_GOALS: where in the 30 positions, and what.
GOALS = {
    "bottom burner": (slice(11, 13), [-0.88, -0.01]),
    "light switch": (slice(17, 19), [-0.69, -0.05]),
    "slide cabinet": (slice(19, 20), [0.37]),
    "microwave": (slice(22, 23), [-0.75]),
    "kettle": (slice(23, 30), [-0.23, 0.75, 1.62, 0.99, 0, 0, -0.06]),
}
TASKS = {
    "kitchen-complete-v0": ["microwave", "kettle", "light switch", "slide cabinet"],
    "kitchen-partial-v0": ["microwave", "kettle", "light switch", "slide cabinet"],
    "kitchen-mixed-v0": ["microwave", "kettle", "bottom burner", "light switch"],
}


def complete(env, task: str, error: float = 0.0) -> None:
    """Puts a thing where its task wants it, but for an error in the first coordinate."""
    where, goal = GOALS[task]
    env.unwrapped.data.qpos[where] = goal
    env.unwrapped.data.qpos[where.start] += error


@pytest.mark.parametrize("name", KITCHEN)
def test_the_observation_has_noisy_positions_and_the_goal(name, monkeypatch):
    env = freeze(make(name), monkeypatch)
    goal = np.zeros(30)
    for task in TASKS[name]:
        goal[GOALS[task][0]] = GOALS[task][1]
    noise = []
    for seed in range(40):
        for obs in (env.reset(seed=seed)[0], env.step(rest(env))[0]):
            noise.append(obs[:30] - env.unwrapped.data.qpos)
            assert obs[30:].tolist() == goal.tolist()
    # kitchen_multitask_v0.py's robot_noise_ratio, 0.1, times franka_config.xml's pos_noise_amp
    amplitudes = (
        [0.1] * 9 + [0.005] * 2 + [0.0005] * 6 + [0.005] * 3 + [0.1] * 3 + [0.005] * 3 + [0.1] * 3 + [0.005]
    )
    largest = np.abs(noise).max(axis=0) / 0.1 / amplitudes
    assert (0.9 < largest).all() and (largest <= 1).all()
    correlation = np.corrcoef(np.transpose(noise))
    assert np.abs(correlation - np.eye(30)).max() < 0.5  # each is drawn by itself


def test_the_kettle_starts_upright_and_the_pedestal_touches_nothing():
    """Its orientation in init_qpos is no unit quaternion; D4RL's engine made it one. The pedestal's geom in
    franka_kitchen_jntpos_act_ab.xml is of a class that is only seen."""
    env = make("kitchen-complete-v0")
    env.reset(seed=0)
    simulated = env.unwrapped
    assert np.linalg.norm(simulated.data.qpos[26:30]) == pytest.approx(1, abs=1e-12)
    assert simulated.data.qpos[26] == pytest.approx(0.99997, abs=5e-6)
    model = simulated.model
    assert model.geom_size[1].tolist() == [0.12, 0.9, 0] and model.body_geomnum[1] == 1
    assert model.geom_contype[1] == model.geom_conaffinity[1] == 0
    colliding = (model.geom_contype | model.geom_conaffinity) > 0
    arm = np.flatnonzero(
        colliding & [model.body(int(body)).name.startswith("panda0") for body in model.geom_bodyid]
    )
    assert len(arm) > 10  # and nothing else has changed: the robot still collides


def test_the_tasks_are_judged_by_the_noisy_observation(monkeypatch):
    """kitchen_envs.py compares obs_dict["obj_qp"], noise included."""
    env = freeze(make("kitchen-partial-v0"), monkeypatch)
    rewards = []
    for seed in range(60):
        env.reset(seed=seed)
        complete(env, "microwave", 0.3)  # at the limit: the noise, at most 0.01 here, decides
        obs, reward, *_ = env.step(rest(env))
        assert reward == (abs(obs[22] - -0.75) < 0.3)
        rewards.append(reward)
    assert 10 < sum(rewards) < 50


@pytest.mark.parametrize("name", KITCHEN)
def test_each_task_is_rewarded_once_and_the_fourth_ends_the_episode(name, monkeypatch):
    env = freeze(make(name), monkeypatch)
    for _ in range(2):  # a reset restores the tasks
        _, info = env.reset(seed=0)
        assert info["tasks_to_complete"] == TASKS[name] and info["episode_task_completions"] == []
        start = env.unwrapped.data.qpos.copy()
        done = []
        assert env.step(rest(env))[1:3] == (0.0, False)
        for task in TASKS[name]:
            complete(env, task)
            _, reward, terminated, _, info = env.step(rest(env))
            done.append(task)
            assert (reward, terminated) == (1.0, len(done) == 4)
            assert info["step_task_completions"] == [task] and info["episode_task_completions"] == done
            if terminated:
                break
            for again in (
                False,
                True,
            ):  # neither a thing that stays there nor one that comes back is rewarded
                env.unwrapped.data.qpos[:] = start
                if again:
                    complete(env, task)
                _, reward, terminated, _, info = env.step(rest(env))
                assert (reward, terminated, info["step_task_completions"]) == (0.0, False, [])
    kept = info["episode_task_completions"]
    env.reset(seed=1)
    assert kept == TASKS[name]  # no list of an info is changed later


def test_tasks_completed_in_one_step_are_rewarded_together(monkeypatch):
    env = freeze(make("kitchen-mixed-v0"), monkeypatch)
    env.reset(seed=0)
    for task in ("slide cabinet", "light switch", "bottom burner"):  # the first is not of this task's
        complete(env, task)
    assert env.step(rest(env))[1:3] == (2.0, False)
    for task in ("kettle", "microwave"):
        complete(env, task)
    assert env.step(rest(env))[1:3] == (2.0, True)


@pytest.mark.parametrize("task", TASKS["kitchen-partial-v0"])
def test_a_task_is_complete_within_a_distance_of_three_tenths(task, monkeypatch):
    """kitchen_envs.py: BONUS_THRESH = 0.3."""
    env = freeze(make("kitchen-partial-v0"), monkeypatch)
    noise = (
        0.02 if task == "microwave" else 0.01
    )  # more than the observation's, whose largest are of quaternions
    for error, reward in [(0.3 + noise, 0.0), (-0.3 - noise, 0.0), (0.3 - noise, 1.0)]:
        env.reset(seed=0)
        complete(env, task, error)
        assert env.step(rest(env))[1] == reward


# -------------------------------------------------------------------------------------------------- rendering
@pytest.fixture
def offscreen(monkeypatch):
    """A renderer that needs no screen."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    try:
        from mujoco.egl import GLContext

        GLContext(8, 8).free()
    except (ImportError, AttributeError, RuntimeError) as error:
        pytest.skip(f"no EGL on this machine: {error}")


def center(frame: np.ndarray, channel: int) -> np.ndarray:
    """(row, column) of the middle of at least 30 pixels that are clearly red (0), green (1) or blue (2)."""
    others = np.delete(frame.astype(int), channel, axis=2).max(axis=2)
    pixels = np.argwhere(frame[..., channel] > others + 60)
    assert len(pixels) >= 30
    return pixels.mean(axis=0)


@pytest.mark.parametrize("kind", ["umaze", "medium-play", "large-play"])
def test_a_frame_shows_the_whole_maze_the_ant_and_the_goal(kind, offscreen):
    red, green, blue = 0, 1, 2
    with contextlib.closing(make(f"antmaze-{kind}-v2", render_mode="rgb_array")) as env:
        env.reset(seed=0)
        qpos = env.unwrapped.init_qpos.copy()
        frames, goals = [], []
        for seed, x in ((0, 0), (1, 1.5)):
            env.reset(seed=seed)
            qpos[0] = x
            env.unwrapped.set_state(qpos, env.unwrapped.init_qvel)
            frames.append(env.render())
            goals.append(env.unwrapped.goal)
    assert frames[0].shape == (480, 640, 3) and frames[0].dtype == np.uint8
    (ant_row, ant_column), (new_row, new_column) = (center(frame, red) for frame in frames)
    assert ant_row > 240 and ant_column < 320 and new_column > ant_column + 10 and abs(new_row - ant_row) < 3
    goal, new_goal = (center(frame, green) for frame in frames)
    x, y = goals[1] - goals[0]
    assert max(goal[0], new_goal[0]) < 200  # rows count downwards: all goals are north of the middle
    assert np.sign(new_goal - goal).tolist() == [-np.sign(y), np.sign(x)]
    walls = frames[0][..., blue] > frames[0][..., red].astype(int) + 20
    inside = walls[5:-5, 5:-5]
    assert 0.15 < walls.mean() < 0.7 and inside.sum() == walls.sum()


def test_a_frame_shows_the_pen_and_how_it_should_point(offscreen):
    frames = []
    with contextlib.closing(make("pen-human-v1", render_mode="rgb_array")) as env:
        for seed in (0, 0, 1):  # the seed is the wanted direction; hand and pen start alike
            env.reset(seed=seed)
            frames.append(env.render())
    assert (frames[0] == frames[1]).all() and (frames[0] != frames[2]).any(axis=2).mean() > 0.005
    wanted, pen = (center(frames[0], channel)[1] for channel in (1, 2))  # a green pen, a blue pen
    assert pen < 300 < wanted


def test_a_frame_shows_the_kitchen(offscreen, monkeypatch):
    changed = {}
    with contextlib.closing(freeze(make("kitchen-partial-v0", render_mode="rgb_array"), monkeypatch)) as env:
        for task in TASKS["kitchen-partial-v0"]:
            env.reset(seed=0)
            if not changed:
                before = env.render()
            complete(env, task)
            mujoco.mj_forward(env.unwrapped.model, env.unwrapped.data)
            changed[task] = (env.render() != before).any(axis=2).mean()
    assert all(share > 0.002 for share in changed.values()), changed  # each thing is in view
