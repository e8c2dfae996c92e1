"""The 2D bandits of DTQL (arXiv 2405.19690) and SRPO (arXiv 2310.07297), as pictures and as numbers.

    python benchmark/bandit.py                               # every panel: benchmark/results/bandit.json
    python benchmark/bandit.py --panels theorem1 far         # these alone

Networks, losses, schedules and training steps are those of the four scripts, imported; what stands here is
the toy around them: data, rewards, panels, and the density of a diffusion model by its probability-flow ODE.
All seeds train together, as in the scripts. docs/bandit.md shows the pictures and says what was seen.

The toy, where it is not the papers' (DTQL's: width 128, time embedding 4, Adam 3e-3, 3500 iterations):

- Actions are in the papers' units in here and in every picture; the scripts see them divided by `unit`, 4 for
  DTQL's sets. Their σ_data = 0.5 is then 2 units: below the 5 units between the grid's means, so that the
  noise tells modes apart, and far above their 0.3, so that the trust region is felt from outside one. With
  σ_data the standard deviation of the data, as EDM has it, the noise blurs the modes: panel theorem1.
- The one state is the constant 1: at 0, the layers of a Gaussian policy (ReLU, zero biases) never move.
- A terminal transition: Q learns the reward alone, V and the expectile (0.95) play no part.
- Rewards are scaled to a maximum of 9, α = 1.
- Behaviour model and critic are trained first, once per data set and reward, and then stay, instead of along
  with each policy; minibatches replace the full batch of 10 000. Their steps and sizes: the constants below.
"""

import contextlib
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import dtql_gaussian  # noqa: E402
import dtql_implicit  # noqa: E402
import kl_distill  # noqa: E402
import srpo  # noqa: E402

SCRIPTS = {script.__name__: script for script in (dtql_gaussian, dtql_implicit, kl_distill, srpo)}

# Imported where they are used: matplotlib, PIL, tqdm, tyro. The numbers need torch alone.

CPU = torch.device("cpu")
DIMS = [1, 2, 1, 1, 1]  # obs, action, reward, next_obs, terminal
DATA_SIZE = 10_000
LEARNING_RATE = 3e-3  # of every network
MAX_REWARD = 9.0
BEHAVIOR_STEPS, BEHAVIOR_BATCH = 2500, 384
CRITIC_STEPS, CRITIC_BATCH = 800, 256
POLICY_STEPS, POLICY_BATCH = 1500, 128
SAMPLES = 2000  # of each policy, for its numbers


# ----------------------------------------------------------------------------------------------------- data
GRID = torch.cartesian_prod(*[torch.linspace(-10, 10, 5)] * 2)  # [25, 2]
GRID_STD = 0.3
CIRCLE = 4 * torch.stack(
    [(torch.arange(8) * math.pi / 4).cos(), (torch.arange(8) * math.pi / 4).sin()], dim=1
)


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
    "grid25": Plane(lambda n, g: mixture(n, g, GRID, GRID_STD), unit=4.0, box=20.0, extent=13.0),
    "swissroll": Plane(swissroll, unit=4.0, box=24.0, extent=16.0),
    "8gaussians": Plane(
        lambda n, g: mixture(n, g, CIRCLE / 2**0.5, 0.5 / 2**0.5), unit=0.5, box=8.0, extent=4.5
    ),
    "swissroll5": Plane(lambda n, g: swissroll(n, g, noise=1.0) / 5, unit=0.5, box=8.0, extent=4.5),
    "checkerboard": Plane(checkerboard, unit=0.5, box=8.0, extent=4.5),
    "2spirals": Plane(spirals, unit=0.5, box=8.0, extent=4.5),
    "rings": Plane(rings, unit=0.5, box=8.0, extent=4.5),
    "moons": Plane(moons, unit=0.5, box=8.0, extent=4.5),
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
    """Whether actions [n, 2] lie on the data: within 3 standard deviations of a mean of the grid; elsewhere
    as near to a point of the data as 99 % of fresh data are."""
    if name == "grid25":
        return torch.cdist(action, GRID).amin(dim=1) < 3 * GRID_STD
    data = make_data(name)
    distance = lambda points: torch.cdist(points, data).amin(dim=1)
    return distance(action) < distance(make_data(name, 2000, seed=1)).quantile(0.99)


def modes_covered(name: str, action: Tensor) -> int:
    """Of 25: the grid's means, or stretches of the Swiss roll of equal probability, that hold at least 0.5 %
    of the actions [n, 2], counting only those on the data."""
    action_on = action[on_data(name, action)]
    if name == "grid25":
        mode = torch.cdist(action_on, GRID).argmin(dim=1)
    else:  # the radius is the angle
        mode = ((action_on.norm(dim=1) / (1.5 * math.pi) - 1) / 2 * 25).long().clamp(0, 24)
    return int((torch.bincount(mode, minlength=25) >= 0.005 * len(action)).sum())


# ---------------------------------------------------------------------------------------- the scripts at work
@contextlib.contextmanager
def small_networks(script):
    """Inside, the script builds its networks in the toy's sizes, width 128 and time embedding 4."""
    toy = {"HIDDEN_DIM": 128, "TIME_DIM": 4}
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
    loss = dtql_gaussian.denoising_loss(
        agent.denoiser, action, obs, u[0], eps[0], agent.max_action, agent.args
    )
    dtql_gaussian.minimize(loss, agent.optimizers["denoiser"])
    return {"bc_loss": loss.detach()}


def critic_update(agent, batch, u, eps) -> dict[str, Tensor]:
    """The Q of dtql_gaussian.pretrain_update; every transition is terminal, so that V counts nothing."""
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


