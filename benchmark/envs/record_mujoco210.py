"""Writes tests/mujoco210.npz: what MuJoCo 2.1.0, an engine of D4RL's time, makes of the scores' models.

    pip download free-mujoco-py==2.1.6 --no-deps --ignore-requires-python -d wheel
    python -m benchmark.envs.record_mujoco210 wheel/free_mujoco_py-2.1.6-py3-none-any.whl

The wheel ships the library; ctypes drives it and nothing is installed (Linux on x86-64 only). It loads the
XML files of gymnasium and gymnasium-robotics as they stand. What D4RL's environments have otherwise is set
here, independently of benchmark/envs/d4rl.py, whose models tests/test_physics.py compares with the file:

    NAME/body_mass [nbody] kg, NAME/body_inertia [nbody, 3] kg m², NAME/body_ipos [nbody, 3] m
    NAME/control [episodes, steps, nu]         ctrl, held for one step of the environment
    NAME/state [episodes, steps + 1, nq + nv]  qpos and qvel before, between and after these steps

Each step begins with mj_resetData: the solver's warm start, which an environment carries from step to step,
is zero, and a state and a control alone determine the next state.
"""

import argparse
import ctypes
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable
from pathlib import Path

import gymnasium
import gymnasium_robotics
import numpy as np

LIBRARY = "mujoco_py/binaries/linux/mujoco210/bin/libmujoco210nogl.so"  # in the wheel
OUTPUT = Path(__file__).resolve().parents[2] / "tests" / "mujoco210.npz"
GYM = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
ROBOTICS = Path(gymnasium_robotics.__file__).parent / "envs/assets"
# offsetof() of the structs in the wheel's mjmodel.h and mjdata.h: the model's sizes, of type int, and the
# pointers to arrays, each with its number of rows and of columns.
SIZES = {"nq": 0, "nv": 4, "nu": 8, "nbody": 16, "ngeom": 24}
MODEL = {
    "body_ipos": (1216, "nbody", 3),
    "body_mass": (1232, "nbody", 1),
    "body_inertia": (1248, "nbody", 3),
    "geom_contype": (1488, "ngeom", 1),
    "geom_conaffinity": (1496, "ngeom", 1),
    "actuator_gainprm": (2744, "nu", 10),
    "actuator_biasprm": (2752, "nu", 10),
    "actuator_ctrlrange": (2760, "nu", 2),
}
DATA = {"qpos": (40376, "nq", 1), "qvel": (40384, "nv", 1), "ctrl": (40408, "nu", 1)}
UMAZE = ["11111", "1R001", "11101", "1G001", "11111"]  # D4RL's maze_env.py, U_MAZE_TEST
KITCHEN_START = [  # D4RL's kitchen_multitask_v0.py, init_qpos
    1.48388023e-01, -1.76848573e00, 1.84390296e00, -2.47685760e00, 2.60252026e-01, 7.12533105e-01,
    1.59515394e00, 4.79267505e-02, 3.71350919e-02, -2.66279850e-04, -5.18043486e-05, 3.12877220e-05,
    -4.51199853e-05, -3.90842156e-06, -4.22629655e-05, 6.28065475e-05, 4.04984708e-05, 4.62730939e-04,
    -2.26906415e-04, -4.65501369e-04, -6.44129196e-03, -1.77048263e-03, 1.08009684e-03, -2.69397440e-01,
    3.50383255e-01, 1.61944683e00, 1.00618764e00, 4.06395120e-03, -6.62095997e-03, -2.68278933e-04,
]  # fmt: skip
KITCHEN_LOW = [-2.9, -1.8, -2.9, -3.1, -2.9, 0, -2.9, 0, 0]  # D4RL's franka_config.xml, pos_bound of the
KITCHEN_HIGH = [2.9, 1.8, 2.9, 0, 2.9, 3.8, 2.9, 0.04, 0.04]  # robot's 9 joints


class Simulation:
    """A model and its data in MuJoCo 2.1.0; the fields of MODEL and DATA are attributes, NumPy views."""

    def __init__(self, library: ctypes.CDLL, xml: Path):
        library.mj_loadXML.restype = library.mj_makeData.restype = ctypes.c_void_p
        error = ctypes.create_string_buffer(1000)
        self.library, self.model = library, ctypes.c_void_p(library.mj_loadXML(bytes(xml), None, error, 1000))
        if not self.model:
            raise ValueError(f"{xml}: {error.value.decode()}")
        self.data = ctypes.c_void_p(library.mj_makeData(self.model))
        for struct, fields in ((self.model, MODEL), (self.data, DATA)):
            for name, (offset, size, columns) in fields.items():
                rows = ctypes.c_int.from_address(self.model.value + SIZES[size]).value
                kind = ctypes.c_int if name.startswith("geom_con") else ctypes.c_double
                address = ctypes.c_void_p.from_address(struct.value + offset).value
                array = np.ctypeslib.as_array((kind * (rows * columns)).from_address(address))
                setattr(self, name, array.reshape(rows, columns) if columns > 1 else array)

    def step(self, state: np.ndarray, control: np.ndarray, substeps: int) -> np.ndarray:
        """[nq + nv]: the state this many simulation steps later."""
        self.library.mj_resetData(self.model, self.data)
        self.qpos[:], self.qvel[:] = np.split(state, [len(self.qpos)])
        self.ctrl[:] = control
        for _ in range(substeps):
            self.library.mj_step(self.model, self.data)
        return np.concatenate([self.qpos, self.qvel])

    def record(self, substeps: int, episodes: int, steps: int, start, noise: float, control: Callable):
        """The fields of one model. control(qpos, action) is ctrl; actions are an autoregressive noise."""
        rng = np.random.default_rng(0)
        state = np.zeros((episodes, steps + 1, len(self.qpos) + len(self.qvel)))
        ctrl = np.zeros((episodes, steps, len(self.ctrl)))
        for episode in range(episodes):
            action = np.zeros(len(self.ctrl))
            state[episode, 0, : len(self.qpos)] = start
            state[episode, 0] += noise * rng.uniform(-1, 1, state.shape[-1])
            for t in range(steps):
                action = np.clip(0.7 * action + 0.7 * rng.normal(size=len(action)), -1, 1)
                ctrl[episode, t] = control(state[episode, t, : len(self.qpos)], action)
                state[episode, t + 1] = self.step(state[episode, t], ctrl[episode, t], substeps)
        bodies = {name: getattr(self, name).copy() for name in ("body_mass", "body_inertia", "body_ipos")}
        return bodies | {"control": ctrl, "state": state}

    def scaled(self, qpos: np.ndarray, action: np.ndarray) -> np.ndarray:
        """[nu]: ctrl that lies in each actuator's range where the action lies in [-1, 1]."""
        low, high = self.actuator_ctrlrange.T
        return (low + high) / 2 + action * (high - low) / 2


