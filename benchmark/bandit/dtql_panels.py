"""DTQL's figures: what the trust region is, what it and its rival do alone, and with a reward."""

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

import dtql_gaussian

from . import toy


# --------------------------------------------------------------------------------------- the map (Fig. 1)
def trust_region(denoiser: Callable, args, action: Tensor, draws: int = 64) -> Tensor:
    """L_TR of each action [seed, n, 2], [seed, n]: the mean over the same σ and ε for all of them, `draws` of
    both in strata of σ, each ε in four directions, so that no direction is preferred."""
    seeds, n, _ = action.shape
    # each action as a batch of its own, whose loss is then its own
    rows = lambda *inputs: denoiser(*(x.view(seeds, n, -1) for x in inputs)).view(seeds * n, 1, -1)
    obs, total = torch.ones(seeds * n, 1, 1), torch.zeros(seeds, n)
    torch.manual_seed(0)
    for i in range(draws):
        u, (x, y) = (i + torch.rand(())) / draws, torch.randn(2)
        for eps in ((x, y), (-y, x), (-x, -y), (y, -x)):
            uniform, normal = lambda a: u.expand(a.shape), lambda a: torch.stack(eps).expand(a.shape)
            with mock.patch.multiple(torch, rand_like=uniform, randn_like=normal), torch.no_grad():
                loss = dtql_gaussian.denoising_loss(rows, action.reshape(-1, 1, 2), obs, args)
            total += loss.view(seeds, n) / (4 * draws)
    return total


def map_trust_region(name: str, seeds: int, cells: int = 48) -> dict:
    """L_TR over the plane [seed, cells, cells], at data, and at uniform points off it, [seed, 1000] each."""
    extent = toy.PLANES[name].extent
    anywhere = extent * (2 * torch.rand(8000, 2, generator=torch.Generator().manual_seed(0)) - 1)
    points = [
        toy.square(extent, cells),
        toy.make_data(name, 1000, seed=1),
        anywhere[~toy.on_data(name, anywhere)][:1000],
    ]
    loss = trust_region(*toy.load_denoiser(name, seeds), torch.cat(points).expand(seeds, -1, -1))
    values, on, off = loss.split([cells**2, 1000, 1000], dim=1)
    return {"map": values.view(seeds, cells, cells), "on": on, "off": off}


def measure_map(results: dict, i: int) -> dict:
    def numbers(on: Tensor, off: Tensor) -> dict:
        ranked_right = (on.unsqueeze(1) < off).float().mean()
        medians = {"median_on_data": on.median().item(), "median_off_data": off.median().item()}
        return medians | {"ranked_right": ranked_right.item()}

    return {name: numbers(x["on"][i], x["off"][i]) for name, x in results.items()}


def draw_map(results: dict):
    figure, axes = toy.canvas(1, len(results), titles=results, cell=2.4, bars=True)
    for ax, (name, x) in zip(axes.flat, results.items()):
        extent = toy.PLANES[name].extent
        shown = toy.heat(ax, x["map"][0], extent, top=0.9)
        toy.scatter(ax, toy.make_data(name)[:300], size=1, color="white")
        ax.set(xlim=(-extent, extent), ylim=(-extent, extent))
        figure.colorbar(shown, ax=ax, shrink=0.8, extend="max").ax.set_title("$L_{TR}$", fontsize=7)
    return figure


# ---------------------------------------------------------------------------------------------- theorem 1
SIGMAS = {f"σ_data {x:.0f}": x for x in (1.0, 2.0, 7.0)}  # 7: the data's own standard deviation, EDM's rule


def end_on_modes(name: str, seeds: int, sigma_data: float, steps: int = 400, starts: int = 1000) -> dict:
    """Starts all over the plane, and where they are after descending L_TR alone; [seed, starts, 2]."""
    denoiser, args = toy.load_denoiser(name, seeds, sigma_data)
    torch.manual_seed(1)
    start = toy.PLANES[name].extent * (2 * torch.rand(seeds, starts, 2) - 1)
    action, draws = nn.Parameter(start.clone()), 4
    obs = torch.ones(seeds, draws * starts, 1)
    loss = lambda: dtql_gaussian.denoising_loss(denoiser, action.repeat(1, draws, 1), obs, args)
    toy.descend(loss, [action], steps, learning_rate=0.2)
    return {"start": start, "end": action.detach()}