def train_policy(denoiser: dict, critic: dict, script_name: str, name: str, seeds: int, flags=(),
                 steps: int = POLICY_STEPS) -> dict:  # fmt: skip
    """A policy by its script's own train_update, with Q = 0 if the critic has no weights; samples
    [seed, SAMPLES, 2]."""
    script = SCRIPTS[script_name]
    agent = make_agent(script, name, seeds, batch_size=POLICY_BATCH, train_steps=steps, **dict(flags))
    agent.denoiser.load_state_dict(denoiser["weights"])
    if "weights" in critic:
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


def load_denoiser(name: str, seeds: int, weights: dict, **flags):
    """The trained denoiser as the losses take it, in the scripts' units, with its args and a_max."""
    agent = make_agent(dtql_gaussian, name, seeds, **flags)
    agent.denoiser.load_state_dict(weights)
    return dtql_gaussian.frozen(agent.denoiser), agent.args, agent.max_action


def trust_region(denoiser, args, max_action: Tensor, action: Tensor, draws: int = 64) -> Tensor:
    """L_TR of each action [seed, n, 2], [seed, n]: the mean over the same σ and ε for all of them, `draws` of
    both in strata of σ, each ε in four directions, so that no direction is preferred."""
    script, (seeds, n, _) = dtql_gaussian, action.shape
    g = torch.Generator().manual_seed(0)
    rows = lambda *inputs: denoiser(*(x.view(seeds, n, -1) for x in inputs)).view(seeds * n, 1, -1)
    state = torch.ones(seeds * n, 1, 1)
    total = torch.zeros(seeds, n)
    for i in range(draws):
        u = ((i + torch.rand(1, generator=g)) / draws).expand(seeds * n, 1, 1)
        x, y = torch.randn(2, generator=g)
        for eps in ((x, y), (-y, x), (-x, -y), (y, -x)):
            eps = torch.stack(eps).expand(seeds * n, 1, 2)
            with torch.no_grad():  # each action as a batch of its own, whose loss is then its own
                loss = script.denoising_loss(rows, action.reshape(-1, 1, 2), state, u, eps, max_action, args)
            total += loss.view(seeds, n) / (4 * draws)
    return total


def square(extent: float, n: int) -> Tensor:
    """Centres of the n × n cells of [-extent, extent]², rows of y first; [n², 2]."""
    x = extent * ((2 * torch.arange(n) + 1) / n - 1)
    return torch.stack(torch.meshgrid(x, x, indexing="xy"), dim=-1).view(-1, 2)


def map_trust_region(denoiser: dict, name: str, seeds: int, cells: int = 48) -> dict:
    """L_TR over the plane [seed, cells, cells], at data, and at uniform points off it, [seed, 1000] each."""
    plane = PLANES[name]
    loaded = load_denoiser(name, seeds, denoiser["weights"])
    g = torch.Generator().manual_seed(0)
    anywhere = plane.extent * (2 * torch.rand(8000, 2, generator=g) - 1)
    points = torch.cat([square(plane.extent, cells), make_data(name, 1000, seed=1),
                        anywhere[~on_data(name, anywhere)][:1000]])  # fmt: skip
    loss = trust_region(*loaded, (points / plane.unit).expand(seeds, -1, -1))
    heat, on, off = loss.split([cells**2, 1000, 1000], dim=1)
    return {"map": heat.view(seeds, cells, cells), "on": on, "off": off}


def descend_trust_region(denoiser: Callable, args, max_action: Tensor, start: Tensor, steps: int,
                         draws: int = 4, learning_rate: float = 0.05) -> Tensor:  # fmt: skip
    """Free actions [seed, n, 2] that descend L_TR alone by Adam, its rate falling to 0; where they end."""
    script, (seeds, n, _) = dtql_gaussian, start.shape
    g = torch.Generator().manual_seed(0)
    action = nn.Parameter(start.clone())
    optimizer = script.adam([action], learning_rate)
    state = torch.ones(seeds, draws * n, 1)
    for step in range(steps):
        script.decay_learning_rates([optimizer], torch.tensor(float(step)), steps)
        u = torch.rand(seeds, draws * n, 1, generator=g)
        eps = torch.randn(seeds, draws * n, 2, generator=g)
        loss = script.denoising_loss(denoiser, action.repeat(1, draws, 1), state, u, eps, max_action, args)
        script.minimize(loss, optimizer)
    return action.detach()


def end_on_modes(
    denoiser: dict, name: str, seeds: int, sigma_data: float = 0.5, steps: int = 400, starts: int = 1000
) -> dict:
    """Theorem 1: starts all over the plane, and where they are after descending L_TR; [seed, starts, 2]."""
    plane, g = PLANES[name], torch.Generator().manual_seed(1)
    start = plane.extent / plane.unit * (2 * torch.rand(seeds, starts, 2, generator=g) - 1)
    loaded = load_denoiser(name, seeds, denoiser["weights"], sigma_data=sigma_data)
    end = descend_trust_region(*loaded, start, steps)
    return {"start": start * plane.unit, "end": end * plane.unit, "iterations": steps}


