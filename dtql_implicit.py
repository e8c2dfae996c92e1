# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "numpy", "gymnasium[mujoco]==1.4.0", "mujoco==3.4.0", "minari[hdf5,hf]==0.5.4",
#                 "tyro", "tqdm", "wandb", "moviepy"]
# ///
"""Diffusion Trusted Q-Learning (DTQL) with an implicit one-step policy, in one file.

Chen, Wang, Zhou: Diffusion Policies creating a Trust Region for Offline Reinforcement Learning
https://arxiv.org/abs/2405.19690

    python dtql_implicit.py                                         # embedded dataset, no network
    python dtql_implicit.py --env-id walker2d-medium-v2 --num-seeds 5

A flag left at None takes the paper's value for the task.

Each training step updates three models, in this order, on one batch of a static dataset D (algorithm 1):
  1. critics Q1, Q2, V by implicit Q-learning                                                       (Eq. 6-7)
  2. a diffusion behaviour policy by denoising,  L(φ) = E[λ(σ) |D_φ(a + σε, σ|s) - a|²]               (Eq. 2)
  3. a one-step policy,  α L_TR(θ) - E[min(Q1, Q2)(s, a_θ)]                                         (Eq. 4-5)

The trust region L_TR is loss 2 at the policy's own actions, as a function of θ: low where the behaviour
model is sure of an action. Nothing is ever sampled from the diffusion model. The policy is a network of the
denoiser's shape, from noise to an action in one pass; it starts as a copy of the pretrained denoiser, and has
no density, so no entropy term. The paper gives no D4RL scores for it, and its authors released no D4RL code.
All seeds train together: parameters, batches and noise have a leading seed dimension. [code] marks what the
authors' code does and the paper does not say.
"""

import contextlib
import copy
import difflib
import hashlib
import http.client
import importlib.metadata
import itertools
import json
import logging
import math
import multiprocessing.connection
import os
import pickle
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing
import urllib.request
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Imported where they are used: h5py, gymnasium, minari, tyro, tqdm, wandb. The mathematics needs torch alone.


# ------------------------------------------------------------------------------------------------ arguments
@dataclass
class Args:  # None: the task's setting below, or as the comment says
    env_id: str = "local/hopper/medium-v0"  # D4RL name (walker2d-medium-v2), Minari id, or local Minari id
    seed: int = 1  # the first seed
    num_seeds: int = 1  # seeds seed, seed + 1, ... train together in this process
    device: str = "auto"  # auto (cuda if there is one), cpu, cuda, cuda:1, ...
    compile: bool | None = None  # --compile, --no-compile; with CUDA graphs on a GPU; None: from 20k steps on
    tf32: bool = False  # on a GPU, matrix products of factors rounded to 10 bits: faster
    eval_every: int | None = None  # training steps between evaluations
    eval_episodes: int | None = None  # per evaluation and seed; 0: never evaluate, needs no environment
    eval_candidates: int | None = None  # actions per state, ranked by Q; 1: plain policy; None: 1024 [code]
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
    sigma_data: float = 0.5  # standard deviation of the data that the EDM preconditioning assumes
    sigma_min: float = 0.002  # smallest noise level
    sigma_max: float = 80.0  # largest noise level
    batch_size: int | None = None  # transitions per gradient step and seed
    # the algorithm's own
    pretrain_steps: int | None = None  # gradient steps of critics and behaviour model alone, before training
    train_steps: int | None = None  # gradient steps of critics, behaviour model and policy
    learning_rate: float | None = None  # of behaviour model and policy
    lr_decay: bool | None = None  # cosine decay of all learning rates to 0 over the training steps
    alpha: float | None = None  # α, weight of the trust region against Q (Eq. 5)
    expectile: float | None = None  # τ of the expectile regression of V (Eq. 6)
    sigma_gen: float = 2.5  # standard deviation of the noise that the policy turns into an action [code]
    precondition: bool = False  # act by D_θ(z, σ_gen|s), as SiD does; else by the raw F_θ(z, s, σ_gen)


LOG_EVERY = 500  # steps between lines of losses, and within which a NaN is noticed
CRITIC_LEARNING_RATE = 3e-4  # for every task [code]
LIMITS = {  # smallest and largest value of a flag
    "seed": (0, 2**31), "num_seeds": (1, 1024), "eval_workers": (0, 1024), "batch_size": (1, 2**24),
    "pretrain_steps": (0, 2**40), "train_steps": (1, 2**40), "eval_every": (1, 2**40),
    "eval_episodes": (0, 2**20), "eval_candidates": (1, 2**20), "checkpoint_every": (1, 2**40),
    "discount": (0, 1), "tau": (0, 1), "expectile": (0, 1), "alpha": (0, 1e9),
    "learning_rate": (0, 1e9),
    "sigma_data": (1e-6, 1e6), "sigma_min": (1e-6, 1e6), "sigma_max": (1e-6, 1e6),
    "sigma_gen": (1e-6, 1e6),
}  # fmt: skip


# ------------------------------------------------------------------------- settings of the paper, per task
TASK_FIELDS = ("alpha", "expectile", "learning_rate", "lr_decay", "batch_size",
               "pretrain_steps", "train_steps", "eval_every", "eval_episodes")  # fmt: skip
TASKS = {  # Table 4; 1 epoch = 1000 gradient steps
    "halfcheetah-medium-v2": (1.0, 0.7, 3e-4, False, 256, 50_000, 1_000_000, 50_000, 10),
    "halfcheetah-medium-replay-v2": (5.0, 0.7, 3e-4, False, 256, 50_000, 1_000_000, 50_000, 10),
    "halfcheetah-medium-expert-v2": (50.0, 0.7, 3e-4, False, 256, 50_000, 1_000_000, 50_000, 10),
    "hopper-medium-v2": (5.0, 0.7, 1e-4, True, 256, 50_000, 1_000_000, 50_000, 10),
    "hopper-medium-replay-v2": (5.0, 0.7, 3e-4, False, 256, 50_000, 1_000_000, 50_000, 10),
    "hopper-medium-expert-v2": (20.0, 0.7, 3e-4, False, 256, 50_000, 1_000_000, 50_000, 10),
    "walker2d-medium-v2": (5.0, 0.7, 3e-4, True, 256, 50_000, 1_000_000, 50_000, 10),
    "walker2d-medium-replay-v2": (5.0, 0.7, 3e-4, True, 256, 50_000, 1_000_000, 50_000, 10),
    "walker2d-medium-expert-v2": (5.0, 0.7, 3e-4, True, 256, 50_000, 1_000_000, 50_000, 10),
    "antmaze-umaze-v0": (1.0, 0.9, 3e-4, False, 2048, 50_000, 500_000, 50_000, 100),
    "antmaze-umaze-diverse-v0": (1.0, 0.9, 3e-5, True, 2048, 50_000, 500_000, 50_000, 100),
    "antmaze-medium-play-v0": (1.0, 0.9, 3e-4, False, 2048, 50_000, 400_000, 50_000, 100),
    "antmaze-medium-diverse-v0": (1.0, 0.9, 3e-4, False, 2048, 50_000, 400_000, 50_000, 100),
    "antmaze-large-play-v0": (1.0, 0.9, 3e-4, False, 2048, 50_000, 350_000, 50_000, 100),
    "antmaze-large-diverse-v0": (0.5, 0.9, 3e-4, False, 2048, 50_000, 300_000, 50_000, 100),
    "antmaze-umaze-v2": (1.0, 0.9, 3e-4, False, 2048, 50_000, 500_000, 50_000, 100),
    "antmaze-umaze-diverse-v2": (1.0, 0.9, 3e-5, True, 2048, 50_000, 500_000, 50_000, 100),
    # the authors' code stops at 400, 400, 350 and 300 thousand for the next four [code]
    "antmaze-medium-play-v2": (1.0, 0.9, 3e-4, False, 2048, 50_000, 500_000, 50_000, 100),
    "antmaze-medium-diverse-v2": (1.0, 0.9, 3e-4, False, 2048, 50_000, 500_000, 50_000, 100),
    "antmaze-large-play-v2": (1.0, 0.9, 3e-4, False, 2048, 50_000, 500_000, 50_000, 100),
    "antmaze-large-diverse-v2": (0.5, 0.9, 3e-4, False, 2048, 50_000, 500_000, 50_000, 100),
    "pen-human-v1": (1500.0, 0.9, 3e-5, True, 256, 50_000, 300_000, 50_000, 100),
    "pen-cloned-v1": (1500.0, 0.7, 1e-5, False, 256, 50_000, 200_000, 50_000, 100),
    "kitchen-complete-v0": (200.0, 0.7, 1e-4, True, 256, 50_000, 500_000, 50_000, 100),
    "kitchen-partial-v0": (100.0, 0.7, 1e-4, True, 256, 50_000, 1_000_000, 50_000, 100),
    "kitchen-mixed-v0": (200.0, 0.7, 3e-4, True, 256, 50_000, 500_000, 50_000, 100),
}
LOCAL_TASK = (20.0, 0.7, 1e-4, True, 256, 8_000, 12_000, 3_000, 10)  # ours: see README
OTHER_TASK = (5.0, 0.7, 3e-4, True, 256, 50_000, 1_000_000, 50_000, 10)  # walker2d-medium-v2's


