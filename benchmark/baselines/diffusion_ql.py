"""Diffusion Q-learning (Diffusion-QL), a baseline of the DTQL paper.

Wang, Hunt, Zhou: Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning
https://arxiv.org/abs/2208.06193

    python benchmark/baselines/diffusion_ql.py                      # embedded dataset, no network
    python benchmark/baselines/diffusion_ql.py --env-id walker2d-medium-v2 --num-seeds 5

Each training step, on one batch of a static dataset D:
  1. critics Q1, Q2 towards  r + γ min(Q1', Q2')(s', a'),  a' sampled from the EMA of the policy
  2. a diffusion policy of 5 denoising steps,  L_d(θ) - η E[Q_i(s, a_0)] / E|Q_j(s, a_0)|

L_d is the noise-prediction loss on actions of D; the gradient of Q passes through all steps of the sampled
a_0. All but what is defined here is dtql_gaussian.py's. Where the project does not know what the paper says:
[ours]. So are: batch size, steps, r - 1 for AntMaze and no maximum over Q at s' there, a clipped critic, the
narrow variance of sampling and the box on each step's predicted a_0.
"""

import copy
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.baselines import common
from benchmark.baselines.common import DiffusionPolicy, T

script = common.copy_of("dtql_gaussian", "diffusion_ql")
scripts_act, scripts_choose_action = script.act, script.choose_action


# ------------------------------------------------------------------------------------------------ arguments
@dataclass
class Args(common.Args):
    lr_decay: bool = True  # cosine decay of all learning rates to 0 over the training steps
    eta: float = 1.0  # η, weight of Q against the denoising loss; 1 for Gym, and [ours] for every other task
    grad_norm: float | None = None  # largest norm of a gradient, of critics and of policy, seed by seed


LIMITS = common.LIMITS | {"eta": (0, 1e9), "grad_norm": (1e-9, 1e9)}
GRAD_NORM = {"hopper-medium-v2": 9.0, "walker2d-medium-v2": 1.0, "local/hopper/medium-v0": 9.0}
OTHER_GRAD_NORM = 1.0  # [ours], as the local one: walker2d-medium's, as the scripts take for unknown tasks


def settings_of(env_id: str) -> dict:
    """What the flags that were not given become."""
    grad_norm = GRAD_NORM.get(env_id, OTHER_GRAD_NORM)
    return common.steps_of(env_id) | {"eval_candidates": 50, "grad_norm": grad_norm}


# ------------------------------------------------------------------------------------------------- networks
TIME_DIM = 16


