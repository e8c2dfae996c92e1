"""What Diffusion-QL and IDQL share: a diffusion policy of T discrete steps, common flags, a script's copy."""

import importlib.util
import math
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]


def copy_of(script: str, baseline: str) -> types.ModuleType:
    """{script}.py as a module of its own. The baseline replaces some of its names, which its functions then
    use; the module that others import is left alone. An evaluation process imports the baseline first, so
    that pickle finds the copy there, too."""
    name = f"{baseline}_script"
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{script}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__file__ = str(ROOT / f"{baseline}.py")  # the baseline's name in all it writes, beside datasets/
    return module


# ------------------------------------------------------------------------------------------------ arguments
@dataclass
class Args:  # None: the task's setting, or as the comment says
    env_id: str = "local/hopper/medium-v0"  # D4RL name (walker2d-medium-v2), Minari id, or local Minari id
    seed: int = 1  # the first seed
    num_seeds: int = 1  # seeds seed, seed + 1, ... train together in this process
    device: str = "auto"  # auto (cuda if there is one), cpu, cuda, cuda:1, ...
    compile: bool | None = None  # --compile, --no-compile; with CUDA graphs on a GPU; None: from 20k steps on
    tf32: bool = False  # on a GPU, matrix products of factors rounded to 10 bits: faster
    eval_every: int | None = None  # training steps between evaluations
    eval_episodes: int | None = None  # per evaluation and seed; 0: never evaluate, needs no environment
    eval_candidates: int | None = None  # actions per state, ranked by Q; 1: plain policy
    eval_workers: int | None = None  # processes that evaluate; 0: none, in place; None: one per core in use
    run_dir: str | None = None  # everything a run writes; None: runs/{env}__{script}__{seed}__{time}
    checkpoint_every: int | None = None  # steps between checkpoints; None: as --eval-every
    resume: bool = False  # continue the run in --run-dir from its last checkpoint; start it if there is none
    eval_only: str | None = None  # path of a checkpoint.pt or model.pt: evaluate it and print the score
    capture_video: bool = False  # one episode of the final policy per seed as mp4 in the run directory
    track: bool = False  # log to Weights & Biases too (WANDB_MODE=offline works)
    wandb_project: str = "dtql"  # Weights & Biases project
    wandb_entity: str | None = None  # Weights & Biases team or user
    discount: float = 0.99  # γ, what a reward one step later counts
    tau: float = 0.005  # share of Q that enters the target Q at each training step
    batch_size: int | None = None  # transitions per gradient step and seed
    train_steps: int | None = None  # gradient steps of all networks
    learning_rate: float = 3e-4  # of all networks
    # No flags: the scripts compare their noise levels, which a discrete diffusion does not have.
    sigma_min: typing.ClassVar[float] = 0.0
    sigma_max: typing.ClassVar[float] = 1.0


LIMITS = {  # smallest and largest value of a flag
    "seed": (0, 2**31), "num_seeds": (1, 1024), "eval_workers": (0, 1024), "batch_size": (1, 2**24),
    "train_steps": (1, 2**40), "eval_every": (1, 2**40), "eval_episodes": (0, 2**20),
    "eval_candidates": (1, 2**20), "checkpoint_every": (1, 2**40), "discount": (0, 1), "tau": (0, 1),
    "learning_rate": (0, 1e9),
}  # fmt: skip


def steps_of(env_id: str) -> dict:
    """Length and evaluation of a run. Ours: dtql_gaussian.py's; on the local dataset three times the
    1 / (tau (1 - discount)) = 20k steps in which a Q that bootstraps from its target copy settles."""
    local, gym = env_id.startswith("local/"), any(x in env_id for x in ("halfcheetah", "hopper", "walker2d"))
    train_steps, eval_every = (60_000, 20_000) if local else (1_000_000, 50_000)
    return {"batch_size": 256, "train_steps": train_steps, "eval_every": eval_every,
            "eval_episodes": 10 if local or gym else 100}  # fmt: skip