def settings_of(env_id: str) -> dict:
    """What the flags that were not given become."""
    row = TASKS.get(env_id, LOCAL_TASK if env_id.startswith("local/") else OTHER_TASK)
    return dict(zip(TASK_FIELDS, row, strict=True)) | {"eval_candidates": 1024}


def adjust_reward(env_id: str, reward: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """AntMaze r - 1, else as stored [code]. returns: of each episode of the dataset."""
    return reward - 1 if "antmaze" in env_id else reward


# --------------------------------------------------------------------------------------------- flags' values
def fail(message: str, code: int = 2) -> typing.NoReturn:
    """Ends with one line on stderr. Code 1: an evaluation process died; 2: bad input; 3: a loss is not
    finite; 130: interrupted."""
    print(f"{Path(__file__).name}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def choose_device(args: Args) -> torch.device:
    """The device of --device, ready for use: current, and with TF32 as --tf32 says."""
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(auto if args.device == "auto" else args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # AssertionError: "Torch not compiled with CUDA enabled"
        fail(f"--device {args.device} is not available here; use --device cpu")
    if device.index:
        torch.cuda.set_device(device)  # where CUDA graphs are captured
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    return device


def check_limits(args: Args) -> None:
    for name, (low, high) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            fail(f"--{name.replace('_', '-')} is {value}; it must be from {low} to {high}")


def resolve(args: Args) -> torch.device:
    """Fill in the task's settings and check every flag; exits with code 2 on a bad one."""
    settings = settings_of(args.env_id)
    for name, value in settings.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.env_id not in TASKS:
        chosen = ", ".join(f"{name} {getattr(args, name)}" for name in settings)
        print(f"{args.env_id} is not in the paper; settings: {chosen}")
    if args.checkpoint_every is None:
        args.checkpoint_every = args.eval_every
    device = choose_device(args)
    args.device = str(device)
    check_limits(args)
    if args.sigma_min >= args.sigma_max:
        fail(f"--sigma-min {args.sigma_min} is not below --sigma-max {args.sigma_max}")
    if args.resume and not args.run_dir:
        fail("--resume needs --run-dir, the directory of the run to continue")
    return device


def choose_compile(args: Args, device: torch.device) -> None:
    if args.compile is None:  # it takes about a minute
        steps = sum(getattr(args, f"{name}_steps") for name in PHASES)
        args.compile = steps >= 20_000 and can_compile(device)
    elif args.compile and not can_compile(device):
        fail("--compile needs a C++ compiler and Python's headers (g++, python3-dev); or use --no-compile")


def can_compile(device: torch.device) -> bool:
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception:  # whatever is missing, be it a compiler, headers or Triton
        return False
    return True


# -------------------------------------------------------------------------------------------------- dataset
D4RL_MIRRORS = ("http://rail.eecs.berkeley.edu/datasets/offline_rl "
                "https://huggingface.co/datasets/imone/D4RL/resolve/main")  # fmt: skip
D4RL_TASKS = {  # evaluation environment, and the returns that score 0 and 100
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "antmaze": ("benchmark.d4rl_envs:{}", 0.0, 1.0),
    "pen": ("benchmark.d4rl_envs:{}", 96.262799, 3076.8331017826877),
    "kitchen": ("benchmark.d4rl_envs:{}", 0.0, 4.0),
}
D4RL_FILES = {  # path below a mirror
    "pen-human-v1": "hand_dapg_v1/pen-human-v1.hdf5",
    "pen-cloned-v1": "hand_dapg_v1/pen-cloned-v1.hdf5",
    "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-partial-v0": "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
}
for robot in ("halfcheetah", "hopper", "walker2d"):
    for kind in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"):
        D4RL_FILES[f"{robot}-{kind}-v2"] = f"gym_mujoco_v2/{robot}_{kind.replace('-', '_')}-v2.hdf5"
for kind, name in {  # multistart, multigoal
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}.items():
    D4RL_FILES[f"antmaze-{kind}-v0"] = f"ant_maze_new/Ant_maze_{name}_sparse.hdf5"
    D4RL_FILES[f"antmaze-{kind}-v2"] = f"ant_maze_v2/Ant_maze_{name}_sparse_fixed.hdf5"


@dataclass
class Dataset:
    transitions: np.ndarray  # [N, sum(dims)] float32
    dims: list[int]  # widths of obs, action, reward, next_obs, terminal, in this order
    max_action: list[float]  # [action_dim]; actions lie in [-max_action, max_action]
    source: str
    sha256: str


def load_dataset(env_id: str) -> Dataset:
    """An id with a slash is Minari's, any other D4RL's; neither ever stands for the other.

    Exits with code 2 if the data is not there, cannot be read, or is not fit for training.
    """
    load = load_minari if "/" in env_id else load_d4rl
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused below
        path, max_action, returns, rows, dims, transitions = load(env_id)
    if not len(rows):
        fail(f"{path} holds no transitions; remove it to fetch it again, or choose another dataset")
    columns = np.split(transitions, np.cumsum(dims)[:-1], axis=1)  # views
    for name, column in zip(("observations", "actions", "rewards", "next observations"), columns):
        bad = np.flatnonzero(~np.isfinite(column).all(axis=1))
        if len(bad):
            fail(f"{path}: NaN or infinite {name} in row {rows[bad[0]]} (one of {len(bad)}); replace it")
    # 1e-4 is for the rounding of stored actions; log π is finite up to 1e-3 (nll_loss)
    outside = np.flatnonzero((np.abs(columns[1]) > max_action + 1e-4).any(axis=1))
    if len(outside):
        fail(f"{path}: the action in row {rows[outside[0]]} (one of {len(outside)}) is outside the bounds "
             f"±{np.asarray(max_action).tolist()}: {columns[1][outside[0]].tolist()}; rescale")  # fmt: skip
    columns[2][:] = adjust_reward(env_id, columns[2], returns)
    file = path / "main_data.hdf5" if path.is_dir() else path
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    episodes = f"{len(returns)} episodes with mean return {np.mean(returns):.1f}"
    print(f"{env_id}: {len(transitions)} transitions, {episodes}, from {file}\nsha256 {digest}")
    return Dataset(transitions, dims, np.broadcast_to(max_action, dims[1]).tolist(), str(file), digest)


def load_d4rl(name: str) -> tuple:
    """(path, max_action, returns, file rows, dims, transitions) as D4RL's `qlearning_dataset`."""
    import h5py

    if name not in D4RL_FILES:
        fail(f"unknown env id {name!r}; closest: {closest(name, [*D4RL_FILES, *local_minari_ids()])}")
    path = find_d4rl_file(D4RL_FILES[name])
    keys = ["observations", "actions", "rewards", "terminals"]
    keys += [] if name.startswith("kitchen") else ["timeouts"]
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in keys if key not in file]
            if missing:
                fail(f"{path} has no key {missing[0]!r}, so it is not {name}; remove it to fetch it again")
            shapes = [file[key].shape for key in keys]
            if [len(x) for x in shapes] != [2, 2, *[1] * len(keys[2:])] or len({n for n, *_ in shapes}) > 1:
                fail(f"{path}: its arrays have shapes {shapes}, not D4RL's; remove it to fetch it again")
            obs, action = file["observations"], file["actions"]  # on disk
            reward, terminal, *timeout = (file[key][:] for key in keys[2:])
            timeout = timeout[0].astype(bool) if timeout else kitchen_timeouts(terminal.astype(bool))
            keep = ~timeout[:-1]  # row i leads to row i + 1, but not at a timeout; the last row leads nowhere
            rows = np.flatnonzero(keep)
            returns = episode_returns(reward, timeout | terminal.astype(bool))
            dims, transitions = allocate(len(rows), obs, action)
            for start in range(0, len(rows), 2**16):  # the dataset is never there twice
                i = rows[start : start + 2**16]
                some_obs, some_action = (x[i[0] : i[-1] + 2] for x in (obs, action))
                j = i - i[0]
                parts = [some_obs[j], some_action[j], reward[i, None], some_obs[j + 1], terminal[i, None]]
                np.concatenate(parts, 1, transitions[start : start + 2**16], casting="unsafe")
    except (OSError, TypeError, ValueError, AttributeError) as error:  # the last three: groups, not arrays
        fail(f"{path} is truncated or not HDF5 of D4RL's ({error}); remove it to fetch it again")
    return path, 1.0, returns, rows, dims, transitions


def allocate(n: int, obs: np.ndarray, action: np.ndarray) -> tuple[list[int], np.ndarray]:
    """dims, and room for n transitions of these observations and actions."""
    dims = [obs.shape[1], action.shape[1], 1, obs.shape[1], 1]
    return dims, np.empty((n, sum(dims)), np.float32)


def episode_returns(reward: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The return of each episode whose last row is there; of all rows together if no episode ends."""
    with np.errstate(invalid="ignore"):  # infinite rewards are refused later
        total = np.cumsum(reward, dtype=np.float64)
        return np.diff(total[np.flatnonzero(end)] if end.any() else total[-1:], prepend=0)


def kitchen_timeouts(terminal: np.ndarray) -> np.ndarray:
    """[N] bool. Kitchen files have no timeouts: each row at which a count of steps reaches 279 is one. The
    count restarts at 0 there, but at 1 after a terminal row (an off-by-one of D4RL's, kept)."""
    timeout = np.zeros(len(terminal), bool)
    start, count = 0, 0
    for end in [*np.flatnonzero(terminal) + 1, len(terminal)]:
        timeout[start + 279 - count : end : 280] = True
        start, count = end, 0 if timeout[end - 1 : end].any() else 1
    return timeout


def find_d4rl_file(path: str) -> Path:
    """The file in $D4RL_DATASET_DIR, or downloaded to it from the first of $D4RL_MIRRORS that has it."""
    import h5py

    target = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser() / Path(path).name
    if target.exists():
        return target
    mirrors = (os.environ.get("D4RL_MIRRORS") or D4RL_MIRRORS).split()
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    for url in (f"{mirror}/{file}" for mirror in mirrors for file in (path, target.name)):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(url, timeout=30) as response, open(partial, "wb") as file:
                print(f"downloading {url}")
                shutil.copyfileobj(response, file)
                expected = response.headers["Content-Length"]
            if expected and partial.stat().st_size != int(expected):
                raise OSError(f"cut after {partial.stat().st_size} of {expected} bytes")
            h5py.File(partial, "r").close()
            os.replace(partial, target)
            return target
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not a URL
            reason = error
        finally:
            partial.unlink(missing_ok=True)
    fail(f"cannot download {mirrors[0]}/{path}, nor from other mirrors ({reason}); put the file at {target}, "
         f"or run offline: python {Path(__file__).name} --env-id local/hopper/medium-v0")  # fmt: skip


def closest(name: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3] or ["none here"])


def minari_roots() -> list[Path]:
    """Where Minari datasets are looked for: Minari's own place, then `datasets/` beside this script."""
    own = os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")
    return [Path(own).expanduser(), Path(__file__).resolve().parent / "datasets"]


def local_minari_ids() -> list[str]:
    found = [(root, file) for root in minari_roots() for file in root.glob("**/data/metadata.json")]
    return sorted({file.parent.parent.relative_to(root).as_posix() for root, file in found})


def open_minari(dataset_id: str):
    """A minari.MinariDataset, from disk or downloaded."""
    import minari

    path = next((r / dataset_id / "data" for r in minari_roots() if (r / dataset_id / "data").exists()), None)
    here = closest(dataset_id, local_minari_ids())
    if not path and dataset_id.startswith("local/"):  # no server has these
        fail(f"unknown env id {dataset_id!r}; closest of those here: {here}; put the project's datasets/ "
             "folder beside the script, or give a D4RL name")  # fmt: skip
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else a line for each of its retries
    try:
        return minari.MinariDataset(path) if path else minari.load_dataset(dataset_id, download=True)
    except Exception as error:  # Minari, h5py and the HTTP client raise many kinds, not all of them OSErrors
        if path:
            fail(f"{path} is truncated or not a Minari dataset ({error}); remove it to fetch it again")
        remote = os.environ.get("MINARI_REMOTE", "hf://farama-minari")
        fail(f"unknown env id or no network: cannot download {remote}/{dataset_id} ({str(error)[:200]}); "
             f"put it at {minari_roots()[0] / dataset_id}, take one of those here ({here}), or run offline: "
             f"python {Path(__file__).name} --env-id local/hopper/medium-v0")  # fmt: skip


def load_minari(dataset_id: str) -> tuple:
    """(path, max_action, returns, rows, dims, transitions); truncation is no terminal state."""
    import gymnasium as gym

    dataset = open_minari(dataset_id)
    path, space = Path(dataset.storage.data_path), dataset.action_space
    if not isinstance(space, gym.spaces.Box) or not np.array_equal(space.low, -space.high):
        fail(f"{dataset_id}: needs continuous actions bounded symmetrically about 0, has {space}")
    returns, end, dims, transitions = [], 0, [0] * 5, np.empty((0, 0), np.float32)
    try:
        for episode in dataset:
            obs = flatten(dataset.observation_space, episode.observations)
            action = flatten(space, episode.actions)
            if not returns:
                dims, transitions = allocate(dataset.total_steps, obs, action)
            start, end = end, end + len(action)
            last = episode.rewards[:, None], obs[1:], episode.terminations[:, None]
            np.concatenate([obs[:-1], action, *last], 1, transitions[start:end], casting="unsafe")
            returns.append(np.sum(episode.rewards))
    except Exception as error:  # whatever h5py raises on a damaged file
        fail(f"{path} is truncated or not a Minari dataset ({error}); remove it to fetch it again")
    return path, space.high.ravel(), np.array(returns), np.arange(end), dims, transitions[:end]


def flatten(space, obs) -> np.ndarray:
    """Observations of a Box, or of a Dict or Tuple of Boxes in the space's own order, as [T, obs_dim]."""
    if hasattr(space, "spaces"):
        keys = space.spaces if isinstance(space.spaces, dict) else range(len(space.spaces))
        return np.concatenate([flatten(space[key], obs[key]) for key in keys], axis=1)
    return np.asarray(obs).reshape(len(obs), -1)


@dataclass
class Task:
    make_env: Callable  # (render_mode=None) -> a Gymnasium environment with flat observations
    reference: tuple[float, float] | None  # returns that score 0 and 100, where they are known
    label: str  # what a score is called: "score" where it is on D4RL's scale, in D4RL's environment

    def score(self, returns: np.ndarray) -> np.ndarray:
        """D4RL's normalised score 100 (return - min) / (max - min); without references, the return itself."""
        low, high = self.reference or (0, 100)
        return 100 * (returns - low) / (high - low)


def load_task(env_id: str) -> Task:
    """What env_id is evaluated in. For a D4RL name this needs no data file."""
    import gymnasium as gym

    gym.logger.min_level = gym.logger.ERROR  # -v4 is meant, "out of date" or not: -v5 is another task
    if "/" in env_id:
        dataset = open_minari(env_id)
        reference = [dataset.storage.metadata.get(key) for key in ("ref_min_score", "ref_max_score")]
        make, options = dataset.recover_environment, {"eval_env": True}
        spec = dataset.env_spec
        if spec is None:
            fail(f"{env_id} does not say what environment it is of; do not evaluate: --eval-episodes 0")
        if "gymnasium_robotics.envs.maze.ant_maze" in str(spec.entry_point):
            # The data's maze (Minari's own one to evaluate umaze in is mirrored), and an end at the goal.
            options |= {"maze_map": spec.kwargs["maze_map"], "continuing_task": False}
        if spec.id in [gym_id for gym_id, *_ in D4RL_TASKS.values()] or "d4rl_envs" in str(spec.entry_point):
            label = "score"
        else:
            label = "Minari score"
            print(f"{env_id}: evaluated in Minari's {spec.id}, scores are not comparable with D4RL's")
        space = dataset.observation_space  # Minari sorts the keys of a Dict; the live environment may not
    else:
        gym_id, *reference = D4RL_TASKS[env_id.partition("-")[0]]
        make, options, label = gym.make, {"id": gym_id.format(env_id)}, "score"

    def make_env(mode=None):
        try:
            env = make(**options, render_mode=mode, disable_env_checker=True)
        except ModuleNotFoundError as error:
            fail(f"cannot evaluate {env_id} ({error}); put the project's benchmark/ folder beside the script "
                 "and pip install gymnasium-robotics, or do not evaluate: --eval-episodes 0")  # fmt: skip
        if isinstance(env.observation_space, gym.spaces.Box):
            return env
        flat = gym.spaces.flatten_space(space)
        return gym.wrappers.TransformObservation(env, lambda obs: gym.spaces.flatten(space, obs), flat)

    return Task(make_env, *((None, "return") if None in reference else (tuple(reference), label)))


def check_task(task: Task, dataset: Dataset) -> None:
    """Exits with code 2 unless the evaluation environment exists and has the dataset's sizes."""
    env = task.make_env()
    sizes = [env.observation_space.shape[0], env.action_space.shape[0]]
    env.close()
    if sizes != dataset.dims[:2]:
        fail(f"{dataset.source}: observation and action sizes {dataset.dims[:2]} are not the environment's "
             f"{sizes}; is it another task's?")  # fmt: skip


# ---------------------------------------------------------------------------------------------------- layers
HIDDEN_DIM = 256


class Linear(nn.Module):
    """nn.Linear, one per generator: [n, batch, in_dim] -> [n, batch, out_dim] in one batched product."""

    def __init__(self, generators: list[torch.Generator], in_dim: int, out_dim: int):
        super().__init__()
        bound = in_dim**-0.5  # PyTorch's default initialisation
        weights = [torch.empty(in_dim, out_dim).uniform_(-bound, bound, generator=g) for g in generators]
        biases = [torch.empty(1, out_dim).uniform_(-bound, bound, generator=g) for g in generators]
        self.weight = nn.Parameter(torch.stack(weights))  # [n, in_dim, out_dim]
        self.bias = nn.Parameter(torch.stack(biases))  # [n, 1, out_dim]

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class LayerNorm(nn.Module):
    """nn.LayerNorm, n of them: [n, batch, dim] -> [n, batch, dim]."""

    def __init__(self, n: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n, 1, dim))
        self.bias = nn.Parameter(torch.zeros(n, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.weight)


class Mish(nn.Module):
    """x tanh(softplus(x)) with a single exponential: x w / (2 - w) for s = sigmoid(x), w = s (2 - s)."""

    def forward(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        w = s * (2 - s)
        return x * w / (2 - w)


def mlp(generators, in_dim: int, out_dim: int, activation: Callable, hidden=3, layer_norm=False):
    """`hidden` layers of HIDDEN_DIM; with layer_norm, each is normalised before its activation."""
    layers: list[nn.Module] = []
    for dim in [in_dim] + [HIDDEN_DIM] * (hidden - 1):
        norm = [LayerNorm(len(generators), HIDDEN_DIM)] if layer_norm else []
        layers += [Linear(generators, dim, HIDDEN_DIM), *norm, activation()]
    return nn.Sequential(*layers, Linear(generators, HIDDEN_DIM, out_dim))


# ------------------------------------------------------------------------------------------ denoiser network
TIME_DIM = 16


class Denoiser(nn.Module):
    """F_φ(c_in a_σ, c_noise, s), the network inside the preconditioned denoiser. Its layout: [code]."""

    def __init__(self, generators, obs_dim: int, action_dim: int):
        super().__init__()
        k = torch.arange(TIME_DIM // 2)
        self.register_buffer("frequencies", torch.exp(-k * math.log(10_000) / (TIME_DIM // 2 - 1)))
        self.time = nn.Sequential(Linear(generators, TIME_DIM, 32), Mish(), Linear(generators, 32, TIME_DIM))
        self.body = nn.Sequential(  # the first layer has no activation [code]
            Linear(generators, action_dim + obs_dim + TIME_DIM, HIDDEN_DIM),
            mlp(generators, HIDDEN_DIM, action_dim, Mish),
        )

    def forward(self, x: Tensor, c_noise: Tensor, obs: Tensor) -> Tensor:
        angle = c_noise * self.frequencies  # [seed, batch, TIME_DIM / 2]
        t = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))  # [seed, batch, TIME_DIM]
        return self.body(torch.cat([x, obs, t], dim=-1))  # [seed, batch, action_dim]


# --------------------------------------------------------------------------------------------- EDM schedule
def sample_sigma(u: Tensor, args: Args) -> Tensor:
    """Training noise levels from u ~ U(0, 1), same shape: log σ is logistic about ln σ_data with scale 0.5,
    truncated to [σ_min, σ_max] (appendix C). Inverted in float64, which is exact in both tails."""
    loc, scale = math.log(args.sigma_data), 0.5
    low, high = (1 / (1 + math.exp((loc - math.log(s)) / scale)) for s in (args.sigma_min, args.sigma_max))
    log_sigma = loc + scale * torch.logit(low + (high - low) * u.double())
    return log_sigma.exp().float().clamp(args.sigma_min, args.sigma_max)


def precondition(sigma: Tensor, args: Args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EDM's c_skip, c_out, c_in and c_noise (appendix C; Karras et al. 2022, Table 1)."""
    v = sigma**2 + args.sigma_data**2
    return args.sigma_data**2 / v, sigma * args.sigma_data / v.sqrt(), v.rsqrt(), sigma.log() / 4


def denoise(denoiser: Callable, noisy_action, sigma, obs, max_action: Tensor, args: Args) -> Tensor:
    """D_φ(a_σ, σ|s): the expected clean action, clamped to the action box, also in training [code].

    noisy_action and result [seed, batch, action_dim], sigma [seed, batch, 1], obs [seed, batch, obs_dim].
    """
    c_skip, c_out, c_in, c_noise = precondition(sigma, args)
    output = c_skip * noisy_action + c_out * denoiser(c_in * noisy_action, c_noise, obs)
    return output.clamp(-max_action, max_action)


def denoising_loss(denoiser: Callable, action, obs, u, eps, max_action, args: Args) -> Tensor:
    """E[mean over dims of ((D_φ(a + σε, σ|s) - a) / c_out)²], which has λ(σ) = 1/c_out²; [seed].

    With actions of the dataset, descended in φ: the behaviour loss L(φ) (Eq. 2). With actions of the policy,
    descended in θ, φ frozen: the trust region L_TR(θ) (Eq. 4). Its gradient reaches θ through a and through
    D's input a + σε; that Jacobian is what tells it from score distillation (Eq. 11).
    """
    sigma = sample_sigma(u, args)  # [seed, batch, 1]
    denoised = denoise(denoiser, action + sigma * eps, sigma, obs, max_action, args)
    c_out = precondition(sigma, args)[1]
    return ((denoised - action) / c_out).square().mean(dim=(1, 2))


# -------------------------------------------------------------------------------------------------- critics
class QNetworks(nn.Module):
    """Q1 and Q2 of every seed. The LayerNorm: [code]."""

    def __init__(self, generators, obs_dim: int, action_dim: int):
        super().__init__()
        both = [g for g in generators for _ in range(2)]
        self.net = mlp(both, obs_dim + action_dim, 1, Mish, layer_norm=True)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], dim=-1).repeat_interleave(2, dim=0)  # [2 * seed, batch, obs + action]
        return self.net(x).view(-1, 2, x.shape[1])  # [seed, 2, batch]


class VNetwork(nn.Module):
    def __init__(self, generators, obs_dim: int):
        super().__init__()
        self.net = mlp(generators, obs_dim, 1, Mish)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).squeeze(-1)  # [seed, batch]


def value_loss(q: Tensor, v: Tensor, expectile: float) -> Tensor:
    """Expectile regression of V to min(Q1, Q2), with no gradient to q [seed, 2, batch] (Eq. 6); [seed]."""
    u = q.detach().amin(dim=1) - v  # [seed, batch]
    return (torch.where(u < 0, 1 - expectile, expectile) * u.square()).mean(dim=1)


def q_loss(q: Tensor, reward: Tensor, terminal: Tensor, next_v: Tensor, discount: float) -> Tensor:
    """(r + γ (1 - terminal) V(s') - Q_i)², summed over Q1 and Q2 (Eq. 7). All but q [seed, batch]; [seed]."""
    target = reward + discount * (1 - terminal) * next_v
    return (target.unsqueeze(1) - q).square().mean(dim=2).sum(dim=1)


# ---------------------------------------------------------------------------------------- policy and losses
class ImplicitPolicy(nn.Module):
    """a_θ = F_θ(z, s, σ_gen) with z ~ N(0, σ_gen² I): the denoiser's structure, the raw number σ_gen as its
    time input, no preconditioning, no clamp in the losses [code]. With --precondition a_θ = D_θ(z, σ_gen|s),
    as the generator of SiD (Zhou et al. 2024)."""

    def __init__(self, generators, obs_dim: int, action_dim: int, max_action: Tensor, args: Args):
        super().__init__()
        self.args = args
        self.register_buffer("max_action", max_action)
        self.net = Denoiser(generators, obs_dim, action_dim)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions from noise ~ N(0, I); noise and result [seed, batch, action_dim]."""
        z = self.args.sigma_gen * noise
        sigma = torch.full_like(z[..., :1], self.args.sigma_gen)  # [seed, batch, 1]
        if self.args.precondition:
            return denoise(self.net, z, sigma, obs, self.max_action, self.args)
        return self.net(z, sigma, obs)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Several actions for each state; noise and result [seed, batch, candidate, action_dim]."""
        action = self(obs.repeat_interleave(noise.shape[2], dim=1), noise.flatten(1, 2))
        return action.view(noise.shape).clamp(-self.max_action, self.max_action)  # what an environment takes


# ---------------------------------------------------------------------------------------------- optimisation
def seeds_of(args: Args) -> range:
    return range(args.seed, args.seed + args.num_seeds)


def derive_seed(seed: int, *purpose: int) -> int:
    """Independent streams of one seed: (0,) weights, (1,) training, (2, i) episode i of an evaluation."""
    return int(np.random.SeedSequence([seed, *purpose]).generate_state(1)[0])


def adam(params, learning_rate: float, kind=torch.optim.Adam) -> torch.optim.Optimizer:
    """Adam or AdamW in one kernel, its learning rate on the device so that a CUDA graph can change it."""
    params = list(params)
    device = params[0].device
    rate = torch.tensor(learning_rate, device=device)
    optimizer = kind(params, rate, fused=True, capturable=device.type == "cuda")
    optimizer.param_groups[0]["initial_lr"] = learning_rate
    return optimizer


def minimize(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step on loss [seed]. Its sum leaves each seed the gradient of its own loss."""
    params = optimizer.param_groups[0]["params"]
    for param, grad in zip(params, torch.autograd.grad(loss.sum(), params)):
        param.grad = grad
    optimizer.step()


def frozen(network: nn.Module) -> Callable:
    """The network as a fixed function: gradients pass through to its inputs, none is spent on its weights."""
    weights = {name: param.detach() for name, param in network.named_parameters()}
    return lambda *inputs: torch.func.functional_call(network, weights, inputs)


@torch.no_grad()
def update_target(target: nn.Module, network: nn.Module, tau: float) -> None:
    """Exponential moving average of the network's weights."""
    for old, new in zip(target.parameters(), network.parameters()):
        old.lerp_(new, tau)


@torch.no_grad()
def decay_learning_rates(optimizers, trained: Tensor, steps: int) -> None:
    """Cosine from the initial learning rate to 0; trained: steps done, of `steps`."""
    decay = (1 + torch.cos(trained * (math.pi / steps))) / 2
    for optimizer in optimizers:
        group = optimizer.param_groups[0]
        group["lr"].copy_(group["initial_lr"] * decay)


@dataclass
class Phase:
    """One of a script's training phases, --{its name}-steps long."""

    update: Callable  # (agent, batch, u, eps) -> losses [seed] by name; does one gradient step of each model
    uniform: int  # how many numbers u ~ U(0, 1) a step takes per transition
    normal: int  # how many eps ~ N(0, I), each of the actions' size
    start: Callable = lambda agent: None  # called once, before the first step
    batch_size: str = "batch_size"  # the flag that holds it


def draw(transitions: Tensor, dims: list[int], generators: list[torch.Generator], args: Args, phase: Phase):
    """Batch, u [uniform, seed, batch, 1] and eps [normal, seed, batch, action_dim] of one step. Each seed
    draws from its own generator, so that it sees the same whatever trains beside it."""
    n, on = getattr(args, phase.batch_size), {"device": transitions.device}
    rows = torch.stack([torch.randint(len(transitions), (n,), generator=g, **on) for g in generators])
    u = torch.stack([torch.rand(phase.uniform, n, 1, generator=g, **on) for g in generators], dim=1)
    eps = [torch.randn(phase.normal, n, dims[1], generator=g, **on) for g in generators]
    return transitions[rows].split(dims, dim=-1), u, torch.stack(eps, dim=1)


def make_step(agent: nn.Module, transitions: Tensor, dims: list[int], generators, phase: Phase, totals: dict):
    """A function of no arguments that does one gradient step and adds its losses to totals, on the device.

    With --compile on CUDA, three eager steps come first, then one CUDA graph of the whole step is captured
    and replayed from there on: draws, losses, backward, Adam, decay; nothing waits for the host.
    """
    update = torch.compile(phase.update) if agent.args.compile else phase.update

    def step() -> None:
        drawn = draw(transitions, dims, generators, agent.args, phase)
        for name, loss in update(agent, *drawn).items():
            totals.setdefault(name, torch.zeros_like(loss)).add_(loss)

    if not (agent.args.compile and transitions.is_cuda):
        return step
    graph, stream, calls = torch.cuda.CUDAGraph(), torch.cuda.Stream(), itertools.count()
    for generator in generators:
        graph.register_generator_state(generator)

    def replayed_step() -> None:
        call = next(calls)
        if call < 3:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
            return
        if call == 3:
            with torch.cuda.graph(graph):
                step()  # recorded, not run
        graph.replay()

    return replayed_step


# --------------------------------------------------------------------------------------------------- update
class Agent(nn.Module):
    """The networks of all seeds and their optimisers."""

    def __init__(self, obs_dim: int, max_action: list[float], args: Args, device: torch.device):
        super().__init__()
        self.args = args
        generators = [torch.Generator().manual_seed(derive_seed(seed, 0)) for seed in seeds_of(args)]
        sizes = (generators, obs_dim, len(max_action))
        self.register_buffer("max_action", torch.tensor(max_action))  # [action_dim]
        self.register_buffer("trained", torch.zeros(()))  # training steps done, for the cosine decay
        self.q = QNetworks(*sizes)
        self.v = VNetwork(generators, obs_dim)
        self.denoiser = Denoiser(*sizes)
        self.policy = ImplicitPolicy(*sizes, self.max_action, args)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)  # for acting only [code]
        self.to(device)
        self.optimizers = {
            "critic": adam([*self.q.parameters(), *self.v.parameters()], CRITIC_LEARNING_RATE),
            "denoiser": adam(self.denoiser.parameters(), args.learning_rate),
            "policy": adam(self.policy.parameters(), args.learning_rate),
        }


def pretrain_update(agent: Agent, batch: tuple[Tensor, ...], u: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """One gradient step of critics and behaviour model: all of a pretraining step. Losses [seed].

    batch: obs, action, reward, next_obs, terminal [seed, batch, dim]; u: uniform noise [.., seed, batch, 1];
    eps: normal noise [.., seed, batch, action_dim].
    """
    args = agent.args
    obs, action, reward, next_obs, terminal = batch
    q, v = agent.q(obs, action), agent.v(obs)  # [seed, 2, batch], [seed, batch]
    with torch.no_grad():
        next_v = agent.v(next_obs)  # [seed, batch]
    loss_v = value_loss(q, v, args.expectile)  # of the current Q [code]
    loss_q = q_loss(q, reward.squeeze(-1), terminal.squeeze(-1), next_v, args.discount)
    minimize(loss_v + loss_q, agent.optimizers["critic"])

    bc_loss = denoising_loss(agent.denoiser, action, obs, u[0], eps[0], agent.max_action, args)  # Eq. 2
    minimize(bc_loss, agent.optimizers["denoiser"])
    losses = {"value_loss": loss_v, "q_loss": loss_q, "v": v.mean(dim=1), "bc_loss": bc_loss}
    return {name: loss.detach() for name, loss in losses.items()}


def train_update(agent: Agent, batch: tuple[Tensor, ...], u: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """One training step (algorithm 1): critics, behaviour model, then the policy on the same batch."""
    args, max_action = agent.args, agent.max_action
    losses = pretrain_update(agent, batch, u, eps)
    obs, *_ = batch
    policy_action = agent.policy(obs, eps[1])  # a_θ [seed, batch, action_dim]
    denoiser = frozen(agent.denoiser)
    trust_region_loss = denoising_loss(denoiser, policy_action, obs, u[1], eps[2], max_action, args)  # Eq. 4
    policy_q = frozen(agent.q)(obs, policy_action).amin(dim=1).mean(dim=1)  # [seed]
    loss = args.alpha * trust_region_loss - policy_q  # Eq. 5
    minimize(loss, agent.optimizers["policy"])

    agent.trained.add_(1)
    update_target(agent.target_q, agent.q, args.tau)
    if args.lr_decay:
        decay_learning_rates(agent.optimizers.values(), agent.trained, args.train_steps)
    losses |= {"trust_region_loss": trust_region_loss, "policy_q": policy_q}
    return {name: loss.detach() for name, loss in losses.items()}


def start_policy(agent: Agent) -> None:
    """The policy starts as a copy of the pretrained denoiser."""
    agent.policy.net.load_state_dict(agent.denoiser.state_dict())


PHASES = {
    "pretrain": Phase(pretrain_update, uniform=1, normal=1),
    "train": Phase(train_update, uniform=2, normal=3, start=start_policy),
}


# ----------------------------------------------------------------------------------------------- evaluation
@dataclass
class Episode:
    index: int
    env: typing.Any
    obs: np.ndarray
    generator: torch.Generator  # of its noise: its own, so that no other episode shifts it
    total: float = 0.0
    length: int = 0


@torch.no_grad()
def act(agent: Agent, running: list[list[Episode]], candidates: int) -> np.ndarray:
    """Actions [seed, episode, action_dim] for each seed's running episodes; shorter lists are padded.

    Draws `candidates` actions from the policy, then one of these by softmax(min(Q1, Q2)) of the target
    critic [code].
    """
    device = agent.max_action.device
    shape = (len(running), max(map(len, running)), candidates)
    obs = np.zeros((*shape[:2], next(len(e.obs) for row in running for e in row)), np.float32)
    noise = torch.zeros(*shape, len(agent.max_action), device=device)  # [seed, episode, candidate, action]
    u = torch.full(shape, 0.5, device=device)  # [seed, episode, candidate]
    for i, row in enumerate(running):
        for j, episode in enumerate(row):
            obs[i, j] = episode.obs
            noise[i, j].normal_(generator=episode.generator)
            u[i, j].uniform_(generator=episode.generator)
    obs = torch.as_tensor(obs, device=device)  # [seed, episode, obs_dim]
    # On a CPU one episode at a time: its candidates fill the caches, and no other episode touches its result.
    block = 1 if device.type == "cpu" else shape[1]
    blocks = zip(*(x.split(block, dim=1) for x in (obs, noise, u)))
    return torch.cat([choose_action(agent, *xs) for xs in blocks], dim=1).cpu().numpy()


def choose_action(agent: Agent, obs: Tensor, noise: Tensor, u: Tensor) -> Tensor:
    """obs [seed, episode, obs_dim], noise [..., candidate, action_dim], u [..., candidate]; as act says."""
    action = agent.policy.sample(obs, noise)  # [seed, episode, candidate, action_dim]
    candidates = u.shape[2]
    if candidates == 1:
        return action[:, :, 0]
    q = agent.target_q(obs.repeat_interleave(candidates, dim=1), action.flatten(1, 2)).amin(dim=1)
    choice = (q.view(u.shape) - torch.log(-torch.log(u))).argmax(dim=2)  # softmax(q), by the Gumbel-max trick
    return action.take_along_dim(choice[:, :, None, None], dim=2)[:, :, 0]  # [seed, episode, action_dim]


def evaluate(agent: Agent, make_env: Callable, episodes: Iterable[int], num_envs=10, stop=lambda: False):
    """Returns and lengths of these episodes, [seed, episode] each; None if stop() turned true. Episode i of a
    seed starts and draws as (seed, i) alone says, in any number of environments, and counts once."""
    seeds, episodes = seeds_of(agent.args), list(episodes)
    idle = [[make_env() for _ in episodes[:num_envs]] for _ in seeds]
    envs = list(itertools.chain(*idle))
    waiting, running = [list(reversed(episodes)) for _ in seeds], [[] for _ in seeds]
    results = [{} for _ in seeds]
    while not (stopped := stop()):
        for i, seed in enumerate(seeds):
            while idle[i] and waiting[i]:
                env, index = idle[i].pop(), waiting[i].pop()
                episode_seed = derive_seed(seed, 2, index)
                generator = torch.Generator(agent.max_action.device).manual_seed(episode_seed)
                running[i].append(Episode(index, env, env.reset(seed=episode_seed)[0], generator))
        if not any(running):
            break
        actions = act(agent, running, agent.args.eval_candidates)
        for i, row in enumerate(running):
            running[i] = []
            for episode, action in zip(row, actions[i]):
                episode.obs, reward, terminated, truncated, _ = episode.env.step(action)
                episode.total += float(reward)
                episode.length += 1
                if terminated or truncated:
                    results[i][episode.index] = episode.total, episode.length
                    idle[i].append(episode.env)
                else:
                    running[i].append(episode)
    for env in envs:
        env.close()
    if stopped:
        return None
    return tuple(np.array([[row[index][k] for index in episodes] for row in results]) for k in range(2))


def evaluate_saved(path: Path, args: Args, task: Task, share: int, shares: int, stop: Callable):
    """evaluate() of every shares-th episode of the agent that save_model wrote."""
    device = torch.device(args.device)
    agent = load_agent(load_model(path, device), args, device)
    num_envs = 1 if device.type == "cpu" else 10  # several at a time save launches, and nothing on a CPU
    return evaluate(agent, task.make_env, range(share, args.eval_episodes, shares), num_envs, stop)


def serve(connection, args: Args, share: int, shares: int) -> None:
    """A worker process: evaluates its share of the episodes for each path that arrives, until the other end
    is closed, which also stops an evaluation."""
    torch.set_num_threads(1)
    choose_device(args)
    task = load_task(args.env_id)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(evaluate_saved(connection.recv(), args, task, share, shares, connection.poll))


class Evaluator:
    """Evaluates saved agents: in place, or in processes of its own, beside training if there are any and
    either they were asked for or training is on a GPU. The returns are the same; on a GPU up to rounding."""

    def __init__(self, args: Args, task: Task):
        self.args, self.task, self.workers, self.path = args, task, [], None
        on_gpu, threads = args.device.startswith("cuda"), torch.get_num_threads()
        count = args.eval_workers
        if count is None:  # as OMP_NUM_THREADS grants; on a GPU each takes some of its memory
            count = min(threads, 8) if on_gpu else threads if threads > 1 else 0
        count = min(count, args.eval_episodes)
        self.beside = count > 0 and (on_gpu or args.eval_workers is not None)
        context = multiprocessing.get_context("spawn")  # a fork would share the state of CUDA and of threads
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit: Ctrl-C is not for them
        for share in range(count):
            mine, other = context.Pipe()
            context.Process(target=serve, args=(other, args, share, count), daemon=True).start()
            other.close()
            self.workers.append(mine)
        signal.signal(signal.SIGINT, handler)

    def start(self, path: Path) -> None:
        self.path = path
        with self.alive():
            for connection in self.workers:
                connection.send(path)

    def ready(self) -> bool:
        return all(connection.poll() for connection in self.workers)

    def finish(self, stop=lambda: False):
        """What evaluate() returns of all episodes; waits for it."""
        if not self.workers:
            return evaluate_saved(self.path, self.args, self.task, 0, 1, stop)
        returns = np.zeros((self.args.num_seeds, self.args.eval_episodes))
        lengths, waiting = np.zeros_like(returns, int), list(self.workers)
        while waiting:
            if stop():
                return None
            with self.alive():
                for connection in multiprocessing.connection.wait(waiting, timeout=0.1):
                    share = slice(self.workers.index(connection), None, len(self.workers))
                    returns[:, share], lengths[:, share] = connection.recv()
                    waiting.remove(connection)
        return returns, lengths

    @contextlib.contextmanager
    def alive(self):
        try:
            yield
        except (EOFError, OSError):
            fail("an evaluation process died, as it says above or for lack of memory; resume with a smaller "
                 "--eval-workers", code=1)  # fmt: skip


def record_video(agent: Agent, task: Task, run_dir: Path) -> None:
    """One episode per seed as {run_dir}/seed{seed}-episode-0.mp4."""
    import gymnasium as gym

    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default needs a screen
    try:
        seeds = iter(seeds_of(agent.args))  # evaluate() makes one environment for each, in this order
        evaluate(agent, lambda: gym.wrappers.RecordVideo(
            task.make_env("rgb_array"), str(run_dir), name_prefix=f"seed{next(seeds)}"), [0])  # fmt: skip
    except Exception as error:  # OpenGL and ffmpeg fail in many ways; the run itself is complete
        fail(f"no video ({str(error)[:200]}); set MUJOCO_GL to egl, osmesa or glfw, as the machine has")


# ----------------------------------------------------------------------------------------------- checkpoint
@contextlib.contextmanager
def writing(path: Path):
    """A temporary file that takes path's place once whole and on disk; exits with code 2 if it cannot."""
    partial = path.with_name(path.name + ".part")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.save on a full disk
        with contextlib.suppress(OSError):
            partial.unlink()
        fail(f"cannot write {path} ({str(error)[:200]}); the one before is kept; make room and use --resume")


def write_json(path: Path, content: dict) -> None:
    with writing(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def save_model(path: Path, agent: Agent, config: dict, **training_state) -> None:
    """All networks with what is needed to build them again; a checkpoint also holds the state of training."""
    with writing(path) as file:
        torch.save({"agent": agent.state_dict(), "config": config, "max_action": agent.max_action.tolist(),
                    **training_state}, file)  # fmt: skip


def load_model(path: Path, device: torch.device) -> dict:
    """What save_model wrote, without running any code in it; exits with code 2 if it is not this script's."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that are not torch's
            saved = torch.load(path, map_location=device, weights_only=True)
        if saved["config"]["script"] != Path(__file__).name:
            raise ValueError(f"it is of {saved['config']['script']}")
    except pickle.UnpicklingError:  # whose text advises to load it with weights_only=False
        fail(f"cannot load {path} (damaged, or holds code); give a checkpoint.pt or model.pt of this script")
    except Exception as error:  # torch.load raises whatever zipfile, pickle or the file system does
        fail(f"cannot load {path} ({str(error)[:200]}); give a checkpoint.pt or model.pt of this script")
    return saved


def saved_args(config: dict) -> Args:
    """The arguments in a config; flags that were not there yet have their defaults."""
    return Args(**{name: config[name] for name in asdict(Args()).keys() & config.keys()})


def load_agent(saved: dict, args: Args, device: torch.device) -> Agent:
    """The agent in what load_model returned."""
    agent = Agent(saved["config"]["obs_dim"], saved["max_action"], args, device)
    agent.load_state_dict(saved["agent"])
    return agent


# ----------------------------------------------------------------------------------------------------- main
PACKAGES = {"torch", "numpy", "gymnasium", "mujoco", "minari"}  # whose versions config.json keeps
MAY_CHANGE = {"resume", "run_dir", "eval_workers", "capture_video", "track", "wandb_project", "wandb_entity",
              "eval_only"}  # fmt: skip


def open_run(args: Args, dataset: Dataset) -> tuple[Path, dict]:
    """The run directory and the content of its config.json; exits with code 2 if another run is in there."""
    name = f"{args.env_id.replace('/', '-')}__{Path(__file__).stem}__{args.seed}__{int(time.time())}"
    run_dir = Path(args.run_dir or f"runs/{name}")
    git = f"git -C {shlex.quote(str(Path(__file__).resolve().parent))} rev-parse HEAD"
    config = asdict(args) | {
        "script": Path(__file__).name,
        "git_commit": subprocess.run(git, shell=True, capture_output=True, text=True).stdout.strip() or None,
        "versions": {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES},
        "dataset_source": dataset.source, "dataset_sha256": dataset.sha256, "obs_dim": dataset.dims[0],
    }  # fmt: skip
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot make the run directory {run_dir} ({error.strerror}); choose another --run-dir")
    if not args.resume and any((run_dir / name).exists() for name in ("config.json", "checkpoint.pt")):
        fail(f"{run_dir} already holds a run; add --resume to continue it, or choose another --run-dir")
    if (run_dir / "config.json").exists():
        try:
            old = json.loads((run_dir / "config.json").read_text())
        except ValueError:
            fail(f"{run_dir}/config.json is not a run's; choose another --run-dir")
        old = asdict(saved_args(old)) | old
        fixed = ["script", "dataset_sha256", *(name for name in asdict(args) if name not in MAY_CHANGE)]
        differ = [f"{k} ({old.get(k)}, now {config[k]})" for k in fixed if old.get(k) != config[k]]
        if differ:
            fail(f"cannot resume {run_dir}, begun with another configuration: {', '.join(differ)}")
    write_json(run_dir / "config.json", config)
    return run_dir, config


def summarize(label: str, values) -> str:
    """values: [seed, episode]. The spread is over seeds."""
    means = np.mean(values, axis=1)
    spread = f" ± {means.std(ddof=1):.1f}" if len(means) > 1 else ""
    return f"{label} {means.mean():.1f}{spread} (last, {len(means)} seeds × {len(values[0])} episodes)"


def write_result(run_dir: Path, args: Args, state: dict, label: str, device: torch.device) -> None:
    """result.json, the last file of a run, and the lines that end its output."""
    per_seed = {}
    for i, seed in enumerate(seeds_of(args) if state["history"] else ()):
        means = [float(np.mean(values[i])) for values in state["history"]]
        per_seed[seed] = {"last": means[-1], "best": max(means)}
        print(f"seed {seed}: last {means[-1]:.1f}, best {max(means):.1f} of {len(means)} evaluations")
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device) / 2**20
    else:
        name = f"{platform.machine()}, {torch.get_num_threads()} threads"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    write_json(run_dir / "result.json", {
        "script": Path(__file__).name, "env_id": args.env_id, "metric": label, "episodes": args.eval_episodes,
        "seeds": per_seed, "steps": state["step"], "steps_per_second": state["step"] / state["train_seconds"],
        "train_seconds": state["train_seconds"], "eval_seconds": state["eval_seconds"],
        "peak_memory_mib": memory, "device": name,
    })  # fmt: skip
    print(summarize(label, state["history"][-1]) if per_seed else "no score (--eval-episodes 0)")
    print(f"wrote {run_dir}")


def train(args: Args) -> None:
    from tqdm import tqdm

    device, seeds = resolve(args), seeds_of(args)
    dataset = load_dataset(args.env_id)
    task = load_task(args.env_id) if args.eval_episodes else None
    if task:
        check_task(task, dataset)
    label = task.label if task else "score"
    choose_compile(args, device)  # slow: after all that can be wrong with the data
    run_dir, config = open_run(args, dataset)
    transitions = torch.as_tensor(dataset.transitions, device=device)  # [N, sum(dims)]
    agent = Agent(dataset.dims[0], dataset.max_action, args, device)
    generators = [torch.Generator(device).manual_seed(derive_seed(seed, 1)) for seed in seeds]

    # All that changes during a run beside networks, optimisers and generators. totals: of each phase, the sum
    # of each loss [seed] since step `logged`; history: score or return [seed, episode] of each evaluation.
    state = {"step": 0, "logged": 0, "logged_seconds": 0.0, "evaluated": 0, "train_seconds": 0.0,
             "eval_seconds": 0.0, "metrics_bytes": 0, "totals": {}, "history": [],
             "evaluating": None}  # fmt: skip
    if (run_dir / "checkpoint.pt").exists():
        saved = load_model(run_dir / "checkpoint.pt", device)
        agent.load_state_dict(saved["agent"])
        for name, optimizer in agent.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        for generator, generator_state in zip(generators, saved["generators"]):
            generator.set_state(generator_state.cpu())
        state = saved["state"]
        print(f"resuming {run_dir} at step {state['step']}")
    metrics = open(run_dir / "metrics.jsonl", "a")
    metrics.truncate(state["metrics_bytes"])  # lines that a killed run wrote after its last checkpoint
    if args.track:
        import wandb

        wandb.init(project=args.wandb_project, entity=args.wandb_entity, name=run_dir.name, config=config,
                   dir=run_dir, id=run_dir.name[-64:], resume="allow")  # fmt: skip
        wandb.define_metric("*", step_metric="step")  # an evaluation may end after later losses were logged

    def log(step: int, values: dict[str, list]) -> None:
        """A line of metrics.jsonl for each seed; values: [seed, ...] each."""
        try:
            for i, seed in enumerate(seeds):
                line = {"step": step, "seed": seed} | {name: x[i] for name, x in values.items()}
                metrics.write(json.dumps(line) + "\n")
            metrics.flush()
        except OSError as error:
            fail(f"cannot write {metrics.name} ({error.strerror}); make room and use --resume")
        if args.track:
            scalars = {name: x for name, x in values.items() if np.ndim(x) == 1}
            named = {
                f"seed{seed}/{name}": x[i] for name, x in scalars.items() for i, seed in enumerate(seeds)
            }
            wandb.log(named | {"step": step})

    def snapshot(step: int) -> Path:
        """The agent that an evaluation is of. It stays until a checkpoint does not need it any more."""
        return run_dir / f"snapshot-{step}.pt"

    def start_evaluation() -> None:
        clock, state["evaluating"] = time.perf_counter(), state["step"]
        save_model(snapshot(state["step"]), agent, config)
        evaluator.start(snapshot(state["step"]))
        state["eval_seconds"] += time.perf_counter() - clock

    def finish_evaluation() -> None:
        clock = time.perf_counter()
        results = evaluator.finish(stop=lambda: interrupted)
        state["eval_seconds"] += time.perf_counter() - clock
        if results is None:
            return
        step, state["evaluating"] = state["evaluating"], None
        returns, lengths = results
        named = {"return": returns, "length": lengths}
        if task.reference:
            named["normalized_score"] = task.score(returns)
        means = {f"eval/{name}": x.mean(axis=1).tolist() for name, x in named.items()}
        log(step, means | {f"eval/{name}s": x.tolist() for name, x in named.items()})
        state["history"].append(task.score(returns).tolist())
        state["evaluated"] = step
        bar.write(f"step {step}: {summarize(label, state['history'][-1])}")

    def log_losses(totals: dict[str, Tensor]) -> None:
        steps, seconds = state["step"] - state["logged"], state["train_seconds"] - state["logged_seconds"]
        means = {name: (total / steps).tolist() for name, total in totals.items()}
        log(state["step"], means | {"steps_per_second": [round(steps / seconds, 2)] * len(seeds)})
        score = {label: f"{np.mean(state['history'][-1]):.1f}"} if state["history"] else {}
        bar.set_postfix(score | {name: f"{np.mean(x):.3g}" for name, x in means.items()})
        state.update(logged=state["step"], logged_seconds=state["train_seconds"])
        for total in totals.values():
            total.zero_()

    def check_losses(totals: dict[str, Tensor]) -> None:
        """Exits with code 3 on a NaN or an infinity, before it can enter a checkpoint."""
        weights = sum(param.detach().reshape(len(seeds), -1).sum(dim=1) for param in agent.parameters())
        for name, total in (totals | {"weight sum": weights}).items():
            bad = [seed for seed, value in zip(seeds, total.tolist()) if not math.isfinite(value)]
            if bad:
                fail(f"{name} of seed {bad[0]} is not finite at step {state['step']}; the last checkpoint in "
                     f"{run_dir}, if any, is good; try a lower --learning-rate", code=3)  # fmt: skip

    def save_checkpoint() -> None:
        os.fsync(metrics.fileno())
        state["metrics_bytes"] = os.path.getsize(metrics.name)
        save_model(run_dir / "checkpoint.pt", agent, config, state=state,
                   optimizers={name: optimizer.state_dict() for name, optimizer in agent.optimizers.items()},
                   generators=[generator.get_state() for generator in generators])  # fmt: skip
        for path in run_dir.glob("snapshot-*.pt"):
            if state["evaluating"] is None or path != snapshot(state["evaluating"]):
                path.unlink()

    interrupted = False

    def on_interrupt(signum, frame) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends it at once

    signal.signal(signal.SIGINT, on_interrupt)
    phases, end = {}, 0  # first step, end and step function of each
    for name, phase in PHASES.items():
        first, end = end, end + getattr(args, f"{name}_steps")
        totals = state["totals"].setdefault(name, {})
        phases[name] = first, end, make_step(agent, transitions, dataset.dims, generators, phase, totals)
    last_first = first
    evaluator = Evaluator(args, task) if task else None
    if state["evaluating"] is not None:
        evaluator.start(snapshot(state["evaluating"]))
    bar = tqdm(total=end, initial=state["step"], disable=None, dynamic_ncols=True, unit="step")
    checkpointed = state["step"]
    while True:
        step = state["step"]
        trained = step - last_first  # steps of the last phase, the one that trains the policy
        due = task and trained > 0 and (trained % args.eval_every == 0 or step == end)
        due = due and step not in (state["evaluated"], state["evaluating"])
        if state["evaluating"] is not None and (due or evaluator.ready()):
            finish_evaluation()  # which was begun at an earlier step
        if due and not interrupted:
            start_evaluation()
        if step > checkpointed and (step % args.checkpoint_every == 0 or step == end):
            save_checkpoint()
            checkpointed = step
        if state["evaluating"] is not None and (step == end or not evaluator.beside):
            finish_evaluation()
        if interrupted or step == end:
            save_checkpoint()
        if interrupted:
            bar.close()
            command = [a for a in sys.argv if a != "--resume"] + ["--resume"]
            command += [] if args.run_dir else ["--run-dir", str(run_dir)]
            print(f"interrupted at step {step}; to continue: python {shlex.join(command)}", file=sys.stderr)
            raise SystemExit(130)
        if step == end:
            break
        name = next(name for name in phases if step < phases[name][1])
        first, phase_end, run_step = phases[name]
        totals = state["totals"][name]
        bar.set_description(name)
        if step == first:
            PHASES[name].start(agent)
        ahead = [every - step % every for every in (LOG_EVERY, args.checkpoint_every)]
        clock = time.perf_counter()
        for _ in range(min(*ahead, args.eval_every - trained % args.eval_every, phase_end - step)):
            run_step()
            state["step"] += 1
            if interrupted:
                break
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        state["train_seconds"] += time.perf_counter() - clock
        bar.update(state["step"] - step)
        check_losses(totals)
        if state["step"] % LOG_EVERY == 0 or state["step"] == phase_end:
            log_losses(totals)

    bar.close()
    metrics.close()
    save_model(run_dir / "model.pt", agent, config)
    write_result(run_dir, args, state, label, device)
    if args.track:
        wandb.finish()
    if task and args.capture_video:
        record_video(agent, task, run_dir)


def evaluate_only(args: Args) -> None:
    """--eval-only: the score of a saved policy, by default on the episodes that ended its training."""
    device = choose_device(args)
    saved = load_model(Path(args.eval_only), device)
    trained = saved_args(saved["config"])
    trained.device, trained.eval_workers = str(device), args.eval_workers
    trained.tf32 |= args.tf32
    choose_device(trained)
    for name in ("eval_candidates", "eval_episodes"):
        if getattr(args, name) is not None:
            setattr(trained, name, getattr(args, name))
    check_limits(trained)
    if not trained.eval_episodes:
        fail("--eval-episodes is 0, as it was in training; say how many to run")
    agent, task = load_agent(saved, trained, device), load_task(trained.env_id)
    evaluator = Evaluator(trained, task)
    with tempfile.TemporaryDirectory() as folder:  # a copy: a training that goes on replaces its checkpoint
        save_model(Path(folder) / "model.pt", agent, saved["config"])
        evaluator.start(Path(folder) / "model.pt")
        returns, _ = evaluator.finish()
    print(summarize(task.label, task.score(returns)))
    if args.capture_video:
        record_video(agent, task, Path(args.eval_only).parent)


def main() -> None:
    import tyro

    # tyro has no pair of flags with a third state, unset: --compile and --no-compile, besides --compile True
    pairs = [field.name.replace("_", "-") for field in fields(Args) if field.type == bool | None]
    spelling = {f"--{name}": f"--{name}=True" for name in pairs}
    spelling |= {f"--no-{name}": f"--{name}=False" for name in pairs}
    values = ("True", "False", "None")
    given = [a if b in values else spelling.get(a, a) for a, b in zip(sys.argv[1:], [*sys.argv[2:], ""])]
    args = tyro.cli(Args, args=given, description=__doc__)
    try:
        evaluate_only(args) if args.eval_only else train(args)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written since the last checkpoint", code=130)


if __name__ == "__main__":
    main()
