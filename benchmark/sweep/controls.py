"""Controls of the default's score: what Q and the trust region know. Writes benchmark/results/controls/.

    python -m benchmark.sweep.controls benchmark/results/local    # alpha.png
    python -m benchmark.sweep.controls runs --rank                # and q_ranking, of the models of a sweep

alpha.png: the score over α, and the denoising loss at the policy's and at the data's actions (Eq. 4 and 2).

q_ranking: for states of the dataset, actions are drawn from the run's behaviour model, as the data has them.
Each is executed once in the simulator, put in that state, and followed by the policy's mean action: the
discounted sum of rewards is what Q(s, a) should rank. Rank correlations are within a state, over its actions.
"""

import argparse
import itertools
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import dtql_gaussian
from benchmark.sweep.experiments import DTQL, EXPERIMENTS, LOCAL, ROOT, Setting
from benchmark.sweep.report import read_run
from dtql_gaussian import Agent, Args

RESULTS = ROOT / "benchmark/results/controls"
STATES, ACTIONS, HORIZON = 40, 8, 200  # 0.99^200 is 13 %
NOISE_LEVELS = 40


def load(run_dir: Path) -> tuple[Agent, Args, dict]:
    """The agent of a finished run, arguments that act by its mean action, and its configuration."""
    saved = torch.load(run_dir / "model.pt", weights_only=True)
    config = saved["config"]
    args = Args(**{name: config[name] for name in vars(Args())} | {"eval_candidates": 0})
    agent = Agent(config["obs_dim"], config["action_dim"], args, torch.device("cpu"))
    agent.load_state_dict(saved["agent"])
    return agent, args, config


def sample_behavior(agent: Agent, obs: Tensor, args: Args) -> Tensor:
    """An action of the behaviour model for each obs [seed, state, dim]: Euler steps of the probability flow
    from σ_max to σ_min at the noise levels of Karras et al. 2022, Eq. 5, with ρ = 7."""
    ends = args.sigma_max ** (1 / 7), args.sigma_min ** (1 / 7)
    sigmas = torch.cat([torch.linspace(*ends, NOISE_LEVELS) ** 7, torch.zeros(1)])
    action = sigmas[0] * torch.randn(*obs.shape[:2], agent.denoiser.body.biases[-1].shape[-1])
    for sigma, lower in itertools.pairwise(sigmas):
        clean = agent.denoiser(action, sigma.expand(*obs.shape[:2], 1), obs)
        action = action + (lower - sigma) * (action - clean) / sigma
    return action


def put(env: gym.Env, obs: Tensor) -> None:
    """Puts a Reacher in the state of obs [dim]: cosines, sines of joints, target, velocities of joints."""
    cosines, sines, target, velocities = obs[:8].double().numpy().reshape(4, 2)
    env.reset()
    env.unwrapped.set_state(np.r_[np.arctan2(sines, cosines), target], np.r_[velocities, 0, 0])


def simulate(env: gym.Env, agent: Agent, obs: Tensor, action: Tensor, args: Args) -> np.ndarray:
    """Discounted returns [seed, state, action] of first actions [seed, state, action, dim] at obs [state,
    dim], the policy acting from then on."""
    returns = np.zeros(action.shape[:3])
    for i, j, k in np.ndindex(*returns.shape):
        put(env, obs[j])
        now = action[i, j, k]
        for discount in args.discount ** np.arange(HORIZON):
            next_obs, reward, *_ = env.unwrapped.step(now.numpy())  # beyond the time limit, as Q sees it
            returns[i, j, k] += discount * reward
            rows = torch.as_tensor(next_obs, dtype=torch.float32).expand(args.num_seeds, 1, -1)
            now = dtql_gaussian.act(agent, rows, args)[i, 0]
    return returns


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's, over the last dim, for values without ties."""
    ranks = (values.argsort(axis=-1).argsort(axis=-1) for values in (x, y))
    x, y = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    return (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))


