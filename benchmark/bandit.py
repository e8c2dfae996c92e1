"""The 2D bandits of DTQL (arXiv 2405.19690) and SRPO (arXiv 2310.07297), as pictures and as numbers.

    python benchmark/bandit.py                               # every panel: benchmark/results/bandit.json
    python benchmark/bandit.py --panels theorem1 far         # these alone

Networks, losses, schedules and training steps are those of the four scripts, imported; what stands here is the
toy around them: data, rewards, panels, and the density of a diffusion model by its probability-flow ODE. All
seeds train together, so a job is one run of the scripts with num_seeds = --seeds. docs/bandit.md shows the
pictures and says what was seen and what was not.

The toy, where it is not the papers' (DTQL's: width 128, time embedding 4, Adam 3e-3, 3500 iterations):

- Actions are in the papers' units in here and in every picture; the scripts see them divided by `unit`, 4 for
  DTQL's sets. Their σ_data = 0.5 is then 2 units: below the 5 units between the grid's means, so that the noise
  tells modes apart, and far above their 0.3, so that the trust region is felt from outside one. Scaling
  the data to [-1, 1], as EDM would have it, makes the noise blur the modes: panel theorem1 shows it.
- The one state is the constant 1: at 0, the layers of a Gaussian policy (ReLU, zero biases) never move.
- A terminal transition: Q learns the reward alone, V and the expectile (0.95) play no part.
- Rewards are scaled to a maximum of 6, α = 1.
- Behaviour model and critic are trained first, once per data set and reward, and then stay, instead of along
  with each policy; minibatches replace the full batch of 10 000. Their steps and sizes: the constants below.
"""

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import dtql_gaussian  # noqa: E402
import dtql_implicit  # noqa: E402
import kl_distill  # noqa: E402
import srpo  # noqa: E402

# Imported where they are used: matplotlib, PIL, tqdm, tyro. The numbers need torch alone.

CPU = torch.device("cpu")
DIMS = [1, 2, 1, 1, 1]  # obs, action, reward, next_obs, terminal
DATA_SIZE = 10_000
LEARNING_RATE = 3e-3  # of every network
MAX_REWARD = 6.0
BEHAVIOR_STEPS, BEHAVIOR_BATCH = 2500, 512
CRITIC_STEPS, CRITIC_BATCH = 1000, 256
POLICY_STEPS, POLICY_BATCH = 3500, 64
SRPO_STEPS, SRPO_BATCH = 2000, 256
SAMPLES = 2000  # of each policy, for its numbers


# ----------------------------------------------------------------------------------------------------- data
GRID = torch.cartesian_prod(*[torch.linspace(-10, 10, 5)] * 2)  # [25, 2]
GRID_STD = 0.3
CIRCLE = 4 * torch.stack([(torch.arange(8) * math.pi / 4).cos(), (torch.arange(8) * math.pi / 4).sin()], dim=1)


def mixture(n: int, g, means: Tensor, std: float) -> Tensor:
    return means[torch.randint(len(means), (n,), generator=g)] + std * torch.randn(n, 2, generator=g)


def swissroll(n: int, g, noise: float = 0.1) -> Tensor:
    """The two flat axes of scikit-learn's Swiss roll: one and a half turns, radius 4.7 to 14.1."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, 1, generator=g))
    return t * torch.cat([t.cos(), t.sin()], dim=1) + noise * torch.randn(n, 2, generator=g)


def checkerboard(n: int, g) -> Tensor:
    """Uniform on 8 of 16 squares of side 2."""
    column, row = torch.randint(4, (2, n), generator=g)
    row = 2 * (row // 2) + column % 2
    return 2 * (torch.stack([column, row], dim=1) + torch.rand(n, 2, generator=g)) - 4


def spirals(n: int, g) -> Tensor:
    """Two arms of one and a half turns, radius 0 to 3.1."""
    t = 3 * math.pi * torch.rand(n, 1, generator=g).sqrt()
    arm = 1 - 2 * torch.randint(2, (n, 1), generator=g)
    return arm * torch.cat([-t * t.cos(), t * t.sin()], dim=1) / 3 + 0.1 * torch.randn(n, 2, generator=g)


def rings(n: int, g) -> Tensor:
    """Four circles of radius 0.75, 1.5, 2.25 and 3, equally likely."""
    radius = 0.75 * (1 + torch.randint(4, (n, 1), generator=g))
    t = 2 * math.pi * torch.rand(n, 1, generator=g)
    return radius * torch.cat([t.cos(), t.sin()], dim=1) + 0.08 * torch.randn(n, 2, generator=g)


def moons(n: int, g) -> Tensor:
    """Two interleaved half circles of radius 2."""
    lower = torch.randint(2, (n, 1), generator=g)
    t = math.pi * torch.rand(n, 1, generator=g)
    sign = 1 - 2 * lower
    a = torch.cat([sign * t.cos() + lower, sign * t.sin() + lower / 2], dim=1)
    return 2 * a + torch.tensor([-1.0, -0.5]) + 0.2 * torch.randn(n, 2, generator=g)


@dataclass(frozen=True)
class Plane:
    """A data set of actions in the plane, in its paper's units."""

    sample: Callable  # (n, generator) -> [n, 2]
    unit: float  # that many of these units are 1 to the scripts
    box: float  # a_max
    extent: float  # half the width of its picture