def measure_theorem(results: dict, i: int) -> dict:
    ends = {key: x["end"][i] for key, x in results.items()}
    return {key: {"on_data": toy.share_on_data("grid25", end), "modes": toy.modes_covered("grid25", end),
                  "median_distance": torch.cdist(end, toy.GRID).amin(dim=1).median().item()}
            for key, end in ends.items()}  # fmt: skip


def draw_theorem(results: dict):
    titles = ["1000 starts", *(f"ends, {key}" for key in results)]
    figure, axes = toy.canvas(1, 1 + len(results), toy.PLANES["grid25"].extent, titles, cell=1.8)
    clouds = [next(iter(results.values()))["start"], *(x["end"] for x in results.values())]
    for ax, cloud in zip(axes.flat, clouds):
        toy.scatter(ax, toy.make_data("grid25"), size=1, color=toy.DATA_COLOR)
        toy.scatter(ax, cloud[0], size=4, color=toy.POLICY_COLOR)
    return figure


# --------------------------------------------------------------------------------- policies (Fig. 2, 3, 6)
# The gradient of the KL is a share of a distance, that of Q one per box: this α is 8 per 4 units.
KL_FLAGS = (("alpha", 40.0), ("learning_rate", 1e-3), ("lr_schedule", "cosine"))
# D takes z for an action with noise of σ_gen, so σ_gen counts in boxes as σ does: this is 2.5 per 4 units.
PRECONDITIONED = (("precondition", True), ("sigma_gen", 0.5))
POLICIES = {  # script and flags of the policies that the columns of Fig. 3 and 6 compare
    "trust region, Gaussian": ("dtql_gaussian", ()),
    "the same, entropy 0.005": ("dtql_gaussian", (("entropy_coef", 0.005),)),
    "trust region, implicit": ("dtql_implicit", ()),
    "KL, implicit": ("kl_distill", KL_FLAGS),
}
ALONE = {
    "trust region": ("dtql_implicit", ()),
    "KL": ("kl_distill", KL_FLAGS),
    "KL, preconditioned": ("kl_distill", KL_FLAGS + PRECONDITIONED),
}
FORMS = {
    "trust region, raw": ("dtql_implicit", ()),
    "trust region, preconditioned": ("dtql_implicit", PRECONDITIONED),
    "KL, raw": ("kl_distill", KL_FLAGS),
    "KL, preconditioned": ("kl_distill", KL_FLAGS + PRECONDITIONED),
}
COLUMNS = {"far": ("grid25", "far"), "near": ("grid25", "near"), "hard": ("grid25", "hard"),
           "swiss_near": ("swissroll", "near"), "swiss_far": ("swissroll", "far")}  # fmt: skip
DATA_STD = (50 + toy.GRID_STD**2) ** 0.5  # of the 25 Gaussians, per axis


def measure_policies(results: dict, i: int, name: str, reward: str | None) -> dict:
    def numbers(samples: Tensor) -> dict:
        earned = {"reward": toy.reward_of(reward, name, samples).mean().item()} if reward else {}
        return {"on_data": toy.share_on_data(name, samples), "modes": toy.modes_covered(name, samples),
                "spread": samples.std(dim=0).mean().item()} | earned  # fmt: skip

    best = {"best_mode_reward": best_mode(name, reward)} if reward else {}
    return {key: numbers(samples[i]) for key, samples in results.items()} | best


def best_mode(name: str, reward: str) -> float:
    """The largest mean reward of a mode."""
    data = toy.make_data(name)
    return max(
        toy.reward_of(reward, name, data[toy.mode_of(name, data) == i]).mean().item() for i in range(25)
    )


def draw_policies(rows: list[tuple[str, str | None, dict]]):
    """A row of panels for each (data set, reward, samples by policy): the data, and each policy's samples."""
    titles = ["data", *(policy.replace(", ", ",\n") for policy in rows[0][2])]
    figure, axes = toy.canvas(len(rows), len(titles), titles=titles, cell=1.45)
    for row, (name, reward, results) in zip(axes, rows):
        extent, data = toy.PLANES[name].extent, toy.make_data(name)[: toy.SHOWN]
        color = {"c": toy.reward_of(reward, name, data)} if reward else {"color": toy.DATA_COLOR}
        for ax, samples in zip(row, [None, *results.values()]):
            ax.set(xlim=(-extent, extent), ylim=(-extent, extent))
            shown = toy.scatter(ax, data, alpha=1 if samples is None else 0.35, **color)
            if samples is None:
                of_data = shown
            else:
                toy.scatter(ax, samples[0].clamp(-extent, extent), size=3, color=toy.POLICY_COLOR)
        row[0].set_ylabel(f"{name}, {reward}\naction 2" if reward else "action 2")
        if reward:
            figure.colorbar(of_data, ax=row[-1], shrink=0.75, label="reward")
    return figure


