# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "numpy", "gymnasium[mujoco]==1.4.0", "mujoco==3.4.0", "minari[hdf5,hf]==0.5.4",
#                 "tyro", "tqdm", "wandb", "moviepy"]
# ///
"""Implicit Diffusion Q-learning (IDQL), in one file: a baseline of the DTQL paper.

Hansen-Estruch, Kostrikov, Janner, Kuba, Levine: IDQL: Implicit Q-Learning as an Actor-Critic Method with
Diffusion Policies  https://arxiv.org/abs/2304.10573

    python benchmark/baselines/idql.py                              # embedded dataset, no network
    python benchmark/baselines/idql.py --env-id walker2d-medium-v2 --num-seeds 5

Each training step, on one batch of a static dataset D:
  1. critics Q1, Q2, V by implicit Q-learning, on the first 256 transitions
  2. a diffusion model of 5 denoising steps of the actions in D, by noise prediction alone, on either half
Acting draws candidates from an average of 2 and ranks them by 1; nothing else knows of Q. All seeds train
together, along a leading dimension of parameters, batches and noise. [code] marks what only the authors' code
says (github.com/philippe-eecs/IDQL, as of the paper; a later state has other batches, activations and
LayerNorms, and by its author's word lower scores), [ours] what is not theirs.
"""

import contextlib
import copy
import dataclasses
import difflib
import fcntl
import hashlib
import itertools
import json
import math
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, TextIO

os.environ.setdefault("GOMP_SPINCOUNT", "100000")  # threads that wait less busily: docs/speed.md
import gymnasium as gym
import h5py
import minari
import mujoco
import numpy as np
import torch
import tyro
import wandb
from torch import Tensor, nn
from tqdm import tqdm


# ------------------------------------------------------------------------------------------------ arguments
@dataclasses.dataclass
class Args:  # None: the task's value in TASKS, or as the comment says
    env_id: str = "local/reacher/wander-v0"  # D4RL name (walker2d-medium-v2), Minari id, or local Minari id
    seed: int = 1  # of the one random stream of a run, whose agents are called seed, seed + 1, ...
    num_seeds: int = 1  # agents trained together, each with weights, batches and noise of its own
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one; CUDA_VISIBLE_DEVICES: which
    compile: bool = False  # torch.compile; on a GPU also one CUDA graph per step; takes a minute to start
    tf32: bool = False  # on a GPU, matrix products of factors rounded to 10 bits: faster
    eval_every: int | None = None  # training steps between evaluations
    eval_episodes: int | None = None  # per evaluation and seed; 0: never evaluate, needs no environment
    eval_candidates: int = 64  # actions per state; 1: plain policy. [code], which tries 16 to 256
    run_dir: str | None = None  # everything a run writes; None: a new directory in runs/
    checkpoint_every: int = 5000  # steps between checkpoints
    resume: str | None = None  # a run's directory: continue it with its own arguments
    eval_only: str | None = None  # a run's directory: evaluate its model.pt and print the score
    capture_video: bool = False  # in the end, an episode per seed as mp4; without a screen MUJOCO_GL=egl
    track: bool = False  # log to Weights & Biases too, as WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE say
    discount: float = 0.99  # γ, what a reward one step later counts
    tau: float = 0.005  # share of Q that enters the target Q at each training step
    batch_size: int | None = None  # transitions per training step and seed, half of them per gradient step
    train_steps: int | None = None  # gradient steps of critics; twice as many of the behaviour model
    learning_rate: float = 3e-4  # of all networks
    lr_schedule: Literal["constant", "cosine"] = "cosine"  # of the behaviour model's learning rate [code]
    expectile: float | None = None  # τ of the expectile regression of V
    choice: Literal["max_q", "expectile"] = "max_q"  # largest min(Q1, Q2), or weights |τ - 1(Q < V)|


# ------------------------------------------------------------------------------------------------- networks
HIDDEN, TIME_DIM = (256, 256), 64  # hidden layers of a critic, features of the time
BLOCKS, DROPOUT = 3, 0.1  # of the behaviour model
EMA_SHARE, CRITIC_BATCH = 0.001, 256  # the model's share in its average [code]; transitions for the critics
T = 5  # denoising steps


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) by a single exponential: with PyTorch's own a compiled step takes a third more."""
    s = torch.sigmoid(x)
    w = s * (2 - s)
    return x * w / (2 - w)


class MLP(nn.Module):
    """n networks side by side: [n, batch, dims[0]] -> [n, batch, dims[-1]], a layer of all in one product,
    and the activation between two. Xavier's uniform weights and zero biases: [code]."""

    def __init__(self, n: int, *dims: int, activation: Callable = mish):
        super().__init__()
        self.activation, self.weights, self.biases = activation, nn.ParameterList(), nn.ParameterList()
        for in_dim, out_dim in itertools.pairwise(dims):
            bound = math.sqrt(6 / (in_dim + out_dim))
            self.weights.append(torch.empty(n, in_dim, out_dim).uniform_(-bound, bound))
            self.biases.append(torch.zeros(n, 1, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, self.activation(x) if i > 0 else x, weight)
        return x


class ResidualBlock(nn.Module):
    """x + Linear(Mish(Linear(LayerNorm(Dropout(x))))). LeCun's normal weights: [code]."""

    def __init__(self, n: int, dim: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(n, 1, dim)), nn.Parameter(torch.zeros(n, 1, dim))
        self.net = MLP(n, dim, 4 * dim, dim)
        for weight in self.net.weights:
            std = weight.shape[1] ** -0.5 / 0.87962566  # before the cut at two of it
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor, dropout: bool) -> Tensor:
        normal = torch.layer_norm(torch.dropout(x, DROPOUT, dropout), x.shape[-1:], eps=1e-6)
        return x + self.net(torch.addcmul(self.shift, normal, self.scale))


