"""SRPO's figures: the density of a diffusion model, and where its score takes a policy."""

import functools
import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import dtql_gaussian
import srpo

from . import toy

NAMES = ("8gaussians", "swissroll5", "checkerboard", "2spirals", "rings", "moons")


# ------------------------------------------------------------------------------------------------- density
def log_density(denoiser: Callable, args, action: Tensor, steps: int = 24) -> Tensor:
    """log p of actions [seed, n, dim] under a diffusion model, by its probability-flow ODE; [seed, n].

    da/d ln σ = a - D(a, σ), by RK4 from σ_min to σ_max, where p is taken as N(0, σ_max² I); on the way log p
    changes by the divergence dim - tr ∂D/∂a, exact by one product with the Jacobian per dimension."""
    obs, dim = torch.ones_like(action[..., :1]), action.shape[-1]

    def slope(a: Tensor, log_sigma: float) -> tuple[Tensor, Tensor]:
        a = a.detach().requires_grad_()
        d = denoiser(a, math.exp(log_sigma) * obs, obs)
        grad = lambda i: torch.autograd.grad(d[..., i].sum(), a, retain_graph=True)[0]
        return (a - d).detach(), dim - sum(grad(i)[..., i] for i in range(dim))

    s, h = math.log(args.sigma_min), math.log(args.sigma_max / args.sigma_min) / steps
    total = torch.zeros(action.shape[:-1])
    for _ in range(steps):
        k1, t1 = slope(action, s)
        k2, t2 = slope(action + h / 2 * k1, s + h / 2)
        k3, t3 = slope(action + h / 2 * k2, s + h / 2)
        k4, t4 = slope(action + h * k3, s + h)
        action = action + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total = total + h / 6 * (t1 + 2 * t2 + 2 * t3 + t4)
        s += h
    return torch.distributions.Normal(0, args.sigma_max).log_prob(action).sum(dim=-1) + total


def kernel_log_density(data: Tensor, action: Tensor) -> Tensor:
    """What a Gaussian kernel estimate of the best of three widths says of actions [n, 2]; [n]."""
    squares = torch.cdist(action, data).square()
    estimates = [(-squares / (2 * h**2)).logsumexp(dim=1) - math.log(2 * math.pi * h**2 * len(data))
                 for h in (0.05, 0.1, 0.2)]  # fmt: skip
    return max(estimates, key=lambda x: x.mean().item())


@functools.cache
def map_density(name: str, seeds: int, cells: int = 56) -> dict:
    """The learned density over the plane [seed, cells, cells], and the mean log p of fresh data [seed]."""
    fresh = toy.make_data(name, 500, seed=1)
    points = torch.cat([toy.square(toy.PLANES[name].extent, cells), fresh]).expand(seeds, -1, -1)
    logs = log_density(*toy.load_denoiser(name, seeds), points)
    values, held_out = logs.split([cells**2, len(fresh)], dim=1)
    return {"map": values.exp().view(seeds, cells, cells), "held_out": held_out.mean(dim=1)}


def measure_density(results: dict, i: int) -> dict:
    def numbers(name: str, x: dict) -> dict:
        cell = (2 * toy.PLANES[name].extent / x["map"].shape[1]) ** 2
        kernel = kernel_log_density(toy.make_data(name), toy.make_data(name, 500, seed=1)).mean()
        return {"mass": x["map"][i].sum().item() * cell, "held_out_log_density": x["held_out"][i].item(),
                "kernel_log_density": kernel.item()}  # fmt: skip

    return {name: numbers(name, x) for name, x in results.items()}


def draw_density(results: dict):
    figure, axes = toy.canvas(2, len(NAMES), toy.PLANES["rings"].extent, titles=NAMES, cell=1.3)
    for (top, bottom), (name, x) in zip(axes.T, results.items()):
        toy.scatter(top, toy.make_data(name), size=1, color=toy.DATA_COLOR)
        toy.heat(bottom, x["map"][0], toy.PLANES[name].extent, top=0.995)
    axes[0, 0].set_ylabel("data\naction 2")
    axes[1, 0].set_ylabel("learned density\naction 2")
    return figure


# --------------------------------------------------------------------------------------------------- paths
class FreeActions(nn.Module):
    """SRPO's deterministic policy without a state: one point for each target, given `draws` times."""

    def __init__(self, action: Tensor, draws: int):
        super().__init__()
        self.action, self.draws = nn.Parameter(action.clone()), draws  # [seed, n, 2]

    def forward(self, obs: Tensor) -> Tensor:
        return self.action.repeat(1, self.draws, 1)  # [seed, draws * n, 2]