PLANES = {
    "grid25": Plane(lambda n, g: mixture(n, g, GRID, GRID_STD), unit=4, box=20, extent=13),
    "swissroll": Plane(swissroll, unit=4, box=24, extent=16),
    "8gaussians": Plane(lambda n, g: mixture(n, g, CIRCLE / 2**0.5, 0.5 / 2**0.5), unit=1, box=8, extent=4.5),
    "swissroll5": Plane(lambda n, g: swissroll(n, g, noise=1.0) / 5, unit=1, box=8, extent=4.5),
    "checkerboard": Plane(checkerboard, unit=1, box=8, extent=4.5),
    "2spirals": Plane(spirals, unit=1, box=8, extent=4.5),
    "rings": Plane(rings, unit=1, box=8, extent=4.5),
    "moons": Plane(moons, unit=1, box=8, extent=4.5),
}
SRPO_PLANES = ("8gaussians", "swissroll5", "checkerboard", "2spirals", "rings", "moons")


def make_data(name: str, n: int = DATA_SIZE, seed: int = 0) -> Tensor:
    """[n, 2]; the data of a training run has seed 0."""
    return PLANES[name].sample(n, torch.Generator().manual_seed(seed))


def reward_of(kind: str, name: str, action: Tensor) -> Tensor:
    """DTQL's rewards; action [..., 2], result [...]. far: distance from the origin; near: the data's largest
    distance less that; hard: far, doubled in the corner x < -7.5, y > 7.5."""
    distance = action.norm(dim=-1)
    if kind == "near":
        return make_data(name).norm(dim=-1).max() - distance
    corner = (action[..., 0] < -7.5) & (action[..., 1] > 7.5)
    return distance * (1 + corner) if kind == "hard" else distance


def on_data(name: str, action: Tensor) -> Tensor:
    """Whether actions [n, 2] lie on the data: within 3 standard deviations of a mean of the grid; elsewhere as
    near to a point of the data as 99 % of fresh data are."""
    if name == "grid25":
        return torch.cdist(action, GRID).amin(dim=1) < 3 * GRID_STD
    data = make_data(name)
    distance = lambda points: torch.cdist(points, data).amin(dim=1)
    return distance(action) < distance(make_data(name, 2000, seed=1)).quantile(0.99)


def modes_covered(name: str, action: Tensor) -> int:
    """Of 25: the grid's means, or stretches of the Swiss roll of equal probability, that hold at least 0.5 % of
    the actions [n, 2], counting only those on the data."""
    action_on = action[on_data(name, action)]
    if name == "grid25":
        mode = torch.cdist(action_on, GRID).argmin(dim=1)
    else:  # the radius is the angle
        mode = ((action_on.norm(dim=1) / (1.5 * math.pi) - 1) / 2 * 25).long().clamp(0, 24)
    return int((torch.bincount(mode, minlength=25) >= 0.005 * len(action)).sum())


# ---------------------------------------------------------------------------------------- the scripts at work
@contextlib.contextmanager
def small_networks(script):
    """Inside, the script builds its networks in the toy's sizes: width 128 and time embedding 4, for SRPO's
    residual network 64 and 64; and all of them learn at the toy's rate."""
    width, time_dim = (64, 64) if script is srpo else (128, 4)
    toy = {"HIDDEN_DIM": width, "TIME_DIM": time_dim, "CRITIC_LEARNING_RATE": LEARNING_RATE}
    original = {name: getattr(script, name) for name in toy}
    vars(script).update(toy)
    try:
        yield
    finally:
        vars(script).update(original)


@contextlib.contextmanager
def policy_alone(script):
    """Inside, the script's train_update leaves critics and behaviour model as they are."""
    original = script.pretrain_update
    script.pretrain_update = lambda *_: {}
    try:
        yield
    finally:
        script.pretrain_update = original


def make_args(script, seeds: int, **flags):
    toy = {"alpha": 1.0, "expectile": 0.95, "entropy_coef": 0.0, "lr_decay": False, "policy_layers": 2,
           "normalize_q_gradient": False, "learning_rate": LEARNING_RATE, "compile": False}  # fmt: skip
    known = {name: x for name, x in toy.items() if name in script.Args.__dataclass_fields__}
    return script.Args(num_seeds=seeds, **(known | flags))


def make_agent(script, name: str, seeds: int, **flags) -> nn.Module:
    plane = PLANES[name]
    with small_networks(script):
        return script.Agent(1, [plane.box / plane.unit] * 2, make_args(script, seeds, **flags), CPU)


