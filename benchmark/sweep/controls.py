"""Does the critic know which action is better? Its ranking of actions against returns simulated from the
same states: writes benchmark/results/controls/q_ranking.json and .png.

    python -m benchmark.sweep.controls RUN_DIR...    # finished runs of dtql_gaussian.py, default dataset

For states of the dataset, actions are drawn from the run's behaviour model, as the data has them. Each is
then executed once in the simulator, put in that state, and followed by the policy's mean action: the
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
from dtql_gaussian import Agent, Args

RESULTS = Path(__file__).resolve().parents[1] / "results" / "controls"
STATES, ACTIONS, HORIZON = 50, 8, 300  # 0.99^300 is 5 %
NOISE_LEVELS = 40


def load(run_dir: str) -> tuple[Agent, Args, dict]:
    """The agent of a finished run, arguments that act by its mean action, and its configuration."""
    saved = torch.load(Path(run_dir, "model.pt"), weights_only=True)
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


def simulate(env: gym.Env, agent: Agent, obs: Tensor, action: Tensor, args: Args) -> np.ndarray:
    """Discounted returns [seed, state, action] of first actions [seed, state, action, dim] at obs [state,
    dim] of a Reacher: cosines and sines of its joints, the target, the joints' velocities."""
    returns = np.zeros(action.shape[:3])
    for i, j, k in np.ndindex(*returns.shape):
        cosines, sines, target, velocities = obs[j, :8].double().numpy().reshape(4, 2)
        env.reset()
        env.unwrapped.set_state(np.r_[np.arctan2(sines, cosines), target], np.r_[velocities, 0, 0])
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
def examine(run_dir: str) -> dict:
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
        "run": run_dir, "env_id": args.env_id, "git_commit": config["git_commit"], "states": STATES,
        "actions": ACTIONS, "horizon": HORIZON,
        "seeds": [*range(args.seed, args.seed + args.num_seeds)],
        "rank_correlation": rank_correlation(q, returns).tolist(),  # [seed, state]
        "share_of_best_gain": (gain.sum(axis=1) / most.sum(axis=1)).tolist(),  # of Q's choice; [seed]
        "q_minus_return": (q - returns).mean(axis=(1, 2)).tolist(),
    }  # fmt: skip


def draw(results: list[dict], path: Path) -> None:
    """Histograms of the rank correlations in single states, all seeds of a run together."""
    figure = Figure((3.2 * len(results), 2.6), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results):
        values = np.ravel(result["rank_correlation"])
        axes.hist(values, np.linspace(-1, 1, 17), color="#0072B2")
        axes.axvline(values.mean(), color="#D55E00")
        axes.set(title=f"{result['env_id']}: mean {values.mean():.2f}", xlabel="rank correlation in a state")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dirs", nargs="+")
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = [examine(run_dir) for run_dir in parser.parse_args().run_dirs]
    (RESULTS / "q_ranking.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, RESULTS / "q_ranking.png")
    for result in results:
        mean, gain = np.mean(result["rank_correlation"]), np.mean(result["share_of_best_gain"])
        print(f"{result['run']}: rank correlation {mean:.2f}; Q's choice has {gain:.0%} of the best's gain")


if __name__ == "__main__":
    main()