# ------------------------------------------------------------------------------------------------ SRPO's jobs
def log_density(denoised: Callable, action: Tensor, sigma_min: float, sigma_max: float, steps: int) -> Tensor:
    """log p of actions [..., 2] under a diffusion model, by its probability-flow ODE; result [...].

    da/d ln σ = a - D(a, σ), by RK4 from σ_min to σ_max, where p is taken as N(0, σ_max² I); on the way log p
    changes by the divergence 2 - tr ∂D/∂a, exact by one product with the Jacobian per dimension.
    denoised: (a, σ) -> D(a, σ), of a's shape."""

    def slope(a: Tensor, log_sigma: float) -> tuple[Tensor, Tensor]:
        a = a.detach().requires_grad_()
        d = denoised(a, math.exp(log_sigma))
        last = d.shape[-1] - 1
        trace = sum(
            torch.autograd.grad(d[..., i].sum(), a, retain_graph=i < last)[0][..., i] for i in range(last + 1)
        )
        return (a - d).detach(), last + 1 - trace

    s, end = math.log(sigma_min), math.log(sigma_max)
    h = (end - s) / steps
    total = torch.zeros(action.shape[:-1])
    for _ in range(steps):
        k1, t1 = slope(action, s)
        k2, t2 = slope(action + h / 2 * k1, s + h / 2)
        k3, t3 = slope(action + h / 2 * k2, s + h / 2)
        k4, t4 = slope(action + h * k3, s + h)
        action = action + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total = total + h / 6 * (t1 + 2 * t2 + 2 * t3 + t4)
        s += h
    prior = -action.square().sum(dim=-1) / (2 * sigma_max**2) - math.log(2 * math.pi * sigma_max**2)
    return prior + total


def srpo_log_density(weights: dict, name: str, action: Tensor, steps: int = 24) -> Tensor:
    """action [seed, n, 2]; result [seed, n]. The papers' units."""
    plane = PLANES[name]
    denoiser, args, max_action = load_denoiser(name, len(action), weights)
    state = torch.ones(*action.shape[:2], 1)

    def denoised(a: Tensor, sigma: float) -> Tensor:
        return dtql_gaussian.denoise(denoiser, a, torch.full_like(a[..., :1], sigma), state, max_action, args)

    density = log_density(denoised, action / plane.unit, args.sigma_min, args.sigma_max, steps)
    return density - 2 * math.log(plane.unit)


def kernel_log_density(data: Tensor, action: Tensor) -> Tensor:
    """What a Gaussian kernel estimate of the best of three widths says of actions [n, 2]; [n]."""
    square_distance = torch.cdist(action, data).square()
    estimates = [
        (-square_distance / (2 * h**2)).logsumexp(dim=1) - math.log(2 * math.pi * h**2 * len(data))
        for h in (0.05, 0.1, 0.2)
    ]
    return max(estimates, key=lambda x: x.mean().item())


def map_density(denoiser: dict, name: str, seeds: int, cells: int = 56) -> dict:
    """The learned density over the plane [seed, cells, cells], and the log-density of fresh data."""
    fresh = make_data(name, 500, seed=1)
    points = torch.cat([square(PLANES[name].extent, cells), fresh]).expand(seeds, -1, -1)
    logs = srpo_log_density(denoiser["weights"], name, points)
    heat, held_out = logs.split([cells**2, len(fresh)], dim=1)
    return {"map": heat.exp().view(seeds, cells, cells), "held_out": held_out.mean(dim=1),
            "kernel": kernel_log_density(make_data(name), fresh).mean()}  # fmt: skip


class FreeActions(nn.Module):
    """SRPO's deterministic policy without a state: one point for each target, given `draws` times."""

    def __init__(self, action: Tensor, draws: int):
        super().__init__()
        self.action, self.draws = nn.Parameter(action.clone()), draws  # [seed, n, 2]

    def forward(self, obs: Tensor) -> Tensor:
        return self.action.repeat(1, self.draws, 1)  # [seed, draws * n, 2]


class DistanceQ(nn.Module):
    """Q(a) = -|a - a_tar|², as both of two critics."""

    def __init__(self, target: Tensor, unit: float):
        super().__init__()
        self.target, self.unit = target, unit

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        q = -(self.unit * (action - self.target)).square().sum(dim=-1)  # [seed, batch]
        return q.unsqueeze(1).expand(-1, 2, -1)


LEVELS = [(i + 1) / 10 for i in range(10)] + [i + 1.0 for i in range(1, 10)]  # of 1/β: to 1, and on to 10
OTHER_OMEGAS = ("one", "alpha_over_sigma")  # ω(t) in place of σ_t²: less of large noise, and still less
AT_ONE = 10  # where a path, which starts with 1/β = 0, has 1/β = 1