def robot(library: ctypes.CDLL, name: str, substeps: int, noise: float) -> dict:
    """Hopper, Walker2d or HalfCheetah from its own start, with its own reset's noise."""
    simulation = Simulation(library, GYM / f"{name}.xml")
    return simulation.record(substeps, 4, 50, simulation.qpos.copy(), noise, simulation.scaled)


def antmaze(library: ctypes.CDLL, folder: Path) -> dict:
    """The ant in the smallest maze, beside two walls: gymnasium's, but for what D4RL's
    locomotion/assets/ant.xml and maze_env.py have otherwise: time step, contacts, walls, motors of 30 N m."""
    tree = ElementTree.parse(GYM / "ant.xml")
    tree.find("option").set("timestep", "0.02")
    tree.find("default/geom").set("solimp", ".8 .8 .01")
    for motor in tree.findall("actuator/motor"):
        motor.set("gear", "30")
    for i, row in enumerate(UMAZE):
        for j, cell in enumerate(row):
            if cell == "1":
                block = {
                    "type": "box",
                    "pos": f"{4 * j - 4} {4 * i - 4} 1",
                    "size": "2 2 1",
                    "conaffinity": "1",
                }
                ElementTree.SubElement(tree.find("worldbody"), "geom", block)
    tree.write(folder / "ant.xml")
    simulation = Simulation(library, folder / "ant.xml")
    start = simulation.qpos + [-0.9, -0.9, *[0] * 13]
    return simulation.record(5, 4, 50, start, 0.1, simulation.scaled)


def adroit(library: ctypes.CDLL, name: str, episodes: int) -> dict:
    """A task of the hand; the gains are those that D4RL's environments set, e.g. pen_v0.py."""
    simulation = Simulation(library, ROBOTICS / f"adroit_hand/adroit_{name}.xml")
    wrist, fingers = np.split(np.arange(len(simulation.ctrl))[-24:], [2])  # what moves the arm comes first
    for actuators, gain in ((wrist, 10), (fingers, 1)):
        simulation.actuator_gainprm[actuators, :3] = gain, 0, 0
        simulation.actuator_biasprm[actuators, :3] = 0, -gain, 0
    calm = 0.3 if name == "door" else 1  # else the hand is pressed into the table
    control = lambda qpos, action: simulation.scaled(qpos, calm * action)
    return simulation.record(5, episodes, 25, simulation.qpos.copy(), 0, control)


def kitchen(library: ctypes.CDLL) -> dict:
    """The kitchen; D4RL's pedestal of the robot, geom 1, is only seen, and joints are told where to be."""
    simulation = Simulation(library, ROBOTICS / "kitchen_franka/kitchen_assets/kitchen_env_model.xml")
    simulation.geom_contype[1] = simulation.geom_conaffinity[1] = 0
    start = np.array(KITCHEN_START)
    start[26:] /= np.linalg.norm(start[26:])  # the kettle's orientation: 2.1.0 does so in its first step
    speed = 0.5  # rad/s, of at most 2: the robot shall not touch the kettle
    target = lambda qpos, action: np.clip(qpos[:9] + 0.08 * speed * action, KITCHEN_LOW, KITCHEN_HIGH)
    return simulation.record(40, 2, 25, start, 0, target)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("wheel", type=Path, help="free_mujoco_py-2.1.6-py3-none-any.whl")
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(zipfile.ZipFile(parser.parse_args().wheel).extract(LIBRARY, folder))
        models = {
            "hopper": robot(library, "hopper", 4, 0.005),
            "walker2d": robot(library, "walker2d", 4, 0.005),
            "halfcheetah": robot(library, "half_cheetah", 5, 0.1),
            "antmaze": antmaze(library, Path(folder)),
            "pen": adroit(library, "pen", 4),
            **{name: adroit(library, name, 2) for name in ("door", "hammer", "relocate")},
            "kitchen": kitchen(library),
        }
    arrays = {f"{name}/{field}": array for name, fields in models.items() for field, array in fields.items()}
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