def make_transitions(name: str, reward: Tensor) -> Tensor:
    """Rows of the scripts: state 1, action, reward [N], next state 1, terminal."""
    one = torch.ones(len(reward), 1)
    return torch.cat([one, make_data(name) / PLANES[name].unit, reward.unsqueeze(1), one, one], dim=1)


def train(script, agent, transitions: Tensor, phase, steps: int, decayed: tuple[str, ...] = ()) -> dict:
    """`steps` steps of a phase, as the script's own loop does them; losses [seed] by name, of the last tenth.

    decayed: names of optimisers whose learning rates fall to 0 by a cosine."""
    generators = [
        torch.Generator().manual_seed(script.derive_seed(seed, 1)) for seed in script.seeds_of(agent.args)
    ]
    totals: dict[str, Tensor] = {}
    step = script.make_step(agent, transitions, DIMS, generators, phase, totals)
    tail = math.ceil(steps / 10)
    for i in range(steps):
        if i == steps - tail:
            for total in totals.values():
                total.zero_()
        step()
        if decayed:
            optimizers = [agent.optimizers[name] for name in decayed]
            script.decay_learning_rates(optimizers, torch.tensor(i + 1.0), steps)
    return {loss: (total / tail).tolist() for loss, total in totals.items()}


def denoiser_update(agent, batch, u, eps) -> dict[str, Tensor]:
    """The behaviour half of dtql_gaussian.pretrain_update."""
    obs, action, *_ = batch
    loss = dtql_gaussian.denoising_loss(agent.denoiser, action, obs, u[0], eps[0], agent.max_action, agent.args)
    dtql_gaussian.minimize(loss, agent.optimizers["denoiser"])
    return {"bc_loss": loss.detach()}


def critic_update(agent, batch, u, eps) -> dict[str, Tensor]:
    """The Q of dtql_gaussian.pretrain_update, whose V is multiplied by 0 where every transition is terminal."""
    obs, action, reward, _, terminal = batch
    loss = dtql_gaussian.q_loss(agent.q(obs, action), reward.squeeze(-1), terminal.squeeze(-1), 0.0, 1.0)
    dtql_gaussian.minimize(loss, agent.optimizers["q"])
    return {"q_loss": loss.detach()}


# ------------------------------------------------------------------------------------------------------ jobs
@dataclass(frozen=True)
class Job:
    """Something to compute in a process of its own: function(*results of needs, *args) -> dict."""

    function: Callable
    args: tuple
    needs: tuple["Job", ...] = ()


def run_job(job: Job, *results: dict) -> dict:
    torch.set_num_threads(1)  # one per process; threads of two would wait for each other
    start = time.perf_counter()
    return job.function(*results, *job.args) | {"seconds": time.perf_counter() - start}


def train_denoiser(name: str, seeds: int, sigma_data: float = 0.5, steps: int = BEHAVIOR_STEPS) -> dict:
    script = dtql_gaussian
    agent = make_agent(script, name, seeds, batch_size=BEHAVIOR_BATCH, sigma_data=sigma_data)
    transitions = make_transitions(name, torch.zeros(DATA_SIZE))
    losses = train(script, agent, transitions, script.Phase(denoiser_update, 1, 1), steps, ("denoiser",))
    return losses | {"weights": agent.denoiser.state_dict(), "iterations": steps}


def train_critic(name: str, reward: str, seeds: int, steps: int = CRITIC_STEPS) -> dict:
    script = dtql_gaussian
    agent = make_agent(script, name, seeds, batch_size=CRITIC_BATCH)
    agent.optimizers["q"] = script.adam(agent.q.parameters(), LEARNING_RATE)  # without V
    rewards = reward_of(reward, name, make_data(name))
    transitions = make_transitions(name, rewards * (MAX_REWARD / rewards.max()))
    losses = train(script, agent, transitions, script.Phase(critic_update, 0, 0), steps, ("q",))
    return losses | {"weights": agent.q.state_dict(), "iterations": steps}


def train_policy(denoiser: dict, critic: dict | None, script_name: str, name: str, seeds: int, flags=(),
                 steps: int = POLICY_STEPS) -> dict:  # fmt: skip
    """A policy by its script's own train_update; samples [seed, SAMPLES, 2]. No critic: Q = 0."""
    script = sys.modules[script_name]
    agent = make_agent(script, name, seeds, batch_size=POLICY_BATCH, train_steps=steps, **dict(flags))
    agent.denoiser.load_state_dict(denoiser["weights"])
    if critic:
        agent.q.load_state_dict(critic["weights"])
    else:
        for param in agent.q.parameters():
            nn.init.zeros_(param)
    phase = script.PHASES["train"]
    phase.start(agent)
    with policy_alone(script):
        losses = train(script, agent, make_transitions(name, torch.zeros(DATA_SIZE)), phase, steps)
    noise = torch.randn(seeds, 1, SAMPLES, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = agent.policy.sample(torch.ones(seeds, 1, 1), noise)[:, 0] * PLANES[name].unit
    return losses | {"samples": samples, "iterations": steps}