def follow_beta(denoiser: dict, name: str, seeds: int, omega: str = "sigma_squared", draws: int = 16,
                steps: int = 40) -> dict:  # fmt: skip
    """The policy π for each a_tar of a 6 × 6 grid as 1/β grows from 0, where π = a_tar, over LEVELS, by
    srpo.policy_update; path [seed, 1 + level, 36, 2], its log-density at 1/β = 0, 1, 10 [seed, 3, 36]."""
    plane = PLANES[name]
    denoise, _, max_action = load_denoiser(name, seeds, denoiser["weights"])
    args = make_args(srpo, seeds, omega=omega)
    target = (square(plane.extent, 6) / plane.unit).expand(seeds, -1, -1)
    policy = FreeActions(target, draws)
    agent = SimpleNamespace(
        args=args,
        policy=policy,
        target_q=DistanceQ(target.repeat(1, draws, 1), plane.unit),
        denoiser=denoise,
        max_action=max_action,
        trained=torch.zeros(()),
        optimizers={"policy": srpo.adam(policy.parameters(), 0.02)},
    )
    g, obs = torch.Generator().manual_seed(0), torch.ones(seeds, draws * target.shape[1], 1)
    path = [target]
    for level in LEVELS:
        args.beta = 1 / level
        mean = torch.zeros_like(target)
        for step in range(steps):
            u, eps = torch.rand(1, *obs.shape, generator=g), torch.randn(1, *obs.shape[:2], 2, generator=g)
            srpo.policy_update(agent, (obs,), u, eps)
            if step >= steps // 2:  # the mean of the second half: Adam's last point alone trembles
                mean += policy.action.detach() / (steps - steps // 2)
        path.append(mean)
    path = torch.stack(path, dim=1) * plane.unit
    ends = srpo_log_density(denoiser["weights"], name, path[:, [0, AT_ONE, -1]].flatten(1, 2))
    ends = ends.view(seeds, 3, -1)
    return {"path": path, "ends": ends, "iterations": len(LEVELS) * steps}


def regress(name: str, seeds: int, steps: int = 500) -> dict:
    """Forward KL with the same targets: a Gaussian policy by weighted regression, descending
    dtql_gaussian.nll_loss on data drawn with weights exp(β Q), 1/β = 10; its mean actions [seed, 36, 2]."""
    script, plane, data = dtql_gaussian, PLANES[name], make_data(name)
    target = square(plane.extent, 6)
    weights = (-torch.cdist(target, data).square() / LEVELS[-1]).softmax(dim=1)  # [36, N]
    state = torch.eye(len(target)).expand(seeds, -1, -1)  # which target, one-hot
    with small_networks(script):
        agent = script.Agent(len(target), [plane.box / plane.unit] * 2, make_args(script, seeds), CPU)
    g = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = torch.multinomial(weights, 16 * seeds, replacement=True, generator=g)  # [36, 16 * seed]
        action = (data[rows] / plane.unit).view(len(target) * 16, seeds, 2).transpose(0, 1)
        loss = script.nll_loss(*agent.policy(state.repeat_interleave(16, dim=1)), action, agent.max_action)
        script.minimize(loss, agent.optimizers["policy"])
        script.decay_learning_rates([agent.optimizers["policy"]], torch.tensor(step + 1.0), steps)
    with torch.no_grad():
        mean, _ = agent.policy(state)
        return {"mean": agent.max_action * mean.tanh() * plane.unit, "iterations": steps}


# ---------------------------------------------------------------------------------------------------- panels
@dataclass(frozen=True)
class Panel:
    """A figure of a paper. claims: what the paper says of it, and whether the numbers of one seed show it."""

    figure: str
    jobs: Callable  # seeds -> jobs by name
    measure: Callable  # results by name -> numbers of each seed, a list of dicts
    claims: tuple[tuple[str, Callable], ...]  # (claim, numbers of a seed -> bool)
    draw: Callable  # results by name -> matplotlib's figure


KL_FLAGS = (("alpha", 8.0), ("learning_rate", 1e-3), ("lr_decay", True))
POLICIES = {  # script and flags of the policies that the columns of Fig. 3 and 6 compare
    "trust region, Gaussian": ("dtql_gaussian", ()),
    "the same, entropy 0.005": ("dtql_gaussian", (("entropy_coef", 0.005),)),
    "trust region, implicit": ("dtql_implicit", ()),
    "KL, implicit": ("kl_distill", KL_FLAGS),
}


def denoiser_job(name: str, seeds: int, sigma_data: float = 0.5) -> Job:
    return Job(train_denoiser, (name, seeds, sigma_data))


def policy_job(script: str, name: str, reward: str | None, seeds: int, flags: tuple = ()) -> Job:
    critic = Job(train_critic, (name, reward, seeds)) if reward else NO_CRITIC
    return Job(train_policy, (script, name, seeds, flags), (denoiser_job(name, seeds), critic))


NO_CRITIC = Job(dict, ())


def describe_policy(name: str, samples: Tensor, reward: str | None = None) -> dict:
    """The numbers of one seed's samples [n, 2]."""
    numbers = {
        "on_data": on_data(name, samples).float().mean().item(),
        "modes": modes_covered(name, samples),
        "spread": samples.std(dim=0).mean().item(),
    }
    return numbers | ({"reward": reward_of(reward, name, samples).mean().item()} if reward else {})


def best_mode(name: str, reward: str) -> float:
    """The largest mean reward of a mode."""
    if name == "grid25":
        data = make_data(name)
        return max(
            reward_of(reward, name, data[torch.cdist(data, GRID).argmin(dim=1) == i]).mean().item()
            for i in range(25)
        )
    data = make_data(name)
    data = data[data.norm(dim=1).argsort()]
    return max(reward_of(reward, name, part).mean().item() for part in data.chunk(25))


def column(figure: str, name: str, reward: str) -> Panel:
    """A column of DTQL's Fig. 3 and 6: one data set with one reward, and four policies on it."""

    def measure(results: dict) -> list[dict]:
        rows = []
        for i in range(len(results["KL, implicit"]["samples"])):
            row = {
                policy: describe_policy(name, results[policy]["samples"][i], reward) for policy in POLICIES
            }
            rows.append(row | {"best_mode_reward": best_mode(name, reward)})
        return rows

    def on_its_best(policy: str) -> Callable:
        return lambda row: (
            row[policy]["on_data"] > 0.9 and row[policy]["reward"] > 0.9 * row["best_mode_reward"]
        )

    first, entropy, implicit, kl = POLICIES
    wider = lambda row: row[entropy]["spread"] > row[first]["spread"]
    worse = lambda row: row[kl]["reward"] < min(row[first]["reward"], row[implicit]["reward"])
    many = lambda row: row[kl]["modes"] >= 5
    return Panel(
        figure=figure,
        jobs=lambda seeds: {
            policy: policy_job(script, name, reward, seeds, flags)
            for policy, (script, flags) in POLICIES.items()
        },
        measure=measure,
        claims=(
            ("The Gaussian policy ends on the data, at its highest reward", on_its_best(first)),
            ("The implicit policy ends on the data, at its highest reward", on_its_best(implicit)),
            ("KL keeps many modes", many),
            ("KL earns less than either policy of the trust region", worse),
            ("The entropy term widens the Gaussian policy", wider),
        ),
        draw=lambda results: draw_columns({(name, reward): results}),
    )  # fmt: skip


# DTQL's Fig. 1
MAPS = ("grid25", "swissroll")


def measure_map(results: dict) -> list[dict]:
    return [
        {
            key: {
                "median_on_data": maps["on"][i].median().item(),
                "median_off_data": maps["off"][i].median().item(),
                "ranked_right": (maps["on"][i].unsqueeze(1) < maps["off"][i]).float().mean().item(),
            }
            for key, maps in results.items()
        }
        for i in range(len(next(iter(results.values()))["on"]))
    ]


def map_panel() -> Panel:
    return Panel(
        figure="DTQL Fig. 1",
        jobs=lambda seeds: {
            name: Job(map_trust_region, (name, seeds), (denoiser_job(name, seeds),)) for name in MAPS
        },
        measure=measure_map,
        claims=tuple(
            (
                f"{key}: the loss is lower at data than off it, in 90 % of pairs",
                lambda row, key=key: row[key]["ranked_right"] > 0.9,
            )
            for key in MAPS
        ),
        draw=draw_map,
    )


# DTQL's Fig. 2
ALONE = {
    "trust region": ("dtql_implicit", ()),
    "KL": ("kl_distill", KL_FLAGS),
    "KL, preconditioned": ("kl_distill", (*KL_FLAGS, ("precondition", True))),
}


def measure_samples(name: str, reward: str | None = None) -> Callable:
    def measure(results: dict) -> list[dict]:
        seeds = len(next(iter(results.values()))["samples"])
        return [
            {key: describe_policy(name, x["samples"][i], reward) for key, x in results.items()}
            for i in range(seeds)
        ]

    return measure


def alone_panel() -> Panel:
    return Panel(
        figure="DTQL Fig. 2",
        jobs=lambda seeds: {
            key: policy_job(script, "grid25", None, seeds, flags) for key, (script, flags) in ALONE.items()
        },
        measure=measure_samples("grid25"),
        claims=(
            (
                "The trust region alone ends on modes: 90 % of samples",
                lambda row: row["trust region"]["on_data"] > 0.9,
            ),
            ("The trust region alone keeps several modes", lambda row: row["trust region"]["modes"] > 1),
            ("KL alone covers every mode", lambda row: row["KL"]["modes"] == 25),
            (
                "KL alone covers most modes, more than the trust region",
                lambda row: row["KL"]["modes"] > max(12, row["trust region"]["modes"]),
            ),
            (
                "KL alone spreads as the data do, within 10 %",
                lambda row: abs(row["KL"]["spread"] / DATA_STD - 1) < 0.1,
            ),
        ),
        draw=lambda results: draw_samples("grid25", None, results),
    )


DATA_STD = (50 + GRID_STD**2) ** 0.5  # of the 25 Gaussians, per axis


# generator forms
def generator_panel() -> Panel:
    forms = {f"{label}, {form}": (script, flags + extra) for label, (script, flags) in
             {"trust region": ("dtql_implicit", ()), "KL": ("kl_distill", KL_FLAGS)}.items()
             for form, extra in {"raw": (), "preconditioned": (("precondition", True),)}.items()}  # fmt: skip
    return Panel(
        figure="ours",
        jobs=lambda seeds: {
            key: policy_job(script, "grid25", "far", seeds, flags) for key, (script, flags) in forms.items()
        },
        measure=measure_samples("grid25", "far"),
        claims=tuple(
            (
                f"{label}: both forms reach the same reward, within 10 %",
                lambda row, label=label: (
                    abs(row[f"{label}, preconditioned"]["reward"] / row[f"{label}, raw"]["reward"] - 1) < 0.1
                ),
            )
            for label in ("trust region", "KL")
        ),  # fmt: skip
        draw=lambda results: draw_samples("grid25", "far", results),
    )


# theorem 1
def measure_theorem(results: dict) -> list[dict]:
    return [
        {
            key: {
                "on_data": on_data("grid25", x["end"][i]).float().mean().item(),
                "modes": modes_covered("grid25", x["end"][i]),
                "median_distance": torch.cdist(x["end"][i], GRID).amin(dim=1).median().item(),
            }
            for key, x in results.items()
        }
        for i in range(len(next(iter(results.values()))["end"]))
    ]


def theorem_panel() -> Panel:
    wide = round(
        DATA_STD / PLANES["grid25"].unit, 2
    )  # the data's own standard deviation, as EDM would have it
    return Panel(
        figure="DTQL Theorem 1",
        jobs=lambda seeds: {
            f"σ_data {label}": Job(end_on_modes, ("grid25", seeds, s), (denoiser_job("grid25", seeds, s),))
            for label, s in (("1", 0.25), ("2", 0.5), ("7", wide))
        },
        measure=measure_theorem,
        claims=tuple(
            claim
            for key in ("σ_data 1", "σ_data 2", "σ_data 7")
            for claim in (
                (
                    f"{key}: 99 % of starts end within 3 standard deviations of a mode",
                    lambda row, key=key: row[key]["on_data"] > 0.99,
                ),
                (f"{key}: every mode is an end", lambda row, key=key: row[key]["modes"] == 25),
            )
        ),
        draw=draw_theorem,
    )


# SRPO
def srpo_panels() -> dict[str, Panel]:
    denoisers = lambda seeds: {name: denoiser_job(name, seeds) for name in SRPO_PLANES}
    density = lambda seeds: {
        name: Job(map_density, (name, seeds), (job,)) for name, job in denoisers(seeds).items()
    }
    paths = lambda seeds: {
        f"{name} path": Job(follow_beta, (name, seeds), (job,)) for name, job in denoisers(seeds).items()
    }
    other_paths = lambda seeds: {
        f"{name} {omega}": Job(follow_beta, (name, seeds, omega), (job,))
        for omega in OTHER_OMEGAS
        for name, job in denoisers(seeds).items()
    }
    forward = lambda seeds: {f"{name} forward": Job(regress, (name, seeds)) for name in SRPO_PLANES}

    def measure_density(results: dict) -> list[dict]:
        def numbers(name: str, x: dict, i: int) -> dict:
            cell = (2 * PLANES[name].extent / x["map"].shape[1]) ** 2
            return {"mass": x["map"][i].sum().item() * cell, "held_out_log_density": x["held_out"][i].item(),
                    "kernel_log_density": x["kernel"].item()}  # fmt: skip

        seeds = len(results["rings"]["map"])
        return [{name: numbers(name, x, i) for name, x in results.items()} for i in range(seeds)]

    def on(name: str, action: Tensor) -> float:
        return on_data(name, action).float().mean().item()

    def measure_paths(results: dict, kind: str) -> list[dict]:
        def numbers(name: str, i: int) -> dict:
            x = results[f"{name} {kind}"]
            path, (start, one, end) = x["path"][i], x["ends"][i]  # [level, 36, 2], [36] each
            return {
                "on_data_at_0": on(name, path[0]),
                "on_data_at_1": on(name, path[AT_ONE]),
                "on_data_at_10": on(name, path[-1]),
                "log_density_at_0": start.mean().item(),
                "log_density_at_1": one.mean().item(),
                "log_density_at_10": end.mean().item(),
                "denser_at_1": (one >= start).float().mean().item(),
                "denser_at_10": (end >= start).float().mean().item(),
            }

        seeds = len(results["rings"]["map"])
        return [{name: numbers(name, i) for name in SRPO_PLANES} for i in range(seeds)]

    def measure_omegas(results: dict) -> list[dict]:
        of_omega = {omega: measure_paths(results, omega) for omega in OTHER_OMEGAS}
        return [
            {f"{name}, {omega}": x for omega, rows in of_omega.items() for name, x in rows[i].items()}
            for i in range(len(results["rings"]["map"]))
        ]

    def measure_kl(results: dict) -> list[dict]:
        def numbers(name: str, i: int) -> dict:
            return {
                "forward_on_data": on(name, results[f"{name} forward"]["mean"][i]),
                "reverse_on_data": on(name, results[f"{name} path"]["path"][i, -1]),
            }

        seeds = len(results["rings"]["map"])
        return [{name: numbers(name, i) for name in SRPO_PLANES} for i in range(seeds)]

    every = lambda test: lambda row: all(test(row[name]) for name in SRPO_PLANES)
    each = lambda claim, test: tuple(
        (f"{name}: {claim}", lambda row, name=name: test(row[name])) for name in SRPO_PLANES
    )
    likely = lambda x: x["held_out_log_density"] > x["kernel_log_density"] - 0.3
    return {
        "srpo_density": Panel(
            figure="SRPO Fig. 2 and 7",
            jobs=density,
            measure=measure_density,
            claims=(
                ("The density integrates to 1, within 5 %", every(lambda x: abs(x["mass"] - 1) < 0.05)),
                *each("fresh data are as likely as to a kernel estimate, within 0.3 nats", likely),
            ),
            draw=draw_density,
        ),
        "srpo_path": Panel(
            figure="SRPO Fig. 2 and 7",
            jobs=lambda seeds: density(seeds) | paths(seeds),
            measure=lambda results: measure_paths(results, "path"),
            claims=(
                (
                    "From 1/β = 0 to 1, 90 % of π move to denser places",
                    every(lambda x: x["denser_at_1"] >= 0.9),
                ),
                ("From 1/β = 0 to 10, 90 % of π do", every(lambda x: x["denser_at_10"] >= 0.9)),
                *each("at 1/β = 1, 90 % of π are on the data", lambda x: x["on_data_at_1"] >= 0.9),
                *each("at 1/β = 10, 90 % of π are on the data", lambda x: x["on_data_at_10"] >= 0.9),
            ),
            draw=lambda results: draw_paths(results, "path"),
        ),
        "srpo_omega": Panel(
            figure="ours, with the ω(t) of SRPO Fig. 6",
            jobs=lambda seeds: density(seeds) | other_paths(seeds),
            measure=measure_omegas,
            claims=tuple(
                (
                    f"ω = {omega}, {name}: at 1/β = 10, 90 % of π are on the data",
                    lambda row, key=f"{name}, {omega}": row[key]["on_data_at_10"] >= 0.9,
                )
                for omega in OTHER_OMEGAS
                for name in SRPO_PLANES
            ),
            draw=lambda results: draw_paths(results, OTHER_OMEGAS[-1]),
        ),
        "srpo_kl": Panel(
            figure="SRPO Fig. 3",
            jobs=lambda seeds: density(seeds) | paths(seeds) | forward(seeds),
            measure=measure_kl,
            claims=each(
                "reverse KL ends on the data for more targets than forward KL",
                lambda x: x["reverse_on_data"] > x["forward_on_data"],
            ),
            draw=draw_extraction,
        ),
    }


# -------------------------------------------------------------------------------------------------- pictures
COLORS, POLICY_COLOR, DATA_COLOR = "viridis", "#e5213d", "#9aa3ad"
SHOWN = 1000  # points of a scatter


def canvas(
    rows: int,
    columns: int,
    extent: float | None = None,
    cell: float = 1.9,
    bars=False,
    share="row",
    titles=(),
):
    """A figure of square panels of the action plane, [-extent, extent]²; figure, axes [rows, columns].

    bars: with room for a colour bar beside each. share: which axes have one scale of y."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
                         "ytick.major.width": 0.6, "axes.titlepad": 4})  # fmt: skip
    size = ((cell + 0.6 * bars) * columns + 0.4, (cell + 0.1) * rows + 0.4)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, sharey=share, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_aspect("equal")
        ax.locator_params(nbins=4)
        if extent:
            ax.set(xlim=(-extent, extent), ylim=(-extent, extent))
    for ax in axes[-1]:
        ax.set_xlabel("action 1")
    for ax in axes[:, 0]:
        ax.set_ylabel("action 2")
    for ax, title in zip(axes.flat, titles):
        ax.set_title(title)
    return figure, axes


def scatter(ax, points: Tensor, color, size: float = 1.5, **options):
    return ax.scatter(*points[:SHOWN].T, c=color, s=size, linewidths=0, rasterized=True, **options)


def heat(ax, values: Tensor, extent: float, **options):
    return ax.imshow(values, origin="lower", extent=(-extent, extent, -extent, extent), cmap=COLORS,
                     interpolation="bilinear", **options)  # fmt: skip


def draw_columns(columns: dict):
    """columns: results of a column's policies by (data set, reward). A row of panels for each, of seed 1."""
    titles = ["data by reward", *(policy.replace(", ", ",\n") for policy in POLICIES)]
    figure, axes = canvas(len(columns), 1 + len(POLICIES), cell=1.45, titles=titles)
    for row, ((name, reward), results) in zip(axes, columns.items()):
        extent, data = PLANES[name].extent, make_data(name)
        value = reward_of(reward, name, data)
        for ax, policy in zip(row, [None, *POLICIES]):
            cloud = scatter(ax, data, value[:SHOWN], cmap=COLORS, alpha=0.35 if policy else 1)
            if policy:
                scatter(ax, results[policy]["samples"][0].clamp(-extent, extent), POLICY_COLOR, size=3)
            else:
                reward_scale = cloud
            ax.set(xlim=(-extent, extent), ylim=(-extent, extent))
        row[0].set_ylabel(f"{SHORT[name]}, {reward}\naction 2")
        figure.colorbar(reward_scale, ax=row[-1], shrink=0.75, label="reward")
    return figure


SHORT = {"grid25": "25 Gaussians", "swissroll": "Swiss roll"}


def draw_samples(name: str, reward: str | None, results: dict):
    data, extent = make_data(name), PLANES[name].extent
    figure, axes = canvas(1, len(results), extent, titles=results)
    for ax, x in zip(axes.flat, results.values()):
        color = reward_of(reward, name, data)[:SHOWN] if reward else DATA_COLOR
        scatter(ax, data, color, cmap=COLORS if reward else None, alpha=0.5)
        scatter(ax, x["samples"][0].clamp(-extent, extent), POLICY_COLOR, size=3)
    return figure


def draw_map(results: dict):
    figure, axes = canvas(1, len(results), cell=2.4, bars=True, share=False, titles=results)
    for ax, (name, x) in zip(axes.flat, results.items()):
        extent = PLANES[name].extent
        shown = heat(ax, x["map"][0], extent, vmax=x["map"][0].quantile(0.9).item())
        scatter(ax, make_data(name)[:300], "white", size=1)
        ax.set(xlim=(-extent, extent), ylim=(-extent, extent))
        bar = figure.colorbar(shown, ax=ax, shrink=0.8, extend="max")
        bar.ax.set_title("$L_{TR}$", fontsize=7)
    return figure


def draw_theorem(results: dict):
    titles = ["1000 starts", *(f"ends, {key}" for key in results)]
    figure, axes = canvas(1, 1 + len(results), PLANES["grid25"].extent, cell=1.8, titles=titles)
    clouds = [next(iter(results.values()))["start"], *(x["end"] for x in results.values())]
    for ax, cloud in zip(axes.flat, clouds):
        scatter(ax, make_data("grid25"), DATA_COLOR, size=1)
        scatter(ax, cloud[0], POLICY_COLOR, size=4)
    return figure


def draw_density(results: dict):
    figure, axes = canvas(2, len(results), PLANES["rings"].extent, cell=1.3, titles=results)
    for (top, bottom), (name, x) in zip(axes.T, results.items()):
        scatter(top, make_data(name), DATA_COLOR, size=1)
        heat(bottom, x["map"][0], PLANES[name].extent, vmax=x["map"][0].quantile(0.995).item())
    axes[0, 0].set_ylabel("data\naction 2")
    axes[1, 0].set_ylabel("learned density\naction 2")
    return figure


def draw_paths(results: dict, kind: str):
    figure, axes = canvas(2, 3, PLANES["rings"].extent, cell=2.4, titles=SRPO_PLANES)
    for ax, name in zip(axes.flat, SRPO_PLANES):
        density, path = results[name]["map"][0], results[f"{name} {kind}"]["path"][0]  # [level, 36, 2]
        heat(ax, density, PLANES[name].extent, vmax=density.quantile(0.995).item())
        ax.plot(*path.permute(2, 0, 1), color=POLICY_COLOR, linewidth=0.9)
        scatter(ax, path[0], "white", size=5)
        scatter(ax, path[AT_ONE], "#f6a2ae", size=6)
        scatter(ax, path[-1], POLICY_COLOR, size=9)
    return figure


def draw_extraction(results: dict):
    figure, axes = canvas(2, 3, PLANES["rings"].extent, cell=2.4, titles=SRPO_PLANES)
    for ax, name in zip(axes.flat, SRPO_PLANES):
        density = results[name]["map"][0]
        heat(ax, density, PLANES[name].extent, vmax=density.quantile(0.995).item())
        ax.scatter(*results[f"{name} forward"]["mean"][0].T, c="white", s=14, marker="x", linewidths=0.9)
        scatter(ax, results[f"{name} path"]["path"][0, -1], POLICY_COLOR, size=9)
    return figure


def save_picture(figure, path: Path) -> None:
    """As a PNG of 128 colours, a third of matplotlib's size."""
    from matplotlib import pyplot as plt
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


# ----------------------------------------------------------------------------------------------------- main
PANELS = {
    "trust_region_map": map_panel(),
    "alone": alone_panel(),
    "far": column("DTQL Fig. 3 and 6", "grid25", "far"),
    "near": column("DTQL Fig. 3 and 6", "grid25", "near"),
    "hard": column("DTQL Fig. 3 and 6", "grid25", "hard"),
    "swiss_near": column("DTQL Fig. 3 and 6", "swissroll", "near"),
    "swiss_far": column("DTQL Fig. 3 and 6", "swissroll", "far"),
    "theorem1": theorem_panel(),
    "generators": generator_panel(),
    **srpo_panels(),
}
COLUMNS = {"far": ("grid25", "far"), "near": ("grid25", "near"), "hard": ("grid25", "hard"),
           "swiss_near": ("swissroll", "near"), "swiss_far": ("swissroll", "far")}  # fmt: skip


def verdict(seen: list[bool]) -> str:
    """Of a claim, seen or not with each seed."""
    return "yes" if all(seen) else f"{sum(seen)} of {len(seen)} seeds" if any(seen) else "no"


def report(name: str, results: dict, first_seed: int = 1) -> dict:
    """A panel's entry in bandit.json."""
    panel = PANELS[name]
    rows = panel.measure(results)
    claims = []
    for claim, test in panel.claims:
        claims.append({"claim": claim, "seen": verdict([test(row) for row in rows])})
    return {
        "figure": panel.figure,
        "claims": claims,
        "seconds": round(sum(x["seconds"] for x in results.values()), 1),  # without the models it shares
        "iterations": {key: x["iterations"] for key, x in results.items() if "iterations" in x},
        "seeds": [{"seed": first_seed + i} | row for i, row in enumerate(rows)],
    }


def compute(panels: list[str], seeds: int, workers: int, done: Callable) -> None:
    """Runs the panels' jobs, each once and after those that it needs; calls done(name, results of its jobs)
    for each panel whose jobs are done."""
    jobs_of = {name: PANELS[name].jobs(seeds) for name in panels}
    results, running, waiting = {}, {}, []

    def add(job: Job) -> None:
        for need in job.needs:
            add(need)
        if job not in waiting:
            waiting.append(job)

    for jobs in jobs_of.values():
        for job in jobs.values():
            add(job)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            for job in [job for job in waiting if all(need in results for need in job.needs)]:
                if len(running) < workers:
                    waiting.remove(job)
                    running[pool.submit(run_job, job, *(results[need] for need in job.needs))] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                results[running.pop(future)] = future.result()
            for name in [n for n, jobs in jobs_of.items() if all(job in results for job in jobs.values())]:
                done(name, {key: results[job] for key, job in jobs_of.pop(name).items()})


def table(content: dict) -> str:
    """What docs/bandit.md shows: each claim, then each panel's numbers of every seed."""
    lines = ["| panel | figure | claim | seen |", "|---|---|---|---|"]
    for name, panel in content["panels"].items():
        lines += [f"| {name} | {panel['figure']} | {x['claim']} | {x['seen']} |" for x in panel["claims"]]
    lines += ["", "| panel | of | seeds 1, 2, ... |", "|---|---|---|"]
    for name, panel in content["panels"].items():
        rows = [{key: x for key, x in row.items() if key != "seed"} for row in panel["seeds"]]
        for key, first in rows[0].items():
            groups = [row[key] if isinstance(first, dict) else {key: row[key]} for row in rows]
            numbers = (f"{label} {', '.join(f'{x[label]:.3g}' for x in groups)}" for label in groups[0])
            lines.append(f"| {name} | {key} | {'; '.join(numbers)} |")
    return "\n".join(lines)


@dataclass
class Args:
    panels: tuple[str, ...] = tuple(PANELS)
    """names of the panels to make"""
    seeds: int = 3
    """how many seeds, from 1 on; they train together"""
    workers: int = 2
    """processes, of one thread each"""
    out: Path = ROOT / "benchmark" / "results"
    """directory of bandit.json, in which the panels made take the place of their like, and of bandit/*.png"""


def main() -> None:
    import tyro
    from tqdm import tqdm

    args = tyro.cli(Args, description=__doc__)
    unknown = set(args.panels) - set(PANELS)
    if unknown:
        raise SystemExit(f"bandit.py: no panel {', '.join(unknown)}; there are {', '.join(PANELS)}")
    torch.set_num_threads(1)
    path = args.out / "bandit.json"
    panels = json.loads(path.read_text())["panels"] if path.exists() else {}
    start, columns = time.perf_counter(), {}
    bar = tqdm(total=len(args.panels), unit="panel")

    def done(name: str, results: dict) -> None:
        panels[name] = rounded(report(name, results))
        save_picture(PANELS[name].draw(results), args.out / "bandit" / f"{name}.png")
        if name in COLUMNS:
            columns[COLUMNS[name]] = results
        content = {
            "command": "python " + " ".join([os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
            "seconds": round(time.perf_counter() - start, 1),
            "workers": args.workers,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "panels": {name: panels[name] for name in PANELS if name in panels},
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        for claim in panels[name]["claims"]:
            bar.write(f"{name}: {claim['claim']}: {claim['seen']}")
        bar.update()

    compute(list(args.panels), args.seeds, args.workers, done)
    bar.close()
    for stem, names in {"columns": tuple(COLUMNS), "overview": ("near", "swiss_far")}.items():
        if all(COLUMNS[name] in columns for name in names):
            rows = {COLUMNS[name]: columns[COLUMNS[name]] for name in names}
            save_picture(draw_columns(rows), args.out / "bandit" / f"{stem}.png")
    print(table(json.loads(path.read_text())))
    print(f"wrote {path} and its pictures after {time.perf_counter() - start:.0f} s")


def rounded(x):
    """Floats to four significant digits."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, list):
        return [rounded(value) for value in x]
    return float(f"{x:.4g}") if isinstance(x, float) else x


if __name__ == "__main__":
    main()