class NoisePredictor(nn.Module):
    """ε̂_θ(a_t, t, s): three times (Linear 256, Mish), with t as 16 sinusoids through a small network."""

    def __init__(self, generators, obs_dim: int, action_dim: int):
        super().__init__()
        k = torch.arange(TIME_DIM // 2)
        self.register_buffer("frequencies", torch.exp(-k * math.log(10_000) / (TIME_DIM // 2 - 1)))
        self.time = nn.Sequential(
            script.Linear(generators, TIME_DIM, 32), script.Mish(), script.Linear(generators, 32, TIME_DIM)
        )
        self.body = script.mlp(generators, action_dim + obs_dim + TIME_DIM, action_dim, script.Mish)

    def forward(self, x: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        """x and result [seed, batch, action_dim], t of 1..T [seed, batch, 1], obs [seed, batch, obs_dim]."""
        angle = t * self.frequencies  # [seed, batch, TIME_DIM / 2]
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))  # [seed, batch, TIME_DIM]
        return self.body(torch.cat([x, obs, time], dim=-1))


class QNetworks(nn.Module):
    """Q1 and Q2 of every seed, as dtql_gaussian.py's without LayerNorm."""

    def __init__(self, generators, obs_dim: int, action_dim: int):
        super().__init__()
        both = [g for g in generators for _ in range(2)]
        self.net = script.mlp(both, obs_dim + action_dim, 1, script.Mish)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], dim=-1).repeat_interleave(2, dim=0)  # [2 * seed, batch, obs + action]
        return self.net(x).view(-1, 2, x.shape[1])  # [seed, 2, batch]


# --------------------------------------------------------------------------------------------------- update
EMA_SHARE, EMA_EVERY, EMA_START = 0.005, 5, 1000  # the policy's share in its average; steps between updates


class Agent(nn.Module):
    """The networks of all seeds and their optimisers."""

    def __init__(self, obs_dim: int, max_action: list[float], args: Args, device: torch.device):
        super().__init__()
        self.args = args
        generators = [
            torch.Generator().manual_seed(script.derive_seed(seed, 0)) for seed in script.seeds_of(args)
        ]
        sizes = (generators, obs_dim, len(max_action))
        self.register_buffer("max_action", torch.tensor(max_action))  # [action_dim]
        self.register_buffer("trained", torch.zeros(()))  # training steps done, for the cosine decay
        self.q = QNetworks(*sizes)
        self.policy = DiffusionPolicy(NoisePredictor(*sizes), self.max_action, wide=False)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.ema_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.to(device)
        self.optimizers = {
            "q": script.adam(self.q.parameters(), args.learning_rate),
            "policy": script.adam(self.policy.parameters(), args.learning_rate),
        }


def minimize_clipped(loss: Tensor, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """One step on loss [seed] with the norm of each seed's gradient, over all params, at most max_norm."""
    params, n = optimizer.param_groups[0]["params"], len(loss)
    grads = [grad.reshape(n, -1) for grad in torch.autograd.grad(loss.sum(), params)]
    norm = sum(grad.square().sum(dim=1) for grad in grads).sqrt()  # [seed]
    scale = (max_norm / (norm + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_'s
    for param, grad in zip(params, grads):
        param.grad = (grad * scale.unsqueeze(1)).view_as(param)
    optimizer.step()


def train_update(agent: Agent, batch: tuple[Tensor, ...], u: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """One gradient step of critics and policy. Losses [seed].

    batch: obs, action, reward, next_obs, terminal [seed, batch, dim]; u: uniform noise [.., seed, batch, 1];
    eps: normal noise [.., seed, batch, action_dim].
    """
    args = agent.args
    obs, action, reward, next_obs, terminal = batch
    with torch.no_grad():
        next_action = agent.ema_policy(next_obs, eps[:T])
        next_q = agent.target_q(next_obs, next_action).amin(dim=1)  # [seed, batch]
    q = agent.q(obs, action)  # [seed, 2, batch]
    q_loss = script.q_loss(q, reward.squeeze(-1), terminal.squeeze(-1), next_q, args.discount)
    minimize_clipped(q_loss, agent.optimizers["q"], args.grad_norm)

    bc_loss = agent.policy.loss(action, obs, u[0], eps[T])
    policy_action = agent.policy(obs, eps[T + 1 :])
    policy_q = script.frozen(agent.q)(obs, policy_action)  # [seed, 2, batch]
    # Either critic's mean over the other's mean magnitude, at random; the first transition's u decides.
    ratios = policy_q.mean(dim=2) / policy_q.detach().abs().mean(dim=2).flip(1)  # [seed, 2]
    guidance = torch.where(u[1, :, 0, 0] < 0.5, ratios[:, 0], ratios[:, 1])
    minimize_clipped(bc_loss - args.eta * guidance, agent.optimizers["policy"], args.grad_norm)

    # As a share that is mostly 0, since a CUDA graph has no branches. [ours]: counted from 0.
    due = (agent.trained >= EMA_START) & (agent.trained % EMA_EVERY == 0)
    script.update_target(agent.ema_policy, agent.policy, EMA_SHARE * due.to(agent.trained.dtype))
    script.update_target(agent.target_q, agent.q, args.tau)
    agent.trained.add_(1)
    if args.lr_decay:
        script.decay_learning_rates(agent.optimizers.values(), agent.trained, args.train_steps)
    losses = {"q_loss": q_loss, "bc_loss": bc_loss, "policy_q": policy_q.amin(dim=1).mean(dim=1)}
    return {name: loss.detach() for name, loss in losses.items()}


PHASES = {"train": script.Phase(train_update, uniform=2, normal=2 * T + 1)}


# ----------------------------------------------------------------------------------------------- evaluation
def act(agent: Agent, running: list, candidates: int):
    """Actions [seed, episode, action_dim], as the scripts'; T normals for each candidate."""
    return scripts_act(agent, running, T * candidates)


def choose_action(agent: Agent, obs: Tensor, noise: Tensor, u: Tensor) -> Tensor:
    """As the scripts': one of the candidates by softmax(min(Q1, Q2)) of the target critic."""
    return scripts_choose_action(agent, obs, *common.split_noise(noise, u))


vars(script).update(Args=Args, LIMITS=LIMITS, settings_of=settings_of, Agent=Agent, PHASES=PHASES, act=act,
                    choose_action=choose_action, __doc__=__doc__)  # fmt: skip

if __name__ == "__main__":
    script.main()
