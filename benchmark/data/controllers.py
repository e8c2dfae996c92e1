"""Scripted controllers for data: `python -m benchmark.data.collect --policy controller`.

They are no learned policies and no baselines: each may look at what its environment hides (the goal, the
simulator's model and state). They are for data, made offline within minutes, from which the scripts can learn
to score above 0 in each family. So they act with noise, whose size differs from episode to episode. Reacher's
is another kind: it does not look at the target, and its noise is of one size.

A controller is made for one episode, `controller_for(env_id)(env, info, rng)` after a reset that returned
info, and then called with each observation; it returns an action in [-1, 1].
"""

import itertools
from collections import deque

import gymnasium as gym
import mujoco
import numpy as np

from benchmark.envs.d4rl import CELL_SIZE, cell_centers


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

    Half of the targets are the goal, the others any free cells: most episodes reach the goal, many of them by
    detours, and the data covers the whole maze. Noise: Gaussian, its standard deviation drawn from U(0, 0.3)
    for an episode.
    """

    GOAL_SHARE = 0.5  # of the targets
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
        to_goal = self.rng.random() < self.GOAL_SHARE
        self.target = goal_cell if to_goal else others[self.rng.integers(len(others))]
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


# ---------------------------------------------------------------------------------------------------- kitchen
class KitchenController:
    """Does its environment's tasks one after another, by inverse kinematics. Knows the simulator's state.

    A task is a generator of what the hand shall do next: (position [3] of the gripper in metres, whether its
    fingers press together). Noise: Gaussian in the arm's actions, its standard deviation drawn from U(0, 0.2)
    for an episode.
    """

    ORDER = ("microwave", "kettle", "light switch", "bottom burner", "slide cabinet")
    # The tasks done by a push: the site pushed at, and relative to it, in metres, the gripper's position
    # before and after. The fingers reach 45 mm further along y than the gripper's position.
    PUSHES = {
        "bottom burner": ("knob2_site", (-0.08, -0.03, 0.02), (0.10, -0.03, 0.02)),
        "light switch": ("light_site", (0.08, -0.04, 0.0), (-0.10, -0.04, 0.0)),
        "slide cabinet": ("slide_site", (-0.09, -0.03, -0.05), (0.25, -0.03, -0.05)),
    }
    GAIN, MAX_SPEED, TURN_GAIN = 10.0, 1.0, 4.0  # 1/s, m/s, 1/s
    TURN_WEIGHT = 0.3  # metres that a radian of the hand's orientation is worth
    DAMPING = 0.05  # metres, of the least squares: keeps joints slow near a singularity
    POSTURE = np.array([0.15, -1.2, 1.84, -2.3, 0.26, 0.9, 1.6])  # radians; where spare freedom goes
    FORWARD = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])  # orientation: fingers along the world's y

    def __init__(self, env: gym.Env, info: dict, rng: np.random.Generator):
        self.rng, self.noise = rng, rng.uniform(0, 0.2)
        self.env, self.robot = env, env.unwrapped.robot_env
        self.model, self.data = self.robot.model, self.robot.data
        self.gripper = self.data.site("end_effector")
        self.plan = self.all_tasks()

    def is_pending(self, task: str) -> bool:
        return task in self.env.get_wrapper_attr("tasks_to_complete")

    def all_tasks(self):
        """Without end: one that failed is tried again, and an episode is over with the last one done."""
        while True:
            for task in filter(self.is_pending, self.ORDER):
                yield from self.push(task) if task in self.PUSHES else getattr(self, task)()

    def go(self, position, closed: bool = True):
        """Until the gripper is within 2 cm of the position, but no longer than 30 steps."""
        for _ in range(30):
            yield np.asarray(position), closed
            if np.linalg.norm(position - self.gripper.xpos) < 0.02:
                return

    def push(self, task: str):
        """From 13 cm in front of the push's first point to that, to its last until done, and back."""
        name, before, after = self.PUSHES[task]
        site = self.data.site(name).xpos.copy()
        yield from self.go(site + before + [0, -0.13, 0])
        yield from self.go(site + before)
        yield from itertools.takewhile(lambda step: self.is_pending(task), self.go(site + after))
        yield from self.go(self.gripper.xpos + [0, -0.15, 0])

    def kettle(self):
        """Push it at its foot, left or right of the middle where it has turned."""
        kettle = self.data.body("kettle")
        yield from self.go(kettle.xpos + [0, -0.30, 0.12])
        yield from self.go(kettle.xpos + [0, -0.23, 0.08])
        for _ in range(60):
            if not self.is_pending("kettle"):
                break
            yaw = 2 * kettle.xquat[3]
            yield kettle.xpos + [-0.1 * yaw, -0.05, 0.08], True
        yield from self.go(self.gripper.xpos + [0, -0.15, 0.05])

    def microwave(self):
        """Grip the handle and pull it along its arc until the door is open or the handle has slipped out."""
        handle, hinge = self.data.site("microhandle_site").xpos, self.data.joint("microwave").xanchor
        yield from self.go(handle + [0, -0.14, 0.01], closed=False)
        yield from self.go(handle + [0, -0.01, 0.01], closed=False)
        for _ in range(8):
            yield handle + [0, -0.01, 0.01], True
        for _ in range(60):
            if not self.is_pending("microwave") or np.linalg.norm(handle - self.gripper.xpos) > 0.06:
                break
            x, y, _ = handle - hinge
            yield handle + [0.1 * y, -0.1 * x - 0.01, 0.01], True
        for _ in range(4):
            yield self.gripper.xpos.copy(), False
        yield from self.go(self.gripper.xpos + [0, -0.12, 0], closed=False)

    def joint_velocities(self, velocity: np.ndarray) -> np.ndarray:
        """[7] rad/s of the arm's joints that move the gripper by velocity [6] (m/s, rad/s): least squares."""
        jacobian = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], self.gripper.id)
        weights = np.repeat([1, self.TURN_WEIGHT], 3)
        jacobian, velocity = weights[:, None] * jacobian[:, :7], weights * velocity
        angles, (low, high) = self.data.qpos[:7], self.model.jnt_range[:7].T
        free = np.ones(7)
        for _ in range(4):  # a joint that would run into its limit is left to the others
            movable = jacobian * free
            inverse = movable.T @ np.linalg.inv(movable @ movable.T + self.DAMPING**2 * np.eye(6))
            spare = free * 0.5 * (self.POSTURE - angles)
            joints = inverse @ velocity + spare - inverse @ (movable @ spare)
            stuck = (angles < low + 0.03) & (joints < 0) | (angles > high - 0.03) & (joints > 0)
            free = free * ~stuck
        return joints * free

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        position, closed = next(self.plan)
        velocity = self.GAIN * (position - self.gripper.xpos)
        velocity *= min(1, self.MAX_SPEED / max(np.linalg.norm(velocity), 1e-9))
        axes = self.gripper.xmat.reshape(3, 3)
        turn = self.TURN_GAIN * np.cross(axes, self.FORWARD, axis=0).sum(axis=1) / 2
        # An action of 1 is 2 rad/s, done by a spring towards the angle reached after one step; without its
        # share of the gravity the arm would sag.
        arm = self.joint_velocities(np.concatenate([velocity, turn])) / 2
        reach = 2 * self.robot.dt  # radians
        arm += self.data.qfrc_bias[:7] / self.model.actuator_gainprm[:7, 0] / reach
        arm += self.noise * self.rng.standard_normal(7)
        return np.clip([*arm, *[-1 if closed else 1] * 2], -1, 1)