class NoisePredictor(nn.Module):
    """ε̂(a_t, t, s): a residual MLP. Learnt frequencies of the time, which counts from 0: [code]."""

    def __init__(self, n: int, obs_dim: int, action_dim: int):
        super().__init__()
        self.frequencies = nn.Parameter(0.2 * torch.randn(n, 1, TIME_DIM // 2))
        self.time = MLP(n, TIME_DIM, 128, 128)
        self.first = MLP(n, action_dim + obs_dim + 128, HIDDEN[0])
        self.blocks = nn.ModuleList(ResidualBlock(n, HIDDEN[0]) for _ in range(BLOCKS))
        self.last = MLP(n, HIDDEN[0], action_dim)

    def forward(self, x: Tensor, t: Tensor, obs: Tensor, dropout: bool = False) -> Tensor:
        """x and result [seed, batch, action_dim], t of 1..T [seed, batch, 1]."""
        angle = 2 * math.pi * (t - 1) * self.frequencies  # [seed, batch, TIME_DIM / 2]
        t = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))  # [seed, batch, 128]
        x = self.first(torch.cat([x, obs, t], dim=-1))
        for block in self.blocks:
            x = block(x, dropout)
        return self.last(mish(x))


class QNetworks(MLP):
    """Q1 and Q2 of every seed."""

    def __init__(self, n: int, obs_dim: int, action_dim: int):
        super().__init__(2 * n, obs_dim + action_dim, *HIDDEN, 1, activation=torch.relu)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], dim=-1).repeat_interleave(2, dim=0)  # [2 * seed, batch, obs + action]
        return super().forward(x).view(-1, 2, x.shape[1])  # [seed, 2, batch]


# ------------------------------------------------------------------------------------------------- diffusion
def alpha_bar(t):
    """ᾱ_t = Π_{s ≤ t} (1 - β_s) of the VP schedule β_s = 1 - exp(-0.1/T - 0.5 · 9.9 (2s - 1)/T²), s = 1..T.
    In closed form, as Σ_{s ≤ t} (2s - 1) = t²; ᾱ_0 = 1. Diffusion-QL's, which IDQL takes over."""
    return math.e ** (-0.1 * t / T - 0.5 * 9.9 * (t / T) ** 2)


def noise_loss(network: Callable, action: Tensor, obs: Tensor) -> Tensor:
    """E[mean over dims of (ε̂(√ᾱ_t a + √(1 - ᾱ_t) ε, t, s) - ε)²], t uniform on 1..T; [seed]. The authors'
    code has the sum over dims, which is the same to Adam."""
    t = torch.floor(T * torch.rand_like(action[..., :1])) + 1  # [seed, batch, 1]
    bar, eps = alpha_bar(t), torch.randn_like(action)
    noisy_action = bar.sqrt() * action + (1 - bar).sqrt() * eps
    return (network(noisy_action, t, obs) - eps).square().mean(dim=(1, 2))


def sample(network: Callable, obs: Tensor, action_dim: int) -> Tensor:
    """a_0 [seed, batch, action_dim] by ancestral sampling: a_T ~ N(0, I), then T steps, no noise in the last.
    A step has the variance β_t, and the box clips its result [code]. Five such steps leave N(0, 0.4²) a
    deviation of 0.34."""
    x = torch.randn(*obs.shape[:2], action_dim, dtype=obs.dtype, device=obs.device)
    for t in range(T, 0, -1):
        bar, before = alpha_bar(t), alpha_bar(t - 1)
        alpha = bar / before  # 1 - β_t
        eps = network(x, torch.full_like(x[..., :1], t), obs)
        x = (x - (1 - alpha) / math.sqrt(1 - bar) * eps) / math.sqrt(alpha)
        if t > 1:
            x = x + math.sqrt(1 - alpha) * torch.randn_like(x)
        x = x.clamp(-1, 1)
    return x


# ----------------------------------------------------------------------------------------- agent and updates
class Agent(nn.Module):
    """The networks of all seeds and their optimisers. Actions lie in [-1, 1]."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args, device: torch.device):
        super().__init__()
        n = args.num_seeds
        self.register_buffer("trained", torch.zeros(()))  # training steps done, for the cosine decay
        self.action_dim = action_dim
        self.q = QNetworks(n, obs_dim, action_dim)
        self.v = MLP(n, obs_dim, *HIDDEN, 1, activation=torch.relu)
        self.policy = NoisePredictor(n, obs_dim, action_dim)
        self.ema_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.to(device)
        adam = lambda params, lr: torch.optim.Adam([{"params": [*params], "initial_lr": lr}],
            lr=torch.tensor(lr, device=device), fused=True, capturable=True)  # fmt: skip
        networks = {"q": self.q, "v": self.v, "policy": self.policy}
        self.optimizers = {name: adam(x.parameters(), args.learning_rate) for name, x in networks.items()}


def minimize(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step on loss [seed], of this optimiser's networks alone. Its sum keeps gradients of seeds apart."""
    params = optimizer.param_groups[0]["params"]
    for param, grad in zip(params, torch.autograd.grad(loss.sum(), params)):
        param.grad = grad
    optimizer.step()


