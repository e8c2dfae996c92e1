"""What the tests share: the scripts, loading and running them, small agents, files in D4RL's layout."""

import functools
import importlib.util
import itertools
import multiprocessing.forkserver
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["dtql_gaussian.py", "dtql_implicit.py", "kl_distill.py", "srpo.py"]
OBS_DIM, MAX_ACTION = 5, [1.0, 0.4]
DIMS = [OBS_DIM, len(MAX_ACTION), 1, OBS_DIM, 1]  # obs, action, reward, next_obs, terminal
SETTINGS = {  # of the small agents, as far as a script has the flag
    "alpha": 5.0, "beta": 0.5, "expectile": 0.7, "entropy_coef": 0.5, "learning_rate": 1e-3, "lr_decay": True,
    "batch_size": 16, "behavior_batch_size": 24, "policy_layers": 2, "normalize_q_gradient": False,
    "pretrain_steps": 2, "train_steps": 3, "critic_steps": 2, "behavior_steps": 2, "policy_steps": 3,
    "compile": False,
}  # fmt: skip
CLOSED_PORT = "http://127.0.0.1:9"  # "discard": nothing listens there


@functools.cache
def load_script(name: str):
    """The script as a module; its main() does not run."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pickle and dataclasses look
    spec.loader.exec_module(module)
    return module


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def training_generators(script, *seeds: int) -> list[torch.Generator]:
    return generators(*(script.derive_seed(seed, 1) for seed in seeds))


def make_args(script, **changes):
    known = script.Args.__dataclass_fields__
    return script.Args(**{name: x for name, x in SETTINGS.items() if name in known} | changes)


def make_agent(script, device: str = "cpu", **changes):
    return script.Agent(OBS_DIM, MAX_ACTION, make_args(script, **changes), torch.device(device))


def make_transitions(n: int = 200) -> torch.Tensor:
    """Random rows as the scripts hold them; every fourth one is terminal."""
    (g,) = generators(0)
    obs, action, reward, next_obs, _ = torch.randn(n, sum(DIMS), generator=g).split(DIMS, dim=1)
    terminal = (torch.arange(n) % 4 == 0).float().unsqueeze(1)
    return torch.cat([obs, torch.tensor(MAX_ACTION) * action.tanh(), reward, next_obs, terminal], dim=1)


def doubled(batch, u, eps) -> tuple:
    return [x.double() for x in batch], u.double(), eps.double()


def fast_flags(script: str) -> list[str]:
    """Two tiny steps of each phase and no evaluation."""
    module = load_script(script)
    steps = [flag for phase in module.PHASES for flag in (f"--{phase}-steps", "2")]
    sizes = [name for name in ("batch_size", "behavior_batch_size") if hasattr(module.Args, name)]
    sizes = [flag for name in sizes for flag in (f"--{name.replace('_', '-')}", "8")]
    return ["--device", "cpu", "--eval-episodes", "0", *sizes, *steps]


def train(script: str, *flags) -> dict:
    """What `python script *flags` does, in this process; returns what result.json holds."""
    module = load_script(script)
    return module.train(module.parse_args([*map(str, flags)]))


def script_env(home: Path, **changes: str) -> dict[str, str]:
    """An environment with one thread, no user cache and no network."""
    drop = ("D4RL_DATASET_DIR", "MINARI_DATASETS_PATH", "HF_HOME", "XDG_CACHE_HOME", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if k not in drop and not k.lower().endswith("_proxy")}
    env |= {"OMP_NUM_THREADS": "1", "HOME": str(home), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1",
            "HF_ENDPOINT": CLOSED_PORT, "D4RL_MIRRORS": CLOSED_PORT}  # fmt: skip
    return env | changes


def run_script(script: str, *flags, cwd: Path, env: dict | None = None, timeout: float = 120, **options):
    """`python script *flags` in cwd, which is also its HOME; a CompletedProcess with text captured."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=script_env(cwd, **(env or {})), timeout=timeout, text=True,
                          capture_output=True, **options)  # fmt: skip


@functools.cache
def fork_server():
    """Processes forked from one that has imported the scripts: seconds sooner at work than new ones."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", *(Path(script).stem for script in SCRIPTS)])
    with pytest.MonkeyPatch.context() as patch:  # of the server's environment
        for name, value in script_env(ROOT, PYTHONPATH=str(ROOT)).items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context


def fork_script(script: str, *flags, cwd: Path, env: dict | None = None, limit: int | None = None, at=None):
    """As run_script, in a forked process. limit: bytes that a file may have, as if the disk was full then.
    at: (name of a function, n, signal), which signal the process gets at its n-th call of what function."""
    output = tempfile.mkdtemp()
    args = script, [*map(str, flags)], cwd, script_env(cwd, **(env or {})), output, limit, at
    process = fork_server().Process(target=forked, args=args)
    process.start()
    process.join()
    texts = [Path(output, str(fd)).read_text() for fd in (1, 2)]
    shutil.rmtree(output)
    return subprocess.CompletedProcess([sys.executable, script, *flags], process.exitcode, *texts)


def forked(script: str, flags: list[str], cwd: Path, env: dict, output: str, limit: int | None, at) -> None:
    """The forked process."""
    for fd in (1, 2):
        os.dup2(os.open(f"{output}/{fd}", os.O_WRONLY | os.O_CREAT), fd)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [script, *flags]
    module = importlib.import_module(Path(script).stem)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if at:
        path, n, number = at
        owner, _, name = path.rpartition(".")
        owner, calls = getattr(module, owner) if owner else module, itertools.count(1)
        function = getattr(owner, name)

        def counted(*args, **kwargs):
            if next(calls) == n:
                os.kill(os.getpid(), number)
            return function(*args, **kwargs)

        setattr(owner, name, counted)
    module.main()


def write_d4rl(path: Path, n: int = 64, obs_dim: int = 11, action_dim: int = 3, seed: int = 0, **overrides):
    """A file in D4RL's layout, gym-mujoco's by default, from random numbers; returns its arrays by key.

    overrides: an array, or None to leave the key out. Episodes end by timeout every 10 rows, and by a
    terminal state every 17.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(1, n + 1)
    arrays = {
        "observations": rng.normal(size=(n, obs_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, action_dim)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": rows % 17 == 0,
        "timeouts": rows % 10 == 0,
        "next_observations": rng.normal(size=(n, obs_dim)).astype(np.float32),  # not what any script may use
        "infos/qpos": rng.normal(size=(n, 6)),
        "infos/qvel": rng.normal(size=(n, 6)),
        "infos/action_log_probs": rng.normal(size=n),
        "metadata/algorithm": np.bytes_("SAC"),
        "metadata/iteration": np.int64(3000),
    }
    arrays = {key: value for key, value in (arrays | overrides).items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return arrays