# -------------------------------------------------------------------------------------------------------- pen
class PenController:
    """Tries a few hand postures in the simulator every 0.1 s and takes the best. Knows the simulator's state.

    A posture is one action, held. Candidates are the one before (at first the middle of every joint's range)
    and random ones around it, each rolled out from the present state. They are few for a hand of 24 joints:
    in many episodes the pen is dropped or does not get there. Noise: Gaussian, its standard deviation drawn
    from U(0, 0.2) for an episode.
    """

    HOLD, HORIZON = 10, 30  # steps of 10 ms: until the next choice, and of a rollout
    CANDIDATES, SPREAD = 12, 0.3
    # Added to the rewards, which hardly grow before the pen is nearly right: for its direction's cosine with
    # the wanted one, for metres of distance, for falling.
    DIRECTION, DISTANCE, DROP = 20.0, -100.0, -3000.0
    LOW = 0.12  # metres; a pen below is as good as dropped

    def __init__(self, env: gym.Env, info: dict, rng: np.random.Generator):
        self.rng, self.noise = rng, rng.uniform(0, 0.2)
        self.hand, self.step = env.unwrapped, 0
        self.posture = np.zeros(24)

    def value(self, posture: np.ndarray) -> float:
        """What a rollout earns that holds this posture [24]; moves the simulator."""
        total = 0.0
        for _ in range(self.HORIZON):
            obs, reward, *_ = self.hand.step(posture)
            if obs[26] < self.LOW:
                return total + self.DROP
            total += reward + self.DIRECTION * obs[33:36] @ obs[36:39]
            total += self.DISTANCE * np.linalg.norm(obs[39:42])
        return total

    def best_posture(self) -> np.ndarray:
        """[24], of the candidates; the simulator is afterwards in the state that it was in."""
        model, data = self.hand.model, self.hand.data
        everything = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(model, everything))
        mujoco.mj_getState(model, data, state, everything)
        candidates = self.posture + self.SPREAD * self.rng.standard_normal((self.CANDIDATES, 24))
        candidates = np.clip([self.posture, *candidates], -1, 1)
        values = []
        for candidate in candidates:
            values.append(self.value(candidate))
            mujoco.mj_setState(model, data, state, everything)
        return candidates[np.argmax(values)]

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        if self.step % self.HOLD == 0:
            self.posture = self.best_posture()
        self.step += 1
        return np.clip(self.posture + self.noise * self.rng.standard_normal(24), -1, 1)