def critic_update(agent: Agent, batch: list[Tensor], args: Args) -> dict[str, Tensor]:
    """One step of implicit Q-learning: V, then the critics with the new V [code]. Losses [seed]; batch: obs,
    action, reward, next_obs, terminal, [seed, batch, dim] or [seed, batch]."""
    obs, action, reward, next_obs, terminal = batch
    with torch.no_grad():
        target_q = agent.target_q(obs, action).amin(dim=1)  # [seed, batch]
    v = agent.v(obs).squeeze(-1)  # [seed, batch]
    u = target_q - v
    value_loss = (torch.where(u < 0, 1 - args.expectile, args.expectile) * u.square()).mean(dim=1)
    minimize(value_loss, agent.optimizers["v"])
    with torch.no_grad():
        target = reward + args.discount * (1 - terminal) * agent.v(next_obs).squeeze(-1)  # [seed, batch]
    q_loss = (target.unsqueeze(1) - agent.q(obs, action)).square().mean(dim=(1, 2))
    minimize(q_loss, agent.optimizers["q"])
    for old, new in zip(agent.target_q.parameters(), agent.q.parameters()):
        old.lerp_(new.detach(), args.tau)
    return {"value_loss": value_loss, "q_loss": q_loss, "v": v.mean(dim=1)}


def train_update(agent: Agent, batch: list[Tensor], args: Args) -> dict[str, Tensor]:
    """One training step: critics, then two steps of the behaviour model, as a comment in the authors' code
    has it; their second step is on an empty half, by a slip. Losses [seed]."""
    losses = critic_update(agent, [x[:, :CRITIC_BATCH] for x in batch], args)
    bc_losses = []
    for obs, action in zip(*(x.chunk(2, dim=1) for x in batch[:2])):  # [seed, batch / 2, dim]
        bc_loss = noise_loss(lambda *inputs: agent.policy(*inputs, dropout=True), action, obs)
        minimize(bc_loss, agent.optimizers["policy"])
        for old, new in zip(agent.ema_policy.parameters(), agent.policy.parameters()):
            old.lerp_(new.detach(), EMA_SHARE)
        bc_losses.append(bc_loss)
    agent.trained.add_(1)
    if args.lr_schedule == "cosine":
        group = agent.optimizers["policy"].param_groups[0]
        decay = (1 + torch.cos(agent.trained * (math.pi / args.train_steps))) / 2
        group["lr"].copy_(group["initial_lr"] * decay)
    return losses | {"bc_loss": sum(bc_losses) / len(bc_losses)}


PHASES = {"train": train_update}  # each --{its name}-steps long
STARTS = {}  # by phase: what is done to the agent before its first step


@torch.no_grad()
def act(agent: Agent, obs: Tensor, args: Args) -> Tensor:
    """Actions [seed, state, action_dim] for obs [seed, state, obs_dim]: one of action [seed, state,
    candidate, action_dim] as --choice says, by the target critic."""
    shape = *obs.shape[:2], max(args.eval_candidates, 1)
    states = obs.repeat_interleave(shape[2], dim=1)  # [seed, state * candidate, obs_dim]
    action = sample(agent.ema_policy, states, agent.action_dim)
    q = agent.target_q(states, action).amin(dim=1).view(shape)
    if args.choice == "expectile":
        weights = torch.where(q < agent.v(obs), 1 - args.expectile, args.expectile)
        choice = torch.distributions.Categorical(weights).sample()  # [seed, state]
    else:
        choice = q.argmax(dim=2)
    return action.view(*shape, -1).take_along_dim(choice[..., None, None], dim=2).squeeze(2)


# ------------------------------------------------------------------------- settings of the paper, per task
TASK_FIELDS = ("batch_size", "train_steps", "eval_every", "eval_episodes")
LOCOMOTION = (2048, 1_500_000, 50_000, 10)  # [code]; evaluation: [ours], dtql_gaussian.py's
OTHER_TASK = (2048, 1_500_000, 50_000, 100)  # AntMaze; [ours] for Kitchen and Adroit
LOCAL_TASK = (64, 4_000, 4_000, 50)  # [ours]: half of dtql_gaussian.py's steps, for its time


def settings_of(env_id: str) -> dict:
    """What the flags that were not given become."""
    gym = any(x in env_id for x in ("halfcheetah", "hopper", "walker2d"))
    row = LOCAL_TASK if env_id.startswith("local/") else LOCOMOTION if gym else OTHER_TASK
    return dict(zip(TASK_FIELDS, row)) | {"expectile": 0.9 if "antmaze" in env_id else 0.7}