@torch.no_grad()
def examine(run_dir: Path) -> dict:
    """Numbers for each seed of a run, over STATES states with ACTIONS actions each."""
    agent, args, config = load(run_dir)
    torch.manual_seed(0)
    (all_obs, *_), _ = dtql_gaussian.load_dataset(args.env_id)
    obs = all_obs[torch.randint(len(all_obs), (STATES,))]  # [state, obs_dim]
    rows = obs.repeat_interleave(ACTIONS, dim=0).expand(args.num_seeds, -1, -1)  # [seed, state * action, dim]
    action = sample_behavior(agent, rows, args)
    q = agent.target_q(rows, action).amin(dim=1).view(args.num_seeds, STATES, ACTIONS).numpy()
    env = dtql_gaussian.open_minari(args.env_id).recover_environment(eval_env=True)
    returns = simulate(env, agent, obs, action.unflatten(1, (STATES, ACTIONS)), args)
    env.close()
    chosen = np.take_along_axis(returns, q.argmax(axis=2)[..., None], axis=2)[..., 0]  # [seed, state]
    gain, most = chosen - returns.mean(axis=2), returns.max(axis=2) - returns.mean(axis=2)
    return {
        "env_id": args.env_id, "git_commit": config["git_commit"], "states": STATES,
        "actions": ACTIONS, "horizon": HORIZON,
        "seeds": [*range(args.seed, args.seed + args.num_seeds)],
        "rank_correlation": rank_correlation(q, returns).tolist(),  # [seed, state]
        "share_of_best_gain": (gain.sum(axis=1) / most.sum(axis=1)).tolist(),  # of Q's choice; [seed]
        "q_minus_return": (q - returns).mean(axis=(1, 2)).tolist(),
    }  # fmt: skip


def draw_ranking(result: dict) -> Figure:
    """A histogram of the rank correlations in single states, of all seeds together."""
    values = np.ravel(result["rank_correlation"])
    figure = Figure((4.5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, np.linspace(-1, 1, 17), color="#0072B2")
    axes.axvline(values.mean(), color="#D55E00", label=f"mean {values.mean():.2f}")
    axes.set(xlabel="rank correlation of Q with simulated returns, in a state", ylabel="states")
    axes.legend(frameon=False)
    return figure


def draw_alpha(runs: Path) -> Figure:
    """Two panels over α: scores of the seeds; denoising losses in the last line of metrics, their mean."""
    rows = {}  # by label: last scores, trust_region_loss and bc_loss, [seed] each
    for setting in EXPERIMENTS["local_alpha"].settings:
        run = read_run(runs / setting.folder / "seed-1", [])
        scores = [seed["last"] for seed in run.config["seeds"].values()]
        losses = [(line["trust_region_loss"], line["bc_loss"]) for line in run.lines[-len(run.seeds) :]]
        rows[setting.label.removeprefix("α = ")] = scores, *zip(*losses)
    x = np.arange(len(rows))
    scores, at_policy, at_data = (np.array(values) for values in zip(*rows.values()))
    figure = Figure((8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.errorbar(x, scores.mean(axis=1), scores.std(axis=1, ddof=1), color="#0072B2", marker="o", capsize=3)
    left.set(ylabel="score, mean ± std over seeds")
    right.plot(x, at_policy.mean(axis=1), marker="o", color="#D55E00", label="at the policy's actions")
    right.plot(x, at_data.mean(axis=1), marker="s", color="#009E73", label="at the data's actions")
    right.set(ylabel="denoising loss")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xticks(x, rows)
        axes.set(xlabel="α")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that a sweep of local_alpha has filled")
    parser.add_argument("--rank", action="store_true", help="also Q's ranking, by the models there")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    draw_alpha(args.runs).savefig(RESULTS / "alpha.png", dpi=150)
    if not args.rank:
        return
    torch.set_num_threads(1)
    result = examine(args.runs / Setting(LOCAL, "", DTQL).folder / "seed-1")
    (RESULTS / "q_ranking.json").write_text(json.dumps(result, indent=1) + "\n")
    draw_ranking(result).savefig(RESULTS / "q_ranking.png", dpi=150)
    mean, gain = np.mean(result["rank_correlation"]), np.mean(result["share_of_best_gain"])
    print(f"rank correlation {mean:.2f}; Q's choice has {gain:.0%} of the best action's gain")


if __name__ == "__main__":
    main()
