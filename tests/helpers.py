"""What the tests share: the scripts, loading and running them, small agents, files in D4RL's layout."""

import contextlib
import functools
import importlib.util
import itertools
import multiprocessing.forkserver
import os
import resource
import runpy
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["dtql_gaussian.py", "dtql_implicit.py", "kl_distill.py", "srpo.py"]
OBS_DIM, ACTION_DIM = 5, 2
SETTINGS = {  # of the small agents, as far as a script has the flag
    "alpha": 5.0, "beta": 0.5, "expectile": 0.7, "entropy_coef": 0.5, "learning_rate": 1e-3, "tau": 0.1,
    "lr_schedule": "cosine", "batch_size": 16, "behavior_batch_size": 24, "policy_layers": 2,
    "q_gradient": "raw", "pretrain_steps": 2, "train_steps": 3, "critic_steps": 2, "behavior_steps": 2,
    "policy_steps": 3, "device": "cpu",
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


def load_mutant(name: str, old: str, new: str):
    """The script as a module, with one place of its source replaced."""
    source = (ROOT / name).read_text()
    assert source.count(old) == 1, (
        f"{name} has {old!r} {source.count(old)} times: the test needs another text"
    )
    module = types.ModuleType(Path(name).stem)
    module.__file__ = str(ROOT / name)
    exec(compile(source.replace(old, new), name, "exec"), module.__dict__)
    return module


def make_args(script, **changes):
    known = script.Args.__dataclass_fields__
    return script.Args(**{name: x for name, x in SETTINGS.items() if name in known} | changes)


def make_agent(script, args, device: str = "cpu"):
    torch.manual_seed(args.seed)
    return script.Agent(OBS_DIM, ACTION_DIM, args, torch.device(device))


def make_data(n: int = 200) -> list[torch.Tensor]:
    """Random transitions as the scripts hold them: some actions on the bounds, every fourth row terminal."""
    g = torch.Generator().manual_seed(0)
    obs, action, next_obs = (torch.randn(n, dim, generator=g) for dim in (OBS_DIM, ACTION_DIM, OBS_DIM))
    action = (2 * action).clamp(-1, 1)
    return [obs, action, torch.randn(n, generator=g), next_obs, (torch.arange(n) % 4 == 0).float()]


@contextlib.contextmanager
def recorded_draws():
    """What is drawn in here from torch's generator, in its order: rows of the dataset, uniform and normal
    numbers, and what dropout multiplies its input by."""
    draws = {"rows": [], "uniform": [], "normal": [], "kept": []}
    dropout = torch.dropout

    def record(kind: str, draw):
        def recording(*args, **options):
            draws[kind].append(draw(*args, **options))
            return draws[kind][-1]

        return recording

    def recording_dropout(x, p, training):
        return x * record("kept", dropout)(torch.ones_like(x), p, True) if training else x

    with pytest.MonkeyPatch.context() as patch:
        for kind, names in {"rows": ["randint"], "uniform": ["rand", "rand_like"],
                            "normal": ["randn", "randn_like"]}.items():  # fmt: skip
            for name in names:
                patch.setattr(torch, name, record(kind, getattr(torch, name)))
        normal = torch.distributions.normal  # whose rsample() draws by:
        patch.setattr(normal, "_standard_normal", record("normal", normal._standard_normal))
        patch.setattr(torch, "dropout", recording_dropout)
        yield draws


class FakeEnv:
    """Episodes of 1 to 30 steps, by their seed; the longer, the higher a step's reward. log: the seeds."""

    def __init__(self, log: list):
        self.log, self.closed = log, False

    def observe(self):
        return self.rng.normal(size=OBS_DIM) + self.memory, {}

    def reset(self, seed: int):
        self.log.append(seed)
        self.rng, self.memory = np.random.default_rng(seed), 0.0
        self.length = self.left = int(self.rng.integers(1, 31))
        return self.observe()

    def step(self, action):
        assert self.left > 0 and action.shape == (ACTION_DIM,)
        self.left -= 1
        self.memory = 0.5 * self.memory + float(action.sum())
        done = self.left == 0
        ended = (done, False) if self.length % 2 else (False, done)  # terminated, truncated
        return self.observe()[0], self.length + self.memory, *ended, {}

    def close(self):
        self.closed = True


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


def fork(target: Callable, *args, cwd: Path, env: dict | None = None) -> subprocess.CompletedProcess:
    """target(*args) in a forked process, as run_script runs a script."""
    output = tempfile.mkdtemp()
    args = target, args, cwd, script_env(cwd, **(env or {})), output
    process = fork_server().Process(target=forked, args=args)
    process.start()
    process.join()
    texts = [Path(output, str(fd)).read_text() for fd in (1, 2)]
    shutil.rmtree(output)
    return subprocess.CompletedProcess([sys.executable, *args[1]], process.exitcode, *texts)


def forked(target: Callable, args: tuple, cwd: Path, env: dict, output: str) -> None:
    """The forked process."""
    for fd in (1, 2):
        os.dup2(os.open(f"{output}/{fd}", os.O_WRONLY | os.O_CREAT), fd)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    target(*args)


def fork_script(script: str, *flags, limit: int | None = None, at=None, constants=None, **options):
    """As run_script, in a forked process. limit: bytes that a file may have, as if the disk was full then.
    at: (name of a function, n, signal), which signal the process gets at its n-th call of what function.
    constants: other values of the script's globals."""
    return fork(main_of, script, [*map(str, flags)], limit, at, constants or {}, **options)


def main_of(script: str, flags: list[str], limit: int | None, at: tuple | None, constants: dict) -> None:
    sys.argv = [script, *flags]
    module = importlib.import_module(Path(script).stem)
    vars(module).update(constants)
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


def run_program(*words: str) -> None:
    """`python *words`, -m or a file and its arguments, in this process."""
    sys.argv = [*words]
    if words[0] == "-m":
        sys.argv = [*words[1:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


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
