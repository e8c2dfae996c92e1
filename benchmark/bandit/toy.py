"""What all panels share: data sets and rewards in the plane, training by the scripts' own losses, drawing.

Actions are in the papers' units; the scripts see them divided by `box`, in [-1, 1], with their noise levels
divided likewise. docs/bandit.md says where sizes, steps and settings are not the papers'.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor, nn

import dtql_gaussian
import dtql_implicit
import kl_distill
import srpo

SCRIPTS = {script.__name__: script for script in (dtql_gaussian, dtql_implicit, kl_distill, srpo)}
DATA_SIZE, SAMPLES = 10_000, 2000  # of a data set; of each policy, for its numbers
LEARNING_RATE, MAX_REWARD = 3e-3, 9.0
BEHAVIOR_STEPS, BEHAVIOR_BATCH = 2500, 384
CRITIC_STEPS, CRITIC_BATCH = 800, 256
POLICY_STEPS, POLICY_BATCH = 1500, 128


# ----------------------------------------------------------------------------------------------------- data
GRID, GRID_STD = torch.cartesian_prod(*[torch.linspace(-10, 10, 5)] * 2), 0.3  # means [25, 2]


def polar(radius: Tensor, angle: Tensor) -> Tensor:
    return radius * torch.cat([angle.cos(), angle.sin()], dim=1)


def mixture(n: int, g: torch.Generator, means: Tensor, std: float) -> Tensor:
    return means[torch.randint(len(means), (n,), generator=g)] + std * torch.randn(n, 2, generator=g)


def gaussians8(n: int, g: torch.Generator) -> Tensor:
    return mixture(n, g, polar(torch.full((8, 1), 8**0.5), torch.arange(8).view(8, 1) * math.pi / 4), 8**-0.5)


def swissroll(n: int, g: torch.Generator, noise: float = 0.1) -> Tensor:
    """The two flat axes of scikit-learn's Swiss roll: one and a half turns, radius 4.7 to 14.1."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, 1, generator=g))
    return polar(t, t) + noise * torch.randn(n, 2, generator=g)