def adjust_reward(env_id: str, reward: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """AntMaze r - 1; locomotion scaled so that episodes differ by up to 1000 [code]; else as stored.

    returns: of each episode of the dataset. The authors' code, which works on transitions, takes the returns
    without the last reward of an episode that timed out, and of the unfinished end of the data too."""
    if "antmaze" in env_id:
        return reward - 1
    robot, spread = any(x in env_id for x in ("halfcheetah", "hopper", "walker2d")), np.ptp(returns)
    return reward * np.float32(1000 / spread) if robot and spread else reward


# ----------------------------------------------------------------------------------------- flags and errors
SCRIPT = Path(__file__).resolve()
ROOT = SCRIPT.parents[2]  # of the project: datasets/ and benchmark/ are looked for here
sys.path.append(str(ROOT))  # where gymnasium looks for benchmark
SHARES = {"discount", "tau", "expectile"}  # from 0 to 1
MAY_BE_ZERO = {"seed", "eval_episodes", "eval_candidates", "pretrain_steps", "critic_steps", "behavior_steps",
               "alpha", "beta", "entropy_coef", *SHARES}  # fmt: skip
LAST_STEPS = f"{[*PHASES][-1]}_steps"  # the flag that may grow when a run is resumed
OF_A_RESUMED_RUN = {"resume", "track", "capture_video"}  # flags that may differ
OF_AN_EVALUATION = {"eval_only", "device", "compile", "tf32", "eval_episodes", "eval_candidates"}


class InputError(Exception):
    """What is wrong with flags, files, network or machine, and what to do: main() makes one line of it."""


def check(good: bool, message: str) -> None:
    if not good:
        raise InputError(message)


@contextlib.contextmanager
def explain(message: str, kind: type = Exception) -> Iterator[None]:
    """What other libraries raise of that kind in here is bad input: message says of what, their text why."""
    try:
        yield
    except kind as error:
        raise error if isinstance(error, InputError) else InputError(f"{message} ({error})") from error


def parse_args(argv: list[str] | None = None) -> Args:
    """The flags; with --resume or --eval-only, the run's own where none is given."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    if run := args.resume or args.eval_only:
        with explain(f"{run} is not the directory of a run"):
            config = json.loads(Path(os.path.expanduser(run), "config.json").read_text())
            check(config["script"] == SCRIPT.name, f"{run} is a run of {config['script']}")
            args = tyro.cli(Args, args=argv, default=Args(**{name: config[name] for name in vars(args)}))
        longer = {LAST_STEPS} if getattr(args, LAST_STEPS) > config[LAST_STEPS] else set()
        differ = {name for name, x in vars(args).items() if x != config[name]}
        differ -= OF_A_RESUMED_RUN | longer if args.resume else OF_AN_EVALUATION
        names = ", ".join(sorted(differ))
        check(not differ, f"{run} has another {names}; leave that out ({LAST_STEPS} can only become more)")
    return args


def resolve(args: Args) -> torch.device:
    """Fills in the task's settings, checks every number, and returns the device."""
    for name, value in vars(args).items():
        setattr(args, name, value := settings_of(args.env_id).get(name) if value is None else value)
        if type(value) in (int, float):
            good = 0 < value <= (1 if name in SHARES else sys.maxsize)
            check(good or value == 0 and name in MAY_BE_ZERO, f"--{name.replace('_', '-')} cannot be {value}")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    with explain(f"--device {args.device}, or --compile, does not work here; try --device cpu --no-compile"):
        (torch.compile(torch.sin) if args.compile else torch.sin)(torch.zeros(1, device=args.device))
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    return torch.device(args.device)


# -------------------------------------------------------------------------------------------------- dataset
D4RL_MIRRORS = ("http://rail.eecs.berkeley.edu/datasets/offline_rl "
                "https://huggingface.co/datasets/imone/D4RL/resolve/main")  # fmt: skip
D4RL_RETURNS = {  # that score 0 and 100
    "halfcheetah": (-280.178953, 12135.0), "hopper": (-20.272305, 3234.3), "walker2d": (1.629008, 4592.3),
    "antmaze": (0.0, 1.0), "kitchen": (0.0, 4.0), "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867), "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884)}  # fmt: skip
ROBOTS = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}
D4RL_FILES = {  # path below a mirror
    "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-partial-v0": "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5"}  # fmt: skip
for hand, kind in itertools.product(("pen", "hammer", "door", "relocate"), ("human", "cloned", "expert")):
    D4RL_FILES[f"{hand}-{kind}-v1"] = f"hand_dapg_v1/{hand}-{kind}-v1.hdf5"
for kind in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"):
    D4RL_FILES |= {f"{x}-{kind}-v2": f"gym_mujoco_v2/{x}_{kind.replace('-', '_')}-v2.hdf5" for x in ROBOTS}
for kind in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"):
    maze = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}[kind.partition("-")[0]]
    file = f"Ant_maze_{maze}_noisy_multistart_{kind != 'umaze'}_multigoal_{kind.endswith('diverse')}_sparse"
    D4RL_FILES[f"antmaze-{kind}-v0"] = f"ant_maze_new/{file}.hdf5"
    D4RL_FILES[f"antmaze-{kind}-v2"] = f"ant_maze_v2/{file}_fixed.hdf5"


