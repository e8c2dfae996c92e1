"""Implicit Diffusion Q-learning (IDQL), a baseline of the DTQL paper.

Hansen-Estruch, Kostrikov, Janner, Kuba, Levine: IDQL: Implicit Q-Learning as an Actor-Critic Method with
Diffusion Policies  https://arxiv.org/abs/2304.10573

    python benchmark/baselines/idql.py                              # embedded dataset, no network
    python benchmark/baselines/idql.py --env-id walker2d-medium-v2 --num-seeds 5

Each training step, on one batch of a static dataset D:
  1. critics Q1, Q2, V by implicit Q-learning
  2. a diffusion model of 5 denoising steps of the actions in D, by noise prediction alone
Acting draws candidates from 2 and ranks them by 1; nothing else knows of Q.

Critics and residual network are srpo.py's, as is all else that is not defined here. From memory of the
authors' code, which is not at hand: the decay of the behaviour model's learning rate, and sampling with the
wide variance and the box on each a_t. [ours]: what the project does not know of the paper: batch size 256 and
the same steps for both models, no average of the weights, the raw t as time input.
"""

import copy
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.baselines import common
from benchmark.baselines.common import DiffusionPolicy, T

script = common.copy_of("srpo", "idql")
scripts_act = script.act


# ------------------------------------------------------------------------------------------------ arguments
@dataclass
class Args(common.Args):
    lr_decay: bool = True  # cosine decay of the behaviour model's learning rate to 0
    expectile: float | None = None  # τ of the expectile regression of V
    choice: typing.Literal["max_q", "expectile"] = "max_q"  # largest min(Q1, Q2), or weights |τ - 1(Q < V)|


LIMITS = common.LIMITS | {"expectile": (0, 1)}


def settings_of(env_id: str) -> dict:
    """What the flags that were not given become. 64 candidates: [ours], amid the paper's 32 to 128."""
    expectile = 0.9 if "antmaze" in env_id else 0.7
    return common.steps_of(env_id) | {"eval_candidates": 64, "expectile": expectile}


# --------------------------------------------------------------------------------------------------- update
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
        self.q = script.QNetworks(*sizes)
        self.v = script.VNetwork(generators, obs_dim)
        self.policy = DiffusionPolicy(script.Denoiser(*sizes), self.max_action, wide=True)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.to(device)
        self.optimizers = {
            "q": script.adam(self.q.parameters(), args.learning_rate),
            "v": script.adam(self.v.parameters(), args.learning_rate),
            "policy": script.adam(self.policy.parameters(), args.learning_rate, torch.optim.AdamW),
        }


def train_update(agent: Agent, batch: tuple[Tensor, ...], u: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """One gradient step of critics and behaviour model, with dropout from all of u but its first. Losses
    [seed].

    batch: obs, action, reward, next_obs, terminal [seed, batch, dim]; u: uniform noise [.., seed, batch, 1];
    eps: normal noise [.., seed, batch, action_dim].
    """
    losses = script.critic_update(agent, batch, u, eps)
    obs, action, *_ = batch
    kept = (u[1:] > script.DROPOUT).squeeze(-1).permute(1, 2, 0)  # [seed, batch, BLOCKS * HIDDEN_DIM]
    dropout = kept.unflatten(2, (script.BLOCKS, script.HIDDEN_DIM)) / (1 - script.DROPOUT)
    bc_loss = agent.policy.loss(action, obs, u[0], eps[0], dropout)
    script.minimize(bc_loss, agent.optimizers["policy"])

    agent.trained.add_(1)
    if agent.args.lr_decay:
        script.decay_learning_rates([agent.optimizers["policy"]], agent.trained, agent.args.train_steps)
    return losses | {"bc_loss": bc_loss.detach()}


PHASES = {"train": script.Phase(train_update, uniform=1 + script.BLOCKS * script.HIDDEN_DIM, normal=1)}


# ----------------------------------------------------------------------------------------------- evaluation
def act(agent: Agent, running: list, candidates: int):
    """Actions [seed, episode, action_dim], as the scripts'; T normals for each candidate."""
    return scripts_act(agent, running, T * candidates)


def choose_action(agent: Agent, obs: Tensor, noise: Tensor, u: Tensor) -> Tensor:
    """One of the candidates as --choice says, by the target critic; [seed, episode, action_dim].

    obs [seed, episode, obs_dim], noise and u as common.split_noise.
    """
    noise, u = common.split_noise(noise, u)
    action = agent.policy.sample(obs, noise)  # [seed, episode, candidate, action_dim]
    states = obs.repeat_interleave(u.shape[2], dim=1)
    score = agent.target_q(states, action.flatten(1, 2)).amin(dim=1).view(u.shape)  # min(Q1, Q2)
    if agent.args.choice == "expectile":
        tau, v = agent.args.expectile, agent.v(obs).unsqueeze(2)  # [seed, episode, 1]
        weights = (tau - (score < v).to(score.dtype)).abs()
        score = weights.log() - torch.log(-torch.log(u))  # a draw from the weights, by the Gumbel-max trick
    choice = score.argmax(dim=2)
    return action.take_along_dim(choice[:, :, None, None], dim=2)[:, :, 0]


vars(script).update(Args=Args, LIMITS=LIMITS, settings_of=settings_of, Agent=Agent, PHASES=PHASES, act=act,
                    choose_action=choose_action, __doc__=__doc__)  # fmt: skip

if __name__ == "__main__":
    script.main()