# --------------------------------------------------------------------------------------------------- Reacher
class ReacherController:
    """An arm of two joints that reaches for points of the disc in which targets lie, for 5 to 25 steps each,
    but never knowingly for the episode's target; torques of a PD controller, of a gain drawn for each point,
    and noise. So the mean action leads nowhere, and a policy has to put together what the arm did on its ways
    elsewhere."""

    UPPER, FOREARM, RADIUS = 0.1, 0.11, 0.2  # metres; of the disc
    DAMPING = 0.2  # seconds: velocity against angle in the torque
    NOISE = 0.1  # standard deviation of an action's

    def __init__(self, env: gym.Env, info: dict, rng: np.random.Generator):
        self.rng, self.steps_left = rng, 0

    def angles_at(self, point: np.ndarray) -> np.ndarray:
        """Both joints' angles that bring the fingertip to the point; which of the two ways, by chance."""
        across = (point @ point - self.UPPER**2 - self.FOREARM**2) / (2 * self.UPPER * self.FOREARM)
        elbow = self.rng.choice([-1, 1]) * np.arccos(np.clip(across, -1, 1))
        offset = np.arctan2(self.FOREARM * np.sin(elbow), self.UPPER + self.FOREARM * np.cos(elbow))
        return np.array([np.arctan2(point[1], point[0]) - offset, elbow])

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        if self.steps_left == 0:
            radius, direction = self.RADIUS * np.sqrt(self.rng.random()), self.rng.uniform(-np.pi, np.pi)
            self.wanted = self.angles_at(radius * np.array([np.cos(direction), np.sin(direction)]))
            self.steps_left, self.gain = self.rng.integers(5, 26), self.rng.uniform(0.3, 0.9)
        self.steps_left -= 1
        cos, sin, velocities = obs[:2], obs[2:4], obs[6:8]
        error = self.wanted - np.arctan2(sin, cos)
        error[0] = (error[0] + np.pi) % (2 * np.pi) - np.pi  # the first joint turns all the way round
        action = self.gain * (error - self.DAMPING * velocities) + self.NOISE * self.rng.standard_normal(2)
        return np.clip(action, -1, 1)


CONTROLLERS = {
    "antmaze": AntController,
    "kitchen": KitchenController,
    "pen": PenController,
    "Reacher": ReacherController,
}


def controller_for(env_id: str) -> type:
    """The controller's class for an environment of benchmark/envs/d4rl.py, or for Reacher-v5."""
    family = env_id.partition("-")[0]
    if family not in CONTROLLERS:
        raise SystemExit(f"{env_id}: no controller; there is one for each of {', '.join(CONTROLLERS)}")
    return CONTROLLERS[family]