@np.errstate(all="ignore")  # what is no float32 is refused below
def load_dataset(env_id: str) -> tuple[list[Tensor], dict]:
    """The transitions, and where they are from. obs [N, obs_dim], action [N, action_dim] in [-1, 1], reward
    [N], next_obs [N, obs_dim], terminal [N]: 1 where the episode ended, but not by a time limit."""
    path, low, high, *arrays = (load_d4rl if env_id in D4RL_FILES else load_minari)(env_id)
    obs, action = (np.asarray(x, np.float32) for x in arrays[:2])
    reward, terminal, timeout, end = (np.asarray(x, np.float32).ravel() for x in arrays[2:])
    lengths = {len(x) for x in (obs, action, reward, terminal, timeout, end)}
    good = obs.ndim == action.ndim == 2 and len(lengths) == 1 and end.any() and not timeout[:-1].all()
    check(good, f"{path}: no transitions, no episodes, or arrays of unequal size {[x.shape for x in arrays]}")
    check(np.isfinite(high - low).all(), f"{path}: no finite bounds of actions, {low} to {high}")
    returns = np.diff(np.cumsum(reward, dtype=np.float64)[end != 0], prepend=0)
    rows = np.flatnonzero(timeout[:-1] == 0)  # row i leads to row i + 1, but not at a timeout
    columns = {"observation": obs[rows], "action": (action * 2 - (high + low))[rows] / (high - low),
               "reward": adjust_reward(env_id, reward, returns)[rows], "next observation": obs[rows + 1],
               "terminal": np.abs(np.sign(terminal))[rows]}  # fmt: skip
    for name, x in columns.items():
        limit = 1 + 1e-4 if name == "action" else np.finfo(np.float32).max  # stored actions are rounded
        bad = rows[~(np.abs(x) <= limit).reshape(len(x), -1).all(axis=1)]
        check(not len(bad), f"{path}: the {name} of row {bad[:1]} is NaN, infinite or out of bounds; mend it")
    sha, sums = hashlib.sha256(path.read_bytes()).hexdigest(), ROOT / "benchmark/paper/d4rl_sha256.csv"
    other = sums.exists() and f"{D4RL_FILES.get(env_id)}," in sums.read_text() and sha not in sums.read_text()
    print(f"{path}: {len(rows)} transitions, {len(returns)} episodes, mean return {np.mean(returns):.1f}, "
          f"sha256 {sha}{', not the file that D4RL published' * other}")  # fmt: skip
    source = dict(dataset=str(path), dataset_sha256=sha, action_low=low.tolist(), action_high=high.tolist())
    return [torch.as_tensor(np.asarray(x, np.float32)) for x in columns.values()], source


def load_d4rl(name: str) -> tuple:
    """Path, bounds of actions, and arrays [row, dim] or [row]: obs, action, reward, terminal, timeout, end
    of an episode. Row i leads to row i + 1 unless it is a timeout, as in D4RL's `qlearning_dataset`.
    From $D4RL_DATASET_DIR; downloaded to it from the first of $D4RL_MIRRORS that has the file whole."""
    folder = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()
    path = folder / Path(D4RL_FILES[name]).name
    mirrors = (os.environ.get("D4RL_MIRRORS") or D4RL_MIRRORS).split()
    for url in (f"{mirror}/{file}" for mirror in mirrors for file in (D4RL_FILES[name], path.name)):
        if not path.exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                socket.setdefaulttimeout(30)  # seconds; a mirror may be dead
                with tempfile.TemporaryDirectory(".part", path.name, folder) as partial:  # others may load it
                    torch.hub.download_url_to_file(url, f"{partial}/file")
                    h5py.File(f"{partial}/file", locking=False).close()  # raises if it is cut
                    os.replace(f"{partial}/file", path)
            except Exception as error:  # of many kinds; the next mirror may do
                print(f"{url}: {error}")
    check(path.exists(), f"no {path}, and no mirror has it; put it there, or use --env-id {Args.env_id}")
    kitchen = name.startswith("kitchen")  # its files have no timeouts
    keys = "observations", "actions", "rewards", "terminals", "terminals" if kitchen else "timeouts"
    with explain(f"{path} is not a whole HDF5 file of {name}"), h5py.File(path, locking=False) as file:
        obs, action, reward, terminal, timeout = (file[key][:] for key in keys)
        count, one = 0, np.ones(action.shape[1])
        for i in range(len(timeout) if kitchen else 0):
            timeout[i] = count == 279  # an episode has 280 steps
            count = 0 if timeout[i] else 1 if terminal[i] else count + 1  # that 1 is an off-by-one of D4RL's
        return path, -one, one, obs, action, reward, terminal, timeout, terminal.ravel() + timeout.ravel()


def open_minari(dataset_id: str) -> minari.MinariDataset:
    """From datasets/ of this project, from $MINARI_DATASETS_PATH, or downloaded to that."""
    here = [str(x.parent.relative_to(ROOT / "datasets")) for x in ROOT.glob("datasets/**/data")]
    similar = ", ".join(difflib.get_close_matches(dataset_id, [*D4RL_FILES, *here], cutoff=0))
    with explain(f"unknown env id {dataset_id!r}, no network, or no {ROOT}/datasets; similar: {similar}"):
        if dataset_id in here:
            return minari.MinariDataset(ROOT / "datasets" / dataset_id / "data")
        return minari.load_dataset(dataset_id, download="/" in dataset_id and dataset_id[:6] != "local/")


