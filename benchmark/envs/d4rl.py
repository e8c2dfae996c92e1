"""The evaluation environments of D4RL's AntMaze, Adroit and Kitchen tasks, without d4rl and mujoco_py.

`import benchmark.envs` registers them under D4RL's names, and Gymnasium does that by itself in

    gymnasium.make("benchmark.envs:antmaze-umaze-v2")

docs/evaluation.md lists names, sizes, horizons and ends. Adroit and Kitchen need gymnasium-robotics 1.4.2
(benchmark/requirements.txt), AntMaze does not. MuJoCo has to be older than 3.5, which changed contact
margins, and with them every ant that touches something.

Observations are float64 vectors; actions lie in [-1, 1]. The last word before the version names data, not a
task: play and diverse are one environment, so are human, cloned and expert, and complete and partial; mixed
has other tasks.

Source: D4RL's code, https://github.com/Farama-Foundation/D4RL, by the files named at each environment, and an
engine of its time, MuJoCo 2.1.0; docs/physics.md compares them. What differs:
- AntMaze-v0 also draws a goal at a reset with a seed (why: at AntMaze).
- D4RL draws AntMaze's goals and starts from generators that its seeds do not reach; here they come from the
  environment's own.
- The kettle on its hob: MuJoCo before 3.4.0 took half of a contact's depth between two boxes.
"""

import itertools

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from dtql_gaussian import with_d4rl_masses

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
        with_d4rl_masses(self)

    def _initialize_simulation(self):
        """Gymnasium's ant in D4RL's maze, with D4RL's time step, motors and contacts."""
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
        qpos[3:7] /= np.linalg.norm(qpos[3:7])  # MuJoCo before 3.2.0 did this by itself
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