def panel(figure: str, policies: dict, name: str, reward: str | None, claims: list) -> toy.Panel:
    """Policies on one data set, with one reward or none."""
    return toy.Panel(
        figure=figure,
        run=lambda seeds: {key: toy.train_policy(script, name, reward, seeds, flags)
                           for key, (script, flags) in policies.items()},
        measure=lambda results, i: measure_policies(results, i, name, reward),
        claims=claims,
        draw=lambda results: draw_policies([(name, reward, results)]),
    )  # fmt: skip


def column(name: str, reward: str) -> toy.Panel:
    """A column of Fig. 3 and 6: one data set with one reward, and four policies on it."""
    first, entropy, implicit, kl = POLICIES
    best = lambda row: 0.9 * row["best_mode_reward"]
    at_best = lambda policy: lambda row: row[policy]["on_data"] > 0.9 and row[policy]["reward"] > best(row)
    earns = lambda row, policy: row[policy]["reward"]
    claims = [
        ("The Gaussian policy ends on the data, at its highest reward", at_best(first)),
        ("The implicit policy ends on the data, at its highest reward", at_best(implicit)),
        ("KL keeps many modes", lambda row: row[kl]["modes"] >= 5),
        ("KL earns less than either policy of the trust region",
         lambda row: earns(row, kl) < min(earns(row, first), earns(row, implicit))),
        ("The entropy term widens the Gaussian policy",
         lambda row: row[entropy]["spread"] > row[first]["spread"]),
    ]  # fmt: skip
    return panel("DTQL Fig. 3 and 6", POLICIES, name, reward, claims)


PANELS = {
    "trust_region_map": toy.Panel(
        figure="DTQL Fig. 1",
        run=lambda seeds: {name: map_trust_region(name, seeds) for name in ("grid25", "swissroll")},
        measure=measure_map,
        claims=toy.each(("grid25", "swissroll"), "the loss is lower at data than off it, in 90 % of pairs",
                        lambda x: x["ranked_right"] > 0.9),
        draw=draw_map,
    ),
    "alone": panel("DTQL Fig. 2", ALONE, "grid25", None, [
        ("The trust region alone ends on modes: 90 % of samples",
         lambda row: row["trust region"]["on_data"] > 0.9),
        ("The trust region alone keeps several modes", lambda row: row["trust region"]["modes"] > 1),
        ("KL alone covers every mode", lambda row: row["KL"]["modes"] == 25),
        ("KL alone covers most modes, more than the trust region",
         lambda row: row["KL"]["modes"] > max(12, row["trust region"]["modes"])),
        ("KL alone spreads as the data do, within 10 %",
         lambda row: abs(row["KL"]["spread"] / DATA_STD - 1) < 0.1),
    ]),
    **{key: column(name, reward) for key, (name, reward) in COLUMNS.items()},
    "theorem1": toy.Panel(
        figure="DTQL Theorem 1",
        run=lambda seeds: {key: end_on_modes("grid25", seeds, x) for key, x in SIGMAS.items()},
        measure=measure_theorem,
        claims=[
            *toy.each(SIGMAS, "99 % of starts end within 3 standard deviations of a mode",
                      lambda x: x["on_data"] > 0.99),
            *toy.each(SIGMAS, "every mode is an end", lambda x: x["modes"] == 25),
        ],
        draw=draw_theorem,
    ),
    "generators": panel("ours", FORMS, "grid25", "far", [
        (f"{label}: both forms reach the same reward, within 10 %", lambda row, label=label:
         abs(row[f"{label}, preconditioned"]["reward"] / row[f"{label}, raw"]["reward"] - 1) < 0.1)
        for label in ("trust region", "KL")
    ]),
}  # fmt: skip