def load_minari(dataset_id: str) -> tuple:
    """As load_d4rl; an episode's last observation is a row of its own, with a timeout, and not terminal."""
    dataset, episodes = open_minari(dataset_id), []
    path, space = Path(dataset.storage.data_path) / "main_data.hdf5", dataset.action_space
    with explain(f"cannot read {path}, or it has no episodes; its actions: {space}"):
        for episode in dataset:
            obs = flatten(episode.observations)
            pad = lambda x: np.concatenate([x, np.zeros_like(x[:1])])[: len(obs)]  # a row for each of obs
            arrays = (pad(x) for x in (episode.actions, episode.rewards, episode.terminations))
            episodes.append((obs, *arrays, *2 * [np.arange(len(obs)) == len(obs) - 1]))
        return path, space.low, space.high, *(np.concatenate([x[i] for x in episodes]) for i in range(6))


def flatten(obs) -> np.ndarray:
    """[..., obs_dim]: an observation as it is, or a dict of them by its sorted keys, as Minari sorts them."""
    parts = [flatten(obs[key]) for key in sorted(obs)] if isinstance(obs, dict) else [obs]
    return np.concatenate(parts, axis=-1, dtype=np.float32)


# ------------------------------------------------------------------------------- environment and evaluation
def with_d4rl_masses(env: gym.Env) -> gym.Env:
    """The same MuJoCo environment with D4RL's masses in kg: Hopper 15.265, not 15.820, for one. MuJoCo before
    2.1.1 took a capsule's mass and inertia from a cylinder of its radius r, longer by r."""
    spec, model = mujoco.MjSpec.from_file(env.unwrapped.fullpath), env.unwrapped.model
    for geom in spec.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE:
            geom.type, axis = mujoco.mjtGeom.mjGEOM_CYLINDER, geom.fromto[3:] - geom.fromto[:3]
            geom.fromto += geom.size[0] / 2 * np.concatenate([-axis, axis]) / np.linalg.norm(axis)
            geom.size[1] += geom.size[0] / 2  # half the length, if the line above had no ends to move (NaN)
    cylinders = spec.compile()
    for field in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        getattr(model, field)[:] = getattr(cylinders, field)
    mujoco.mj_setConst(model, mujoco.MjData(model))  # what MuJoCo derives from these
    return env


def load_task(env_id: str) -> SimpleNamespace:
    """What env_id is evaluated in: make_env(mode=None) with actions in [-1, 1], sizes of observation and of
    action, the returns low and high that score 0 and 100, and the metric: only D4RL's is called "score"."""
    robot, options = env_id.partition("-")[0], {"disable_env_checker": True}
    if env_id in D4RL_FILES:  # those of benchmark/ need gymnasium-robotics
        make, options["id"] = gym.make, ROBOTS.get(robot, f"benchmark.envs:{env_id}")
        (low, high), metric, physics = D4RL_RETURNS[robot], "score", "D4RL's, of MuJoCo 2.1.0"
    else:
        dataset, metric, physics = open_minari(env_id), "Minari score", f"MuJoCo {mujoco.__version__}"
        make, options["eval_env"] = dataset.recover_environment, True
        low, high = (dataset.storage.metadata.get(f"ref_{x}_score") for x in ("min", "max"))
        if None in (low, high) or low == high:
            low, high, metric = 0.0, 100.0, "return"
        if "gymnasium_robotics.envs.maze.ant_maze" in str(dataset.env_spec):
            # The data's maze (Minari's own one to evaluate umaze in is mirrored), and an end at the goal.
            options |= {"maze_map": dataset.env_spec.kwargs["maze_map"], "continuing_task": False}
    gym.logger.min_level = gym.logger.ERROR  # -v4 is meant, "out of date" or not
    adapt = with_d4rl_masses if options.get("id") in ROBOTS.values() else lambda env: env
    make_env = lambda mode=None: gym.wrappers.RescaleAction(adapt(make(render_mode=mode, **options)), -1, 1)
    with explain(f"cannot evaluate in the environment of {env_id}; --eval-episodes 0 does without"):
        env = make_env()
        check(env.spec.max_episode_steps, f"{env_id} has no time limit; --eval-episodes 0 does without")
        sizes = *flatten(env.reset()[0]).shape, *env.action_space.shape
        env.close()
    return SimpleNamespace(make_env=make_env, sizes=sizes, low=low, high=high, metric=metric, physics=physics)


