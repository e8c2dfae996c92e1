"""The evaluation environments of D4RL's AntMaze, Adroit pen and Kitchen tasks, without d4rl and mujoco_py.

Importing this module registers them under D4RL's names. Gymnasium imports it by itself in

    gymnasium.make("benchmark.d4rl_envs:antmaze-umaze-v2")

and `python -m benchmark.d4rl_envs` lists every D4RL name that the scripts know. Pen and kitchen need
gymnasium-robotics (benchmark/requirements.txt), AntMaze does not. MuJoCo has to be older than 3.5, which
changed contact margins, and with them every ant that touches something.

| ids | steps | an episode ends when | obs | action | reward of a step | score |
|---|---|---|---|---|---|---|
| antmaze-umaze{,-diverse}-{v0,v2} | 700 | the goal is reached | 29 | 8 | 1 at the goal, else 0 | 100 return |
| antmaze-{medium,large}-{play,diverse}-{v0,v2} | 1000 | the same | 29 | 8 | the same | 100 return |
| pen-{human,cloned}-v1 | 100 | the pen is dropped | 45 | 24 | dense | (return - 96.26) / 29.81 |
| kitchen-{complete,partial,mixed}-v0 | 280 | all 4 tasks are done | 60 | 9 | tasks it completes | 25 return |

Observations are float64 vectors; actions lie in [-1, 1]. The last word before the version names data, not a
task: play and diverse are one environment, so are human and cloned, and complete and partial; mixed has other
tasks.

Source: D4RL's code, https://github.com/Farama-Foundation/D4RL, by the files named at each environment. It was
not at hand when this was written: the facts are the project's notes on it, the names of files and functions
are from memory. What is known to differ:
- AntMaze-v0 also draws a goal at a reset with a seed (why: at AntMaze).
- D4RL draws AntMaze's goals from NumPy's global generator; here they come from the environment's own.
- Kitchen compares the true state with a task's goal, D4RL the observed one; and the noise in observed objects
  is gymnasium-robotics' (at most 5e-5 here), not checked against D4RL's. Tasks count from a distance of 0.3.
"""

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