def checkerboard(n: int, g: torch.Generator) -> Tensor:
    """Uniform on 8 of 16 squares of side 2."""
    column, row = torch.randint(4, (2, n), generator=g)
    row = 2 * (row // 2) + column % 2
    return 2 * (torch.stack([column, row], dim=1) + torch.rand(n, 2, generator=g)) - 4


def spirals(n: int, g: torch.Generator) -> Tensor:
    """Two arms of one and a half turns, radius 0 to 3.1."""
    t = 3 * math.pi * torch.rand(n, 1, generator=g).sqrt()
    arm = 1 - 2 * torch.randint(2, (n, 1), generator=g)
    return polar(arm * t / 3, math.pi - t) + 0.1 * torch.randn(n, 2, generator=g)


def rings(n: int, g: torch.Generator) -> Tensor:
    """Four circles of radius 0.75, 1.5, 2.25 and 3, equally likely."""
    radius = 0.75 * (1 + torch.randint(4, (n, 1), generator=g))
    return polar(radius, 2 * math.pi * torch.rand(n, 1, generator=g)) + 0.08 * torch.randn(n, 2, generator=g)


def moons(n: int, g: torch.Generator) -> Tensor:
    """Two interleaved half circles of radius 2."""
    lower = torch.randint(2, (n, 1), generator=g)
    a = polar(1 - 2 * lower, math.pi * torch.rand(n, 1, generator=g)) + lower * torch.tensor([1.0, 0.5])
    return 2 * a + torch.tensor([-1.0, -0.5]) + 0.2 * torch.randn(n, 2, generator=g)


@dataclass(frozen=True)
class Plane:
    """A data set of actions in the plane, in its paper's units."""

    sample: Callable  # (n, generator) -> [n, 2]
    sigma_data: float = 0.25
    box: float = 8.0  # the largest action
    extent: float = 4.5  # half the width of its picture


PLANES = {
    "grid25": Plane(lambda n, g: mixture(n, g, GRID, GRID_STD), sigma_data=2.0, box=20.0, extent=13.0),
    "swissroll": Plane(swissroll, sigma_data=2.0, box=24.0, extent=16.0),
    "8gaussians": Plane(gaussians8),
    "swissroll5": Plane(lambda n, g: swissroll(n, g, noise=1.0) / 5),
    "checkerboard": Plane(checkerboard),
    "2spirals": Plane(spirals),
    "rings": Plane(rings),
    "moons": Plane(moons),
}


@functools.cache
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
    distance = lambda points: torch.cdist(points, make_data(name)).amin(dim=1)
    return distance(action) < distance(make_data(name, 2000, seed=1)).quantile(0.99)


def mode_of(name: str, action: Tensor) -> Tensor:
    """Of 25: a mean of the grid, or a stretch of the Swiss roll of equal probability; action [n, 2]."""
    if name == "grid25":
        return torch.cdist(action, GRID).argmin(dim=1)
    turned = (action.norm(dim=1) / (1.5 * math.pi) - 1) / 2  # of the whole roll: the radius is the angle
    return (25 * turned).long().clamp(0, 24)


def modes_covered(name: str, action: Tensor) -> int:
    """How many modes hold at least 0.5 % of the actions [n, 2], counting only those on the data."""
    count = torch.bincount(mode_of(name, action[on_data(name, action)]), minlength=25)
    return int((count >= 0.005 * len(action)).sum())


def share_on_data(name: str, action: Tensor) -> float:
    return on_data(name, action).float().mean().item()


def square(extent: float, n: int) -> Tensor:
    """Centres of the n × n cells of [-extent, extent]², rows of y first; [n², 2]."""
    x = extent * ((2 * torch.arange(n) + 1) / n - 1)
    return torch.stack(torch.meshgrid(x, x, indexing="xy"), dim=-1).view(-1, 2)


# ------------------------------------------------------------------------------------------------- training
def make_args(script, seeds: int, sigma_data: float, **flags):
    """The noise levels have the scripts' own ratios to σ_data."""
    toy = {"alpha": 1.0, "expectile": 0.95, "entropy_coef": 0.0, "lr_schedule": "constant",
           "learning_rate": LEARNING_RATE, "q_gradient": "raw", "sigma_data": sigma_data,
           "sigma_min": 0.004 * sigma_data, "sigma_max": 160 * sigma_data}  # fmt: skip
    known = {name: x for name, x in toy.items() if name in script.Args.__dataclass_fields__}
    return script.Args(num_seeds=seeds, **(known | flags))


def make_agent(script, args, obs_dim: int = 1) -> nn.Module:
    """The script's agent in the toy's sizes."""
    torch.manual_seed(1)
    with mock.patch.multiple(script, HIDDEN=(128, 128, 128), TIME_DIM=4):
        return script.Agent(obs_dim, 2, args, torch.device("cpu"))


def descend(loss: Callable, params, steps: int, learning_rate: float = LEARNING_RATE) -> None:
    """Descends loss() [seed] by Adam, its rate falling to 0 by a cosine."""
    optimizer = torch.optim.Adam(params, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        dtql_gaussian.minimize(loss(), optimizer)
        schedule.step()


@functools.cache
def train_denoiser(name: str, seeds: int, sigma_data: float, steps: int = BEHAVIOR_STEPS) -> dict:
    """The weights of a behaviour model; σ_data in the plane's units."""
    plane, obs = PLANES[name], torch.ones(seeds, BEHAVIOR_BATCH, 1)
    args = make_args(dtql_gaussian, seeds, sigma_data / plane.box)
    denoiser, data = make_agent(dtql_gaussian, args).denoiser, make_data(name) / plane.box

    def loss() -> Tensor:
        action = data[torch.randint(DATA_SIZE, (seeds, BEHAVIOR_BATCH))]
        return dtql_gaussian.denoising_loss(denoiser, action, obs, args)

    descend(loss, [*denoiser.parameters()], steps)
    return denoiser.state_dict()


@functools.cache
def train_critic(name: str, reward: str | None, seeds: int, steps: int = CRITIC_STEPS) -> dict:
    """The weights of Q1 and Q2; without a reward they are 0."""
    q = make_agent(dtql_gaussian, make_args(dtql_gaussian, seeds, 1.0)).q
    if not reward:
        return {key: torch.zeros_like(x) for key, x in q.state_dict().items()}
    data, rewards = make_data(name) / PLANES[name].box, reward_of(reward, name, make_data(name))
    rewards, obs = rewards * (MAX_REWARD / rewards.max()), torch.ones(seeds, CRITIC_BATCH, 1)

    def loss() -> Tensor:
        rows = torch.randint(DATA_SIZE, (seeds, CRITIC_BATCH))
        return (rewards[rows].unsqueeze(1) - q(obs, data[rows])).square().mean(dim=2).sum(dim=1)

    descend(loss, [*q.parameters()], steps)
    return q.state_dict()


@functools.cache
def train_policy(script_name: str, name: str, reward: str | None, seeds: int, flags: tuple = (),
                 steps: int = POLICY_STEPS) -> Tensor:  # fmt: skip
    """Samples [seed, SAMPLES, 2] of a policy that its script's own train_update has trained, critics and
    behaviour model staying as they are."""
    script, plane = SCRIPTS[script_name], PLANES[name]
    args = make_args(script, seeds, plane.sigma_data / plane.box, batch_size=POLICY_BATCH, train_steps=steps,
                     eval_candidates=1, **dict(flags))  # fmt: skip
    denoiser, critic = train_denoiser(name, seeds, plane.sigma_data), train_critic(name, reward, seeds)
    agent, one = make_agent(script, args), torch.ones(DATA_SIZE, 1)
    agent.denoiser.load_state_dict(denoiser)
    agent.q.load_state_dict(critic)
    for start in script.STARTS.values():
        start(agent)
    data = [one, make_data(name) / plane.box, one[:, 0], one, one[:, 0]]
    with mock.patch.object(script, "pretrain_update", lambda *_: {}):
        training = script.gradient_steps(agent, data, "train", {}, args)
        for _ in range(steps):
            next(training)
    return plane.box * script.act(agent, torch.ones(seeds, SAMPLES, 1), args)


def load_denoiser(name: str, seeds: int, sigma_data: float | None = None) -> tuple[Callable, object]:
    """The trained D(a_σ, σ|s) and arguments for the losses, both in the plane's units."""
    plane = PLANES[name]
    sigma_data = sigma_data or plane.sigma_data
    weights = train_denoiser(name, seeds, sigma_data)
    network = make_agent(dtql_gaussian, make_args(dtql_gaussian, seeds, sigma_data / plane.box)).denoiser
    network.load_state_dict(weights)
    network.requires_grad_(False)
    denoiser = lambda noisy, sigma, obs: plane.box * network(noisy / plane.box, sigma / plane.box, obs)
    return denoiser, make_args(dtql_gaussian, seeds, sigma_data)


# --------------------------------------------------------------------------------------- panels and pictures
@dataclass(frozen=True)
class Panel:
    """A figure of a paper. claims: what the paper says of it, and whether the numbers of one seed show it."""

    figure: str
    run: Callable  # seeds -> results by name, tensors [seed, ...] or dicts of them
    measure: Callable  # (results, index of a seed) -> its numbers
    claims: list[tuple[str, Callable]]  # (claim, numbers of a seed -> bool)
    draw: Callable  # results -> matplotlib's figure, of the first seed


def each(keys, claim: str, test: Callable) -> list[tuple[str, Callable]]:
    """The same claim of several results."""
    return [(f"{key}: {claim}", lambda row, key=key: test(row[key])) for key in keys]


POLICY_COLOR, DATA_COLOR = "#e5213d", "#9aa3ad"  # beside matplotlib's own scale, viridis
SHOWN = 1000  # points of a scatter


def canvas(rows: int, columns: int, extent: float = 1.0, titles=(), cell: float = 1.9, bars: bool = False):
    """Square panels of the action plane, [-extent, extent]²: figure, axes [rows, columns]. bars: with room
    for a colour bar beside each."""
    plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
                         "ytick.major.width": 0.6, "axes.titlepad": 4})  # fmt: skip
    size = ((cell + 0.6 * bars) * columns + 0.4, (cell + 0.1) * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained",
                                sharey=False if bars else "row")  # fmt: skip
    for ax in axes.flat:
        ax.set_aspect("equal")
        ax.locator_params(nbins=4)
        ax.set(xlim=(-extent, extent), ylim=(-extent, extent))
    for ax in axes[-1]:
        ax.set_xlabel("action 1")
    for ax in axes[:, 0]:
        ax.set_ylabel("action 2")
    for ax, title in zip(axes.flat, titles):
        ax.set_title(title)
    return figure, axes


def scatter(ax, points: Tensor, size: float = 1.5, **options):
    return ax.scatter(*points[:SHOWN].T, s=size, linewidths=0, rasterized=True, **options)


def heat(ax, values: Tensor, extent: float, top: float):
    """values [cells, cells], cut off in colour at this quantile."""
    return ax.imshow(values, origin="lower", extent=(-extent, extent, -extent, extent),
                     interpolation="bilinear", vmax=values.quantile(top).item())  # fmt: skip


def save_picture(figure, path: Path) -> None:
    """As a PNG of 128 colours, a third of matplotlib's size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