def evaluate(agent: Agent, task: SimpleNamespace, args: Args) -> dict[str, list]:
    """Returns, lengths and scores [seed, episode], and their means [seed]. Episode k of a seed starts from
    the same state in every evaluation. Training's random numbers go on as if there were none."""
    device, n, total = agent.trained.device, args.num_seeds, args.eval_episodes
    slots = min(total, 10 if device.type == "cuda" else 1)  # side by side is faster only on a GPU
    envs = [[task.make_env() for _ in range(slots)] for _ in range(n)]
    reset = lambda i, j, k: flatten(envs[i][j].reset(seed=int(10_000 * (args.seed + i) + k))[0])
    episode = np.tile(np.arange(slots), (n, 1))  # [seed, slot], the one that runs there
    obs = np.array([[reset(i, j, j) for j in range(slots)] for i in range(n)])  # [seed, slot, obs_dim]
    returns, lengths = np.zeros((2, n, total))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(args.seed)
        while (episode < total).any():
            actions = act(agent, torch.as_tensor(obs, device=device), args).cpu().numpy()
            for i, j in np.argwhere(episode < total):
                k = episode[i, j]
                next_obs, reward, terminated, truncated, _ = envs[i][j].step(actions[i, j])
                obs[i, j] = flatten(next_obs)
                returns[i, k] += reward
                lengths[i, k] += 1
                if terminated or truncated:
                    episode[i, j] = k = episode[i].max() + 1
                    obs[i, j] = reset(i, j, k) if k < total else 0
    for env in itertools.chain(*envs):
        env.close()
    scores = 100 * (returns - task.low) / (task.high - task.low)
    spread = f" ± {scores.mean(axis=1).std(ddof=1):.1f}" if n > 1 else ""  # over seeds
    score = f"{task.metric} {scores.mean():.1f}{spread} (last, {n} seeds × {total} episodes)"
    tqdm.write(f"{score}; physics: {task.physics}")
    values = {"return": returns, "length": lengths, "normalized_score": scores}
    means = {f"eval/{name}": x.mean(axis=1).tolist() for name, x in values.items()}
    return means | {f"eval/{name}s": x.tolist() for name, x in values.items()}


# ----------------------------------------------------------------------------------------------------- main
LOG_EVERY = 500  # steps between lines of losses, at most, and within which a NaN is noticed
to_json = lambda x, **how: json.dumps(json.loads(json.dumps(x), parse_constant=lambda _: None), **how)


def gradient_steps(agent: Agent, data: list[Tensor], phase: str, totals: dict, args: Args) -> Iterator[None]:
    """A gradient step for each next(), its losses [seed] added to totals on the device. With --compile on
    CUDA three plain steps come first; then one CUDA graph of the whole, from draws to decay, is replayed."""
    update, shape = PHASES[phase], (args.num_seeds, getattr(args, f"{phase}_batch_size", args.batch_size))
    if args.compile:  # with PyTorch's own random numbers, which eager steps draw
        update = torch.compile(update, options={"fallback_random": True})

    def step() -> None:
        rows = torch.randint(len(data[0]), shape, device=data[0].device)  # [seed, batch]
        for name, loss in update(agent, [x[rows] for x in data], args).items():
            totals[name] = totals[name].add_(loss.detach()) if name in totals else loss.detach().clone()

    for i in itertools.count():
        if i == 3 and args.compile and data[0].is_cuda:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()  # recorded, not run
            step = graph.replay
        yield step()


def write(path: Path, content: dict) -> None:
    """A .pt or .json file. Whenever this is interrupted, path holds what it held before or all of content."""
    note = f"cannot write {path}; the one before is kept: make room and use --resume"
    with explain(note), open(f"{path}.part", "wb") as file:
        torch.save(content, file) if path.suffix == ".pt" else file.write(to_json(content, indent=2).encode())
        file.flush()
        os.fsync(file)
        os.replace(f"{path}.part", path)


def fit(agent: Agent, data: list[Tensor], task: SimpleNamespace | None, metrics: TextIO, args: Args) -> dict:
    """All phases, from the last checkpoint on; returns the state at the end."""
    checkpoint, rng = Path(metrics.name).with_name("checkpoint.pt"), torch.cuda if data[0].is_cuda else torch
    state = {"step": 0, "scores": [], "metrics_size": 0, "train_seconds": 0.0, "eval_seconds": 0.0}
    if args.resume and checkpoint.exists():
        with explain(f"cannot load {checkpoint}"):
            saved = torch.load(checkpoint, map_location=data[0].device, weights_only=True)  # runs no code
            agent.load_state_dict(saved["agent"])
            for name, optimizer in agent.optimizers.items():
                optimizer.load_state_dict(saved["optimizers"][name])
            rng.set_rng_state(saved["rng"].cpu())  # refuses that of another kind of device
        state = saved["state"]
    metrics.truncate(min(state["metrics_size"], os.path.getsize(metrics.name)))  # later lines come again
    ends = list(itertools.accumulate(getattr(args, f"{phase}_steps") for phase in PHASES))
    for phase, first, last in zip(PHASES, [0, *ends], ends):
        if state["step"] == first and phase in STARTS:
            STARTS[phase](agent)
        logged, clock, totals = max(state["step"], first), time.perf_counter(), {}
        numbers = tqdm(range(logged + 1, last + 1), phase, disable=None, dynamic_ncols=True)
        for step, _ in zip(numbers, gradient_steps(agent, data, phase, totals, args)):
            saving = step % args.checkpoint_every == 0 or step == ends[-1]
            evaluating = last == ends[-1] and ((step - first) % args.eval_every == 0 or step == last)
            if not (saving or evaluating or step % LOG_EVERY == 0 or step == last):
                continue
            values = {name: (total / (step - logged)).tolist() for name, total in totals.items()}
            if not all(x.isfinite().all() for x in (*totals.values(), *agent.parameters())):
                raise FloatingPointError(f"a loss or weight is not finite at step {step}; by seed: {values}")
            seconds = time.perf_counter() - clock
            state |= {"step": step, "train_seconds": state["train_seconds"] + seconds}
            values["steps_per_second"] = [(step - logged) / seconds] * args.num_seeds
            if task and evaluating:
                values |= evaluate(agent, task, args)
                state["scores"].append(values["eval/normalized_score"])
            for i in range(args.num_seeds):
                line = {name: x[i] for name, x in values.items()}
                metrics.write(to_json({"step": step, "seed": args.seed + i} | line) + "\n")  # null for NaN
                if args.track:
                    wandb.log({f"seed{args.seed + i}/{name}": x for name, x in line.items()}, step)
            state["eval_seconds"] += time.perf_counter() - clock - seconds
            if saving:
                state["metrics_size"] = os.path.getsize(metrics.name)
                optimizers = {name: optimizer.state_dict() for name, optimizer in agent.optimizers.items()}
                saved = {"agent": agent.state_dict(), "optimizers": optimizers, "rng": rng.get_rng_state()}
                write(checkpoint, saved | {"state": state})
            logged, clock = step, time.perf_counter()
            for total in totals.values():
                total.zero_()
    return state


