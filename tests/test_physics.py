"""The models of the evaluation against MuJoCo 2.1.0, the engine of D4RL's time.

tests/mujoco210.npz holds what that engine computed; benchmark/envs/record_mujoco210.py says how and what.
"""

import json
import re
import warnings
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from helpers import ROOT

from benchmark.envs.physics import KETTLE, ROBOTS, STEPS, errors, make, with_d4rl_masses

MASSES = {"hopper": 15.265, "walker2d": 22.698, "halfcheetah": 14, "antmaze": 0.87871}  # kg
FIELDS = ("body_mass", "body_inertia", "body_ipos")
STEP = {"hammer": 1e-8, "kitchen": 1e-9}  # largest error of a step, where it is more than 1e-10


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parent / "mujoco210.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", STEPS)
def test_masses_and_inertias(recorded, name):
    model = make(name).model
    for field in FIELDS:
        # MuJoCo computes the inertia of a mesh, of which the kitchen's robot has some, a little differently.
        np.testing.assert_allclose(getattr(model, field), recorded[f"{name}/{field}"], rtol=1e-12, atol=3e-9)
    if name in MASSES:
        assert model.body_mass.sum() == pytest.approx(MASSES[name], abs=5e-4)
        assert model.body_subtreemass[0] == pytest.approx(MASSES[name], abs=5e-4)  # derived ones follow


@pytest.mark.parametrize("name", STEPS)
def test_single_steps(recorded, name):
    error = errors(recorded, name, make(name))
    if name == "kitchen":
        kettle, error = error[..., KETTLE], np.delete(error, KETTLE, axis=-1)
        # MuJoCo before 3.4.0 takes half of a contact's depth between two boxes, here the kettle and its hob.
        assert kettle[..., :7].max() < 3e-4 and kettle.max() < 0.1  # metres, quaternion parts; m/s and rad/s
    assert error.max() < STEP.get(name, 1e-10)


def test_the_recorded_steps_touch_what_they_shall_compare(recorded):
    """Ground, walls, the pen in the hand: a comparison of free flight would show little."""
    for name, others in (
        ("hopper", ["floor"]),
        ("antmaze", ["floor", ""]),
        ("pen", ["pen"]),
        ("hammer", ["handle"]),
    ):
        simulation = make(name)
        touched = set()
        for state in recorded[f"{name}/state"].reshape(-1, simulation.model.nq + simulation.model.nv):
            simulation.set_state(*np.split(state, [simulation.model.nq]))
            touched |= {
                simulation.model.geom(i).name for contact in simulation.data.contact for i in contact.geom
            }
        assert touched >= set(others), name


@pytest.mark.parametrize("name", [*ROBOTS, "antmaze"])
def test_one_capsule_with_the_mass_of_a_later_mujoco_is_noticed(recorded, name):
    simulation = make(name)
    model, later = simulation.model, mujoco.MjModel.from_xml_path(simulation.fullpath)
    right = model.body_mass.copy()
    wrong = np.flatnonzero(np.abs(later.body_mass - right) > 1e-6)
    assert len(wrong) >= 4
    for body in wrong:
        model.body_mass[:] = right
        model.body_mass[body] = later.body_mass[body]
        mujoco.mj_setConst(model, mujoco.MjData(model))
        assert errors(recorded, name, simulation).max() > 1e-4


@pytest.mark.parametrize("name", ["pen", "hammer", "door"])
def test_the_later_collider_is_noticed(recorded, name):
    simulation = make(name)
    simulation.model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
    assert errors(recorded, name, simulation).max() > 1e-4


@pytest.mark.parametrize("name", ROBOTS)
def test_masses_last_over_resets_and_an_episode_uses_them(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, env = gym.make(ROBOTS[name]), with_d4rl_masses(gym.make(ROBOTS[name]))
    (start, _), (same, _) = plain.reset(seed=0), env.reset(seed=0)
    assert start.tolist() == same.tolist()
    action = np.full(env.action_space.shape, 0.5, np.float32)
    assert np.abs(plain.step(action)[0] - env.step(action)[0]).max() > 1e-4
    assert env.unwrapped.model.body_mass.sum() == pytest.approx(MASSES[name], abs=5e-4)


def test_the_column_of_errors_is_the_programs():
    steps = json.loads((ROOT / "benchmark/results/physics/steps.json").read_text())
    rows = re.findall(
        r"(?m)^\| (\w+) \|.*\| (\S+e\S+) \| (\S+e\S+) \|$", (ROOT / "docs/physics.md").read_text()
    )
    assert rows == [(x, f"{steps[x]['position']:.0e}", f"{steps[x]['velocity']:.0e}") for x in [*steps][1:]]


def test_the_scores_are_the_programs():
    page = (ROOT / "docs/physics.md").read_text()
    for robot in ROBOTS:
        result = json.loads((ROOT / f"benchmark/results/physics/{robot}.json").read_text())
        cells = [
            f"{x['score']:.1f} ± {x['standard_error']:.1f}" for x in result.values() if isinstance(x, dict)
        ]
        assert f"| {robot} | {' | '.join(cells)} |" in page