class Adroit(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """D4RL's pen, hammer, door or relocate, given gymnasium-robotics' environment of the task.

    Source: D4RL's hand_manipulation_suite/{pen,hammer,door,relocate}_v0.py. The environment below has D4RL's
    start, observation and action, and pen's reward. To the three others it adds 0.1 of the metres from the
    palm to the thing to be grasped, which D4RL subtracts. None ends; D4RL's pen does when it has fallen.
    Contacts are found by the collider that was MuJoCo's before 3.3.0, not by the "native" one.

    Observation: angles of the hand's joints (radians), then
    - pen [45]: its position (metres; obs[26] is its height), the rates of the three slides and three hinges
      that hold it, in its own frame (m/s, rad/s); its direction and the wanted one, as unit vectors; position
      and direction less the wanted ones.
    - hammer [46], door [39], relocate [39]: positions of palm, thing and goal or their differences.
    Action: wanted joint positions, held for 10 ms; [-1, 1] is the range of each actuator's control, which
    differs from its joint's range by up to 0.047 radians.
    """

    PALM_TO_THING = {  # [3] metres
        "hammer": lambda obs: obs[33:36] - obs[36:39],
        "door": lambda obs: obs[35:38],
        "relocate": lambda obs: obs[30:33],
    }

    def __init__(self, env: gym.Env, task: str):
        gym.utils.RecordConstructorArgs.__init__(self, task=task)
        super().__init__(env)
        self.task = task
        env.unwrapped.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_NATIVECCD

    def step(self, action: np.ndarray):
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self.task == "pen":
            terminated = bool(obs[26] < 0.075)
        else:
            reward -= 0.2 * np.linalg.norm(self.PALM_TO_THING[self.task](obs))
        return obs, float(reward), terminated, truncated, info


class Kitchen(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """D4RL's Kitchen, given gymnasium-robotics' FrankaKitchen with its robot's noise and none in its objects.

    Source: D4RL's kitchen/kitchen_envs.py (tasks, reward, end), and in kitchen/adept_envs/franka/
    kitchen_multitask_v0.py (observation), robot/franka_robot.py (action, noise), robot/franka_config.xml.

    Observation [60]: positions of the 9 robot joints and of the 21 object coordinates, both with noise
    (radians, metres, quaternion parts), then the goal: for each of these 30 the value that completes the task
    it belongs to, 0 where it belongs to none of the four tasks. Velocities are not observed. Action [9]:
    velocities, [-1, 1] being [-2, 2] rad/s (the fingers: m/s): each joint is driven for 80 ms to its last
    observed position, noise included, plus 80 ms of the velocity, within bounds.

    A task is done when its part of the observation, noise included, is less than 0.3 from that of the goal. A
    step's reward is the number of tasks that it is the first to find done; the fourth ends the episode.
    """

    # Largest noise of each object coordinate: franka_config.xml's pos_noise_amp times robot_noise_ratio, 0.1.
    # Burners' and light's joints, switches, slide cabinet; hinge cabinet and microwave; the kettle's position
    # and its quaternion.
    NOISE = np.repeat([5e-4, 5e-5, 5e-4, 0.01, 5e-4, 0.01, 5e-4], [2, 6, 3, 3, 3, 3, 1])

    def __init__(self, env: gym.Env):
        from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_INDICES

        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (60,), np.float64)
        self.indices, self.goal = OBS_ELEMENT_INDICES, np.zeros(30)
        for task, value in env.unwrapped.goal.items():
            self.goal[self.indices[task]] = value
        self.robot = env.unwrapped.robot_env
        with_d4rl_masses(self.robot)  # the handles of kettle and microwave are capsules
        model = self.robot.model
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_NATIVECCD
        # The robot's pedestal: D4RL's is only seen. Body 1 has no other geom.
        for flags in (model.geom_contype, model.geom_conaffinity, model.body_contype, model.body_conaffinity):
            flags[1] = 0
        self.robot.init_qpos[26:] /= np.linalg.norm(self.robot.init_qpos[26:])  # MuJoCo before 3.2.0 did this

    def _observe(self, obs: dict) -> np.ndarray:
        robot = obs["observation"][:9]
        noise = self.NOISE * self.robot.np_random.uniform(-1, 1, 21)
        return np.concatenate([robot, self.robot.data.qpos[9:] + noise, self.goal])

    def _info(self, step_completions: list[str]) -> dict:
        self.tasks_to_complete = [task for task in self.tasks_to_complete if task not in step_completions]
        self.episode_completions = self.episode_completions + step_completions
        return {
            "tasks_to_complete": self.tasks_to_complete,
            "step_task_completions": step_completions,
            "episode_task_completions": self.episode_completions,
        }

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        obs, _ = self.env.reset(seed=seed, options=options)
        self.tasks_to_complete, self.episode_completions = list(self.env.unwrapped.goal), []
        return self._observe(obs), self._info([])

    def step(self, action: np.ndarray):
        obs, _, _, truncated, _ = self.env.step(action)
        obs = self._observe(obs)
        error = obs[:30] - self.goal
        done = [task for task in self.tasks_to_complete if np.linalg.norm(error[self.indices[task]]) < 0.3]
        info = self._info(done)
        return obs, float(len(done)), not self.tasks_to_complete, truncated, info


for kind in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"):
    maze, steps = kind.partition("-")[0], 700 if kind.startswith("umaze") else 1000
    for version, redraw_goal in (("v0", False), ("v2", True)):
        gym.register(
            f"antmaze-{kind}-{version}", f"{__name__}:AntMaze", max_episode_steps=steps,
            kwargs={"maze": maze, "redraw_goal": redraw_goal},
        )  # fmt: skip
# gymnasium_robotics is imported when one of its environments is made.
for task, data in itertools.product(("pen", "hammer", "door", "relocate"), ("human", "cloned", "expert")):
    camera = {"camera_name": "fixed"} if task == "pen" else {}  # from behind the hand, close
    gym.register(
        f"{task}-{data}-v1",
        f"gymnasium_robotics.envs.adroit_hand.adroit_{task}:AdroitHand{task.capitalize()}Env",
        max_episode_steps=100 if task == "pen" else 200,
        additional_wrappers=(Adroit.wrapper_spec(task=task),),
        kwargs={"reward_type": "dense"} | camera,
    )  # fmt: skip
for data, tasks in KITCHEN_TASKS.items():
    gym.register(
        f"kitchen-{data}-v0", "gymnasium_robotics.envs.franka_kitchen:KitchenEnv", max_episode_steps=280,
        disable_env_checker=True,  # it objects to arrays in the observations below; the vector is a copy
        additional_wrappers=(Kitchen.wrapper_spec(),),
        kwargs={"tasks_to_complete": list(tasks), "robot_noise_ratio": 0.1, "object_noise_ratio": 0.0,
                # both are the wrapper's business
                "terminate_on_tasks_completed": False, "remove_task_when_completed": False},
    )  # fmt: skip