# D4RL's U_MAZE_TEST, BIG_MAZE_TEST and HARDEST_MAZE_TEST (locomotion/maze_env.py). Columns run along x, rows
# along y; # is a wall, S the cell of the start, whose centre is the origin, G that of the goal.
MAZES = {
    "umaze": """
        #####
        #S..#
        ###.#
        #G..#
        #####""",
    "medium": """
        ########
        #S.##..#
        #..#...#
        ##...###
        #..#...#
        #.#..#.#
        #...#.G#
        ########""",
    "large": """
        ############
        #S...#.....#
        #.##.#.#.#.#
        #......#...#
        #.####.###.#
        #..#.#.....#
        ##.#.#.#.###
        #..#...#.G.#
        ############""",
}
CELL_SIZE = 4.0  # metres, D4RL's maze_size_scaling
WALL_HEIGHT = 2.0  # metres
GOAL_RADIUS = 0.5  # metres
KITCHEN_TASKS = {
    "complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}


def cell_centers(maze: str, kind: str) -> np.ndarray:
    """[n, 2]: x and y in metres of the centres of all cells of this kind."""
    grid = np.array([list(row) for row in MAZES[maze].split()])
    row_column = np.argwhere(grid == kind) - np.argwhere(grid == "S")
    return CELL_SIZE * row_column[:, ::-1]


class AntMaze(MujocoEnv):
    """D4RL's AntMaze as it is evaluated: sparse reward, always the same start, goals near one corner.

    Source: D4RL's locomotion/{ant,maze_env,goal_reaching_env}.py, with the arguments of its registration
    (eval=True, reward_type="sparse", non_zero_reset=False, maze_size_scaling=4.0), and
    locomotion/assets/ant.xml.

    Observation [29]: qpos, then qvel. qpos is the torso's x, y, z (metres), its orientation (a unit
    quaternion, real part first), and the angles of hip 1, ankle 1, ..., hip 4, ankle 4 (radians); qvel the
    same as velocities, the torso's rotation as 3 numbers. The goal is not observed. Action [8]: torques of
    hip 4, ankle 4, hip 1, ankle 1, hip 2, ..., ankle 3 in units of 30 N m, held for 5 simulation steps of
    0.02 s; beyond [-1, 1] MuJoCo clamps them.

    Start: each of qpos is off its rest value by U(-0.1, 0.1), the torso resting at (0, 0, 0.75), and each of
    qvel is 0.1 N(0, 1). Goal: centre of the goal's cell + U(0, 1) + U(0, 0.5), in x and in y. The step that
    brings the torso's centre within 0.5 m of it, seen from above, has reward 1 and ends the episode. A fallen
    ant goes on.

    redraw_goal: -v2 (True) draws a goal at each reset, -v0 (False) once per object. D4RL's -v0 evaluates all
    episodes of a training seed at one goal, and training seeds differ by theirs. Here a reset with a seed
    draws a goal in -v0 too: a seed has to give the episode that a new object would give, else an episode
    depends on what its object did before, and a score on the number of environments it was spread over. So
    - reset(seed=s) once and reset() from then on, as D4RL is used, keeps one goal: D4RL's -v0 exactly;
    - reset(seed=s) for each episode, as the scripts here evaluate, makes -v0 and -v2 the same: the expected
      score is that of D4RL's -v0, since each goal has the same distribution, but training seeds vary less
      around it.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 10}

    def __init__(self, maze: str, redraw_goal: bool, width: int = 640, height: int = 480, **kwargs):
        self.maze, self.redraw_goal = maze, redraw_goal
        self.goal = None  # [2], metres; drawn at the first reset
        walls = cell_centers(maze, "#")
        camera = {  # the whole maze in a 4:3 frame, x to the right and y upwards
            "lookat": [*(walls.min(axis=0) + walls.max(axis=0)) / 2, 0],
            "distance": 1.45 * np.max((np.ptp(walls, axis=0) + CELL_SIZE) * [3 / 4, 1]),
            "azimuth": 90,
            "elevation": -75,
        }
        space = gym.spaces.Box(-np.inf, np.inf, (29,), np.float64)
        super().__init__(
            "ant.xml", 5, space, width=width, height=height, default_camera_config=camera, **kwargs
        )

    def _initialize_simulation(self):
        """Gymnasium's ant, changed to D4RL's, in its maze. All other physical parameters of the two agree."""
        spec = mujoco.MjSpec.from_file(self.fullpath)
        spec.option.timestep = 0.02
        for motor in spec.actuators:
            motor.gear[0] = 30
        for geom in spec.geoms:
            geom.rgba = [0.9, 0.4, 0.1, 1]
        floor = spec.geom("floor")
        floor.material, floor.rgba = "", [0.7, 0.7, 0.7, 1]  # its checks flicker from so far away
        for x, y in cell_centers(self.maze, "#"):
            spec.worldbody.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=[x, y, WALL_HEIGHT / 2],
                size=[CELL_SIZE / 2, CELL_SIZE / 2, WALL_HEIGHT / 2],
                conaffinity=1,  # the rest is the ant's default
                rgba=[0.3, 0.4, 0.55, 1],
            )
        for geom in spec.geoms:
            geom.solimp[:3] = [0.8, 0.8, 0.01]  # D4RL's solref, 0.02 1, is MuJoCo's default
        spec.worldbody.add_site(  # what is seen of the goal: sites have no physics
            name="goal",
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[GOAL_RADIUS, 0.05, 0],
            pos=[*cell_centers(self.maze, "G")[0], 0.05],  # MuJoCo never moves a site that is compiled at 0
            rgba=[0.1, 0.7, 0.2, 1],
        )
        model = spec.compile()
        model.vis.global_.offwidth, model.vis.global_.offheight = self.width, self.height
        return model, mujoco.MjData(model)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed is not None:
            self.goal = None
        return super().reset(seed=seed, options=options)

    def reset_model(self):
        if self.goal is None or self.redraw_goal:
            (cell,) = cell_centers(self.maze, "G")
            self.goal = cell + self.np_random.uniform(0, 1, 2) + self.np_random.uniform(0, 0.5, 2)
            self.model.site("goal").pos[:2] = self.goal
        qpos = self.init_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        qpos[3:7] /= np.linalg.norm(qpos[3:7])  # D4RL's MuJoCo 2 did this by itself, MuJoCo 3 no longer does
        qvel = self.init_qvel + 0.1 * self.np_random.standard_normal(self.model.nv)
        self.set_state(qpos, qvel)
        return self.state_vector()

    def _get_reset_info(self) -> dict:
        return {"success": False, "goal": self.goal.copy()}

    def step(self, action: np.ndarray):
        self.do_simulation(action, self.frame_skip)
        if self.render_mode == "human":
            self.render()
        obs = self.state_vector()
        success = bool(np.linalg.norm(obs[:2] - self.goal) <= GOAL_RADIUS)
        return obs, float(success), success, False, {"success": success, "goal": self.goal.copy()}


class EndWhenPenDrops(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """D4RL's pen, given gymnasium-robotics' AdroitHandPen: an episode ends when the pen has fallen.

    Source: D4RL's hand_manipulation_suite/pen_v0.py. The environment below has D4RL's start, reward (the 5
    points that a fallen pen costs included), observation and action; what it lacks is the end.

    Observation [45]: 24 joint angles of the hand (radians); the pen's position (metres; obs[26] is its
    height), velocity and angular velocity; its direction and the wanted one, as unit vectors; position and
    direction less the wanted ones. Action [24]: wanted joint angles, [-1, 1] being each joint's range, held
    for 10 ms.
    """

    def __init__(self, env: gym.Env):
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, action: np.ndarray):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or bool(obs[26] < 0.075), truncated, info


class KitchenVector(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """D4RL's Kitchen, given gymnasium-robotics' FrankaKitchen: its observation as one vector.

    Source: D4RL's kitchen/kitchen_envs.py. The environment below has the rest: a reward of 1 for each task in
    the step that completes it (once per episode: remove_task_when_completed), the end when all four are done.

    Observation [60]: positions of the 9 robot joints and of the 21 object coordinates, both with noise
    (radians, metres, quaternion parts), then the goal: for each of these 30 the value that completes the task
    it belongs to, 0 where it belongs to none of the four tasks. Velocities are not observed. Action [9]:
    joint velocities, [-1, 1] being [-2, 2] rad/s (the fingers: m/s), held for 80 ms.
    """

    def __init__(self, env: gym.Env):
        from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_INDICES

        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (60,), np.float64)
        self.goal = np.zeros(30)
        for task, value in env.unwrapped.goal.items():
            self.goal[OBS_ELEMENT_INDICES[task]] = value

    def _convert(self, obs: dict, info: dict) -> tuple[np.ndarray, dict]:
        """The vector, and info with copies of its lists of tasks: one of them is the environment's own, which
        the next reset empties. Sorted, since their order is that of a set, different in each process."""
        full = obs["observation"]  # robot's positions [9] and velocities [9], objects' [21] and [20]
        lists = {key: sorted(tasks) for key, tasks in info.items() if isinstance(tasks, list)}
        return np.concatenate([full[:9], full[18:39], self.goal]), info | lists

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        return self._convert(*self.env.reset(seed=seed, options=options))

    def step(self, action: np.ndarray):
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self._convert(obs, info)
        return obs, reward, terminated, truncated, info


def register() -> None:
    robotics = "gymnasium_robotics.envs"  # by name: it is imported when a pen or kitchen is made
    for maze, steps, kinds in (
        ("umaze", 700, ("umaze", "umaze-diverse")),
        ("medium", 1000, ("medium-play", "medium-diverse")),
        ("large", 1000, ("large-play", "large-diverse")),
    ):
        for kind in kinds:
            for version, redraw_goal in (("v0", False), ("v2", True)):
                gym.register(
                    f"antmaze-{kind}-{version}",
                    f"{__name__}:AntMaze",
                    max_episode_steps=steps,
                    kwargs={"maze": maze, "redraw_goal": redraw_goal},
                )
    for data in ("human", "cloned"):
        gym.register(
            f"pen-{data}-v1",
            f"{robotics}.adroit_hand.adroit_pen:AdroitHandPenEnv",
            max_episode_steps=100,
            additional_wrappers=(EndWhenPenDrops.wrapper_spec(),),
            kwargs={"reward_type": "dense", "camera_name": "fixed"},  # from behind the hand, close
        )
    for data, tasks in KITCHEN_TASKS.items():
        gym.register(
            f"kitchen-{data}-v0",
            f"{robotics}.franka_kitchen:KitchenEnv",
            max_episode_steps=280,
            disable_env_checker=True,  # it objects to arrays in the observations below; the vector is a copy
            additional_wrappers=(KitchenVector.wrapper_spec(),),
            kwargs={
                "tasks_to_complete": list(tasks),
                "terminate_on_tasks_completed": True,
                "remove_task_when_completed": True,
                "robot_noise_ratio": 0.1,
            },
        )


def main() -> None:
    """Every D4RL name that the scripts know, as a table in Markdown."""
    import dtql_gaussian as script  # its dataset section is that of all four scripts

    print("| name | steps | obs | action | environment | data file |\n|---|---|---|---|---|---|")
    for name, file in script.D4RL_FILES.items():
        env = script.load_task(name).make_env()
        (obs_dim,), (action_dim,) = env.observation_space.shape, env.action_space.shape
        steps = env.spec.max_episode_steps
        source = " in ".join(
            [env.spec.entry_point, *(wrapper.name for wrapper in env.spec.additional_wrappers)]
        )
        print(f"| {name} | {steps} | {obs_dim} | {action_dim} | {source} | {file} |")
        env.close()
    print("\nA data file is looked for in $D4RL_DATASET_DIR (default ~/.d4rl/datasets), without its folder,")
    print(f"then downloaded from the first of $D4RL_MIRRORS that has it (default {script.D4RL_MIRRORS}).")


if __name__ == "__main__":
    main()  # which imports this module by its name, as anyone does
else:
    register()