# ---------------------------------------------------------------------------------------- discrete diffusion
T = 5  # denoising steps, in both papers


def alpha_bar(t: Tensor) -> Tensor:
    """ᾱ_t = Π_{s ≤ t} (1 - β_s) of the VP schedule β_s = 1 - exp(-0.1/T - 0.5 · 9.9 (2s - 1)/T²), s = 1..T.

    Closed form, as Σ_{s ≤ t} (2s - 1) = t²; ᾱ_0 = 1. Diffusion-QL's schedule, which IDQL takes over.
    """
    return torch.exp(-0.1 * t / T - 0.5 * 9.9 * (t / T) ** 2)


class DiffusionPolicy(nn.Module):
    """a_T ~ N(0, I), then T steps of ancestral sampling with ε̂ = net(a_t, t, obs), the result in the box.

    wide (IDQL): the variance of a step is β_t, and the box clips each a_t. Else (Diffusion-QL): the variance
    is that of q(a_{t-1} | a_t, a_0), right for data in one point (Ho et al. 2020, section 3.2), and the box
    clips each predicted a_0. Five steps leave N(0, 0.4²) a deviation of 0.34 or, not wide, 0.22.
    """

    def __init__(self, net: nn.Module, max_action: Tensor, wide: bool):
        super().__init__()
        self.net, self.wide = net, wide
        self.bars = alpha_bar(torch.arange(T + 1.0, dtype=torch.float64)).tolist()  # ᾱ_0 .. ᾱ_T
        self.register_buffer("max_action", max_action)

    def loss(self, action: Tensor, obs: Tensor, u: Tensor, eps: Tensor, *options) -> Tensor:
        """Behaviour cloning: E[mean over dims of (ε̂(√ᾱ_t a + √(1 - ᾱ_t) ε, t, s) - ε)²], t uniform; [seed].

        action and eps [seed, batch, action_dim], obs [seed, batch, obs_dim], u [seed, batch, 1]; options:
        further inputs of net.
        """
        t = torch.floor(u * T) + 1  # [seed, batch, 1], of 1..T
        bar = alpha_bar(t)
        noisy = bar.sqrt() * action + (1 - bar).sqrt() * eps
        return (self.net(noisy, t, obs, *options) - eps).square().mean(dim=(1, 2))

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """a_0 [seed, batch, action_dim] for each obs [seed, batch, obs_dim] and noise [T, seed, batch, ...]:
        a_T first, then one for each step but the last, which adds none. Gradients pass through all steps.
        """
        x = noise[0]
        for t in range(T, 0, -1):
            bar, previous = self.bars[t], self.bars[t - 1]
            alpha = bar / previous  # 1 - β_t
            eps = self.net(x, torch.full_like(x[..., :1], t), obs)
            clean = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
            if not self.wide:
                clean = clean.clamp(-self.max_action, self.max_action)  # at t = 1 this is the result
            of_clean = math.sqrt(previous) * (1 - alpha) / (1 - bar)
            x = of_clean * clean + math.sqrt(alpha) * (1 - previous) / (1 - bar) * x
            if t > 1:
                variance = (1 - alpha) * (1 if self.wide else (1 - previous) / (1 - bar))
                x = x + math.sqrt(variance) * noise[T + 1 - t]
            if self.wide:
                x = x.clamp(-self.max_action, self.max_action)
        return x

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Several actions for each state; noise [seed, episode, candidate, T, action_dim], of which the
        result lacks T."""
        candidates = noise.shape[2]
        obs = obs.repeat_interleave(candidates, dim=1)  # [seed, episode * candidate, obs_dim]
        return self(obs, noise.flatten(1, 2).movedim(2, 0)).unflatten(1, (-1, candidates))


def split_noise(noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """For choose_action: what act drew for T times as many candidates, as T normals for each.

    noise [seed, episode, candidate * T, action_dim] -> [seed, episode, candidate, T, action_dim], and u
    [seed, episode, candidate * T] -> [seed, episode, candidate].
    """
    return noise.unflatten(2, (-1, T)), u[:, :, ::T]
