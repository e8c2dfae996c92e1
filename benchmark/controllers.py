"""Scripted controllers for AntMaze, pen and kitchen: `python -m benchmark.collect --policy controller`.

They are no learned policies and no baselines: each may look at what its environment hides (the goal, the
simulator's model and state). They are for data, made offline within minutes, from which the scripts can learn
to score above 0 in each family. So they act with noise, whose size differs from episode to episode.

A controller is made for one episode, `controller_for(env_id)(env, info, rng)` after a reset that returned
info, and then called with each observation; it returns an action in [-1, 1].
"""

from collections import deque

import gymnasium as gym
import numpy as np

from benchmark.d4rl_envs import CELL_SIZE, cell_centers


# --------------------------------------------------------------------------------------------------- AntMaze
def free_cells(maze: str) -> list[tuple[int, int]]:
    """Column and row of every cell that is no wall, the start's being (0, 0)."""
    centers = np.concatenate([cell_centers(maze, kind) for kind in "S.G"])
    return sorted((int(x), int(y)) for x, y in centers / CELL_SIZE)


def steps_to(target: tuple[int, int], cells: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """For each of the cells the least number of moves to the target, to one of the 4 neighbours each."""
    steps, queue = {target: 0}, deque([target])
    while queue:
        x, y = queue.popleft()
        for cell in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            if cell in cells and cell not in steps:
                steps[cell] = steps[x, y] + 1
                queue.append(cell)
    return steps


class AntGait:
    """A trot in any direction without turning: the ant has no front, its four legs stand at 45°, 135°, ....

    Torques are those of a PD controller towards joint angles that are sines of one phase. Diagonal legs move
    together, the two pairs half a period apart. A foot on the ground has to go against the walking direction:
    the hip moves it across its leg, the ankle along it, each by as much of the direction as points that way.
    """

    # By the cross-entropy method: 18 rounds of 24 candidates, each for 3 walks of 10 s on an open floor in
    # random directions with noise 0.1 in the actions. Score: mean speed + half the least speed - half the
    # mean sideways drift - what the torso's upright component lacks to 0.6. It walks 1.0 to 1.5 m/s.
    FREQUENCY = 1.247  # Hz
    HIP = 0.955  # amplitudes and mean of wanted angles in radians; beyond a joint's range they are cut
    ANKLE_MEAN, ANKLE_LIFT, ANKLE_STRETCH = 0.585, 0.251, 0.212
    LIFT_PHASE = -0.590  # radians
    STIFFNESS, DAMPING = 3.116, 0.202  # action per radian, per radian/s

    LEG_ANGLES = np.pi * np.array([1, 3, 5, 7]) / 4  # in the torso's frame
    LEG_PHASES = np.pi * np.array([0, 1, 0, 1])
    ANKLE_SIGNS = np.array([1, -1, -1, 1])  # of the rotation that moves a foot downwards
    HIP_RANGE, ANKLE_RANGE = 0.52, 1.22  # radians
    MOTORS = [6, 7, 0, 1, 2, 3, 4, 5]  # joint of each motor: hip 4, ankle 4, hip 1, ...

    def action(self, obs: np.ndarray, step: int, direction: float) -> np.ndarray:
        """[8] torques; obs [29], step: count of steps of 0.1 s, direction: in radians from the world's x."""
        w, x, y, z = obs[3:7]
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        along = np.cos(direction - yaw - self.LEG_ANGLES)  # of the direction, by leg
        across = np.sin(direction - yaw - self.LEG_ANGLES)
        phase = 2 * np.pi * self.FREQUENCY * 0.1 * step + self.LEG_PHASES
        hip = self.HIP * across * np.cos(phase)
        lift = self.ANKLE_LIFT * np.sin(phase + self.LIFT_PHASE)
        ankle = self.ANKLE_SIGNS * (self.ANKLE_MEAN + lift - self.ANKLE_STRETCH * along * np.cos(phase))
        wanted = np.empty(8)
        wanted[::2] = np.clip(hip, -self.HIP_RANGE, self.HIP_RANGE)
        wanted[1::2] = np.clip(ankle, -self.ANKLE_RANGE, self.ANKLE_RANGE)
        torque = self.STIFFNESS * (wanted - obs[7:15]) - self.DAMPING * obs[21:29]
        return torque[self.MOTORS]


class AntController:
    """Walks shortest paths from cell to cell. Knows the maze and, from info, the goal.

    Each target is the goal with probability one half, else any other free cell; so most episodes reach the
    goal, many of them by detours, and the data covers the whole maze, as D4RL's do. Noise: Gaussian, its
    standard deviation drawn from U(0, 0.3) for an episode.
    """

    NEAR = 1.0  # metres to a cell's centre at which the ant counts as there and turns to the next one

    def __init__(self, env: gym.Env, info: dict, rng: np.random.Generator):
        self.rng, self.goal = rng, info["goal"]
        self.cells = free_cells(env.unwrapped.maze)
        self.gait, self.step = AntGait(), 0
        self.noise = rng.uniform(0, 0.3)
        self.cell = (0, 0)  # the last one whose centre was near
        self.choose_target()

    def choose_target(self) -> None:
        goal_cell = cell_of(self.goal)
        others = [cell for cell in self.cells if cell not in (goal_cell, self.cell)]
        self.target = goal_cell if self.rng.random() < 0.5 else others[self.rng.integers(len(others))]
        self.steps = steps_to(self.target, self.cells)

    def way_point(self, position: np.ndarray) -> np.ndarray:
        """[2], metres: where to go straight from this position [2], metres."""
        nearest = cell_of(position)
        if np.linalg.norm(position - CELL_SIZE * np.array(nearest)) < self.NEAR:
            self.cell = nearest
        goal_cell = cell_of(self.goal)
        if self.cell == self.target != goal_cell:
            self.choose_target()
        x, y = self.cell
        neighbours = [(x, y), (x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
        following = min((cell for cell in neighbours if cell in self.steps), key=self.steps.get)
        return self.goal if following == self.target == goal_cell else CELL_SIZE * np.array(following)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        towards = self.way_point(obs[:2]) - obs[:2]
        action = self.gait.action(obs, self.step, np.arctan2(towards[1], towards[0]))
        self.step += 1
        return np.clip(action + self.noise * self.rng.standard_normal(8), -1, 1)


def cell_of(position: np.ndarray) -> tuple[int, int]:
    """Column and row of the cell that holds the position [2], metres."""
    column, row = np.rint(position / CELL_SIZE).astype(int)
    return int(column), int(row)


CONTROLLERS = {"antmaze": AntController}


def controller_for(env_id: str) -> type:
    """The controller's class for an environment of benchmark/d4rl_envs.py."""
    family = env_id.partition("-")[0]
    if family not in CONTROLLERS:
        raise SystemExit(f"{env_id}: no controller; there is one for each of {', '.join(CONTROLLERS)}")
    return CONTROLLERS[family]