class DistanceQ(nn.Module):
    """Q(a) = -|a - a_tar|², as both of two critics."""

    def __init__(self, target: Tensor):
        super().__init__()
        self.target = target

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        q = -(UNIT * (action - self.target)).square().sum(dim=-1)  # [seed, batch]
        return q.unsqueeze(1).expand(-1, 2, -1)


UNIT = 0.5  # of the plane, which is 1 to the VP-SDE
TARGETS = toy.square(toy.PLANES["rings"].extent, 6)  # [36, 2]
LEVELS = [(i + 1) / 10 for i in range(10)] + [i + 1.0 for i in range(1, 10)]  # of 1/β: to 1, and on to 10
OMEGAS = ("one", "alpha_over_sigma")  # ω(t) in place of σ_t²: less of large noise, and still less
AT = {"0": 0, "1": 10, "10": -1}  # where a path, which starts with 1/β = 0, has this 1/β


@functools.cache
def follow_beta(name: str, seeds: int, omega: str, draws: int = 16, steps: int = 40) -> dict:
    """The policy π for each target as 1/β grows from 0, where π = a_tar, over LEVELS, by srpo.policy_update;
    path [seed, 1 + level, 36, 2], its log-density [seed, 36] at each of AT."""
    denoiser, density_args = toy.load_denoiser(name, seeds)
    target = TARGETS.expand(seeds, -1, -1) / UNIT
    policy, obs = FreeActions(target, draws), torch.ones(seeds, draws * len(TARGETS), 1)
    agent = SimpleNamespace(
        policy=policy,
        target_q=DistanceQ(target.repeat(1, draws, 1)),
        denoiser=lambda noisy, sigma, obs: denoiser(UNIT * noisy, UNIT * sigma, obs) / UNIT,
        trained=torch.zeros(()),
        optimizers={"policy": torch.optim.Adam(policy.parameters(), 0.02)},
    )
    path = [target]
    torch.manual_seed(0)
    for level in LEVELS:
        args, mean = toy.make_args(srpo, seeds, density_args.sigma_data, omega=omega, beta=1 / level), 0
        for step in range(steps):
            srpo.policy_update(agent, [obs], args)
            if step >= steps // 2:  # the mean of the second half: Adam's last point alone trembles
                mean += policy.action.detach() / (steps - steps // 2)
        path.append(mean)
    path = UNIT * torch.stack(path, dim=1)
    logs = {key: log_density(denoiser, density_args, path[:, i]) for key, i in AT.items()}
    return {"path": path, "log": logs}


def measure_paths(results: dict, i: int) -> dict:
    def numbers(x: dict) -> dict:
        log = {key: log[i] for key, log in x["log"].items()}
        denser = lambda key: (log[key] >= log["0"]).float().mean().item()
        share = lambda at: toy.share_on_data(x["name"], x["path"][i, at])
        return ({f"on_data_at_{key}": share(at) for key, at in AT.items()}
                | {f"log_density_at_{key}": log[key].mean().item() for key in AT}
                | {f"denser_at_{key}": denser(key) for key in ("1", "10")})  # fmt: skip

    return {key: numbers(x) for key, x in results.items()}


def run_paths(seeds: int, omegas: tuple[str, ...]) -> dict:
    key = lambda name, omega: name if len(omegas) == 1 else f"{name}, {omega}"
    return {key(name, omega): follow_beta(name, seeds, omega) | map_density(name, seeds) | {"name": name}
            for omega in omegas for name in NAMES}  # fmt: skip


def draw_on_densities(results: Iterable[dict], mark: Callable):
    """mark(ax, x) draws what a data set has in its results above the learned density."""
    figure, axes = toy.canvas(2, 3, toy.PLANES["rings"].extent, titles=NAMES, cell=2.4)
    for ax, x in zip(axes.flat, results):
        toy.heat(ax, x["map"][0], toy.PLANES[x["name"]].extent, top=0.995)
        mark(ax, x)
    return figure


def mark_path(ax, x: dict) -> None:
    path = x["path"][0]  # [level, 36, 2]
    ax.plot(*path.permute(2, 0, 1), color=toy.POLICY_COLOR, linewidth=0.9)
    for at, color, size in (("0", "white", 5), ("1", "#f6a2ae", 6), ("10", toy.POLICY_COLOR, 9)):
        toy.scatter(ax, path[AT[at]], size, color=color)


def draw_paths(results: dict):
    """Of the last ω."""
    return draw_on_densities([*results.values()][-len(NAMES) :], mark_path)


# ------------------------------------------------------------------------------------ forward against reverse
def regress(name: str, seeds: int, steps: int = 500) -> Tensor:
    """Forward KL with the same targets: dtql_gaussian.py's policy by maximum likelihood of data drawn with
    weights exp(β Q), 1/β = 10; its mean actions [seed, 36, 2]."""
    box, data, draws = toy.PLANES[name].box, toy.make_data(name), 16
    weights = (-torch.cdist(TARGETS, data).square() / LEVELS[-1]).softmax(dim=1)  # [36, N]
    obs = torch.eye(len(TARGETS)).expand(seeds, -1, -1)  # which target, one-hot
    args = toy.make_args(dtql_gaussian, seeds, 1.0)
    policy = toy.make_agent(dtql_gaussian, args, obs_dim=len(TARGETS)).policy

    def loss() -> Tensor:
        rows = torch.multinomial(weights, draws * seeds, replacement=True)  # [36, draws * seed]
        before_tanh = (data[rows] / box).arctanh().view(len(TARGETS) * draws, seeds, 2).transpose(0, 1)
        return -policy(obs.repeat_interleave(draws, dim=1)).log_prob(before_tanh).sum(dim=-1).mean(dim=1)

    toy.descend(loss, [*policy.parameters()], steps)
    return box * policy(obs).mean.tanh().detach()


def run_kl(seeds: int) -> dict:
    ends = lambda name, x: {"forward": regress(name, seeds), "reverse": x["path"][:, -1]}
    return {name: x | ends(name, x) for name, x in run_paths(seeds, ("sigma_squared",)).items()}


def measure_kl(results: dict, i: int) -> dict:
    return {name: {f"{kl}_on_data": toy.share_on_data(name, x[kl][i]) for kl in ("forward", "reverse")}
            for name, x in results.items()}  # fmt: skip


def mark_ends(ax, x: dict) -> None:
    ax.scatter(*x["forward"][0].T, c="white", s=14, marker="x", linewidths=0.9)
    toy.scatter(ax, x["reverse"][0], size=9, color=toy.POLICY_COLOR)


def every(test: Callable) -> Callable:
    return lambda row: all(test(row[name]) for name in NAMES)


PANELS = {
    "srpo_density": toy.Panel(
        figure="SRPO Fig. 2 and 7",
        run=lambda seeds: {name: map_density(name, seeds) for name in NAMES},
        measure=measure_density,
        claims=[
            ("The density integrates to 1, within 5 %", every(lambda x: abs(x["mass"] - 1) < 0.05)),
            *toy.each(NAMES, "fresh data are as likely as to a kernel estimate, within 0.3 nats",
                  lambda x: x["held_out_log_density"] > x["kernel_log_density"] - 0.3),
        ],
        draw=draw_density,
    ),
    "srpo_path": toy.Panel(
        figure="SRPO Fig. 2 and 7",
        run=lambda seeds: run_paths(seeds, ("sigma_squared",)),
        measure=measure_paths,
        claims=[
            ("From 1/β = 0 to 1, 90 % of π move to denser places", every(lambda x: x["denser_at_1"] >= 0.9)),
            ("From 1/β = 0 to 10, 90 % of π do", every(lambda x: x["denser_at_10"] >= 0.9)),
            *toy.each(NAMES, "at 1/β = 1, 90 % of π are on the data", lambda x: x["on_data_at_1"] >= 0.9),
            *toy.each(NAMES, "at 1/β = 10, 90 % of π are on the data", lambda x: x["on_data_at_10"] >= 0.9),
        ],
        draw=draw_paths,
    ),
    "srpo_omega": toy.Panel(
        figure="ours, with the ω(t) of SRPO Fig. 6",
        run=lambda seeds: run_paths(seeds, OMEGAS),
        measure=measure_paths,
        claims=[(f"ω = {omega}, {name}: at 1/β = 10, 90 % of π are on the data",
                 lambda row, key=f"{name}, {omega}": row[key]["on_data_at_10"] >= 0.9)
                for omega in OMEGAS for name in NAMES],
        draw=draw_paths,
    ),
    "srpo_kl": toy.Panel(
        figure="SRPO Fig. 3",
        run=run_kl,
        measure=measure_kl,
        claims=toy.each(NAMES, "reverse KL ends on the data for more targets than forward KL",
                    lambda x: x["reverse_on_data"] > x["forward_on_data"]),
        draw=lambda results: draw_on_densities(results.values(), mark_ends),
    ),
}  # fmt: skip