def train(args: Args) -> dict:
    """A whole run, or the evaluation of one; returns what result.json holds."""
    device = resolve(args)
    task = load_task(args.env_id) if args.eval_episodes else None
    if args.eval_only:
        check(task, "--eval-only needs --eval-episodes, how many to evaluate")
        agent, file = Agent(*task.sizes, args, device), Path(args.eval_only, "model.pt").expanduser()
        with explain(f"cannot load the model of {args.eval_only}"):
            agent.load_state_dict(torch.load(file, device, weights_only=True)["agent"])  # runs no code
        return evaluate(agent, task, args)
    data, config = load_dataset(args.env_id)
    sizes = data[0].shape[1], data[1].shape[1]
    check(not task or task.sizes == sizes, f"{args.env_id}: the sizes {sizes} are not its environment's")
    config |= {"script": SCRIPT.name, "obs_dim": sizes[0], "action_dim": sizes[1]}
    config["id"] = f"{int(time.time())}-{os.urandom(4).hex()}"  # two runs may begin in one second
    config["git_commit"] = os.popen(f"git -C '{ROOT}' rev-parse HEAD 2>/dev/null").read().strip() or None
    config["versions"] = {x.__name__: str(x.__version__) for x in (torch, mujoco, gym, minari)}
    name = f"{args.env_id.replace('/', '-')}__{SCRIPT.stem}__{args.seed}"
    run_dir = Path(args.resume or args.run_dir or f"runs/{name}__{config['id']}").expanduser()
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / "metrics.jsonl", "a", buffering=1) as metrics:  # a line at a time
        with contextlib.suppress(OSError), explain(f"another process trains in {run_dir}", BlockingIOError):
            fcntl.flock(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a file system without locks will do
        file, held = run_dir / "config.json", metrics.tell() or "config.json" in os.listdir(run_dir)
        check(args.resume or not held, f"{run_dir} holds a run already; --resume {run_dir} continues it")
        old = json.loads(file.read_text()) if args.resume else config
        check(old["dataset_sha256"] == config["dataset_sha256"], f"{run_dir} was begun with another dataset")
        config = old | vars(args) | {"resume": None}
        if args.track:
            with explain("--track: W&B does not start; run `wandb login`, or set WANDB_MODE=offline"):
                wandb.init(id=config["id"], name=name, dir=run_dir, config=config, resume="allow")
        write(file, config)
        print(f"writing {run_dir}; after an interruption: python {SCRIPT.name} --resume {run_dir}")
        torch.manual_seed(args.seed)
        agent = Agent(*sizes, args, device)
        state = fit(agent, [x.to(device) for x in data], task, metrics, args)
    if args.track:
        wandb.finish()
    write(run_dir / "model.pt", {"agent": agent.state_dict(), "config": config})
    scores = enumerate(zip(*state["scores"]), args.seed)
    seeds = {seed: {"last": x[-1], "best": np.fmax.reduce(x).item()} for seed, x in scores}
    result = config | state | {name: getattr(task, name, None) for name in ("metric", "physics")}
    result |= {"seeds": seeds, "peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20 or None}
    write(run_dir / "result.json", result)
    if args.capture_video and task:
        make, seed = task.make_env, iter(map(str, seeds))  # evaluate() makes one environment for each
        task.make_env = lambda: gym.wrappers.RecordVideo(make("rgb_array"), run_dir, name_prefix=next(seed))
        with explain("no video; set MUJOCO_GL to egl, osmesa or glfw, as the machine has"):
            evaluate(agent, task, dataclasses.replace(args, eval_episodes=1))
    print(f"wrote {run_dir}: {seeds or 'no score (--eval-episodes 0)'}")
    return result


def main() -> None:
    try:
        train(parse_args())
    except (InputError, OSError, FloatingPointError, KeyboardInterrupt) as error:
        text = " ".join(str(error).split())[:1000] or "interrupted; --resume RUN_DIR continues"
        print(f"{SCRIPT.name}: {text}", file=sys.stderr)
        raise SystemExit({FloatingPointError: 3, KeyboardInterrupt: 130}.get(type(error), 2)) from None


if __name__ == "__main__":
    main()
