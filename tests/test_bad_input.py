"""Bad input: exit code 2, one line that says what is wrong and what to do; nothing is left half-written."""

import os
import pickle
import re
import resource
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import CLOSED_PORT, ROOT, SCRIPTS, fast_flags, load_script, run_script, write_d4rl

NAME, FILE = "hopper-medium-v2", ".d4rl/datasets/hopper_medium-v2.hdf5"  # FILE: below HOME, as D4RL has it
pytestmark = pytest.mark.parametrize("script", SCRIPTS)


def assert_refused(result, *words: str, code: int = 2) -> None:
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == code, result.stderr
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    assert lines[0].startswith(Path(result.args[1]).name + ": ")
    for word in words:
        assert word in lines[0], f"no {word!r} in: {lines[0]}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory):
    """finished_runs(script): a folder with a D4RL file and `run`, a finished run on it."""
    homes = {}

    def finished(script: str) -> Path:
        if script not in homes:
            homes[script] = tmp_path_factory.mktemp(Path(script).stem)
            write_d4rl(homes[script] / FILE)
            flags = ("--env-id", NAME, "--run-dir", "run", *fast_flags(script))
            result = run_script(script, *flags, cwd=homes[script])
            assert result.returncode == 0, result.stderr
        return homes[script]

    return finished


@pytest.fixture
def finished(script, finished_runs, tmp_path) -> Path:
    """A copy of it, to work in."""
    shutil.copytree(finished_runs(script), tmp_path, dirs_exist_ok=True)
    return tmp_path


# -------------------------------------------------------------------------------------- names, network, flags
def test_unknown_d4rl_name_shows_the_closest_and_compiles_nothing(script, tmp_path):
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    result = run_script(script, "--env-id", "hoper-medum-v2", cwd=tmp_path, env=env)
    assert_refused(result, "'hoper-medum-v2'", "hopper-medium-v2")
    assert not list(tmp_path.iterdir())


def test_unknown_local_id_shows_the_closest_and_asks_no_server(script, tmp_path):
    env = {"HF_HUB_OFFLINE": "0"}  # a server, if asked, is asked for long and with complaints on stderr
    result = run_script(script, "--env-id", "local/hoper/medium-v0", cwd=tmp_path, env=env)
    assert_refused(result, "'local/hoper/medium-v0'", "local/hopper/medium-v0")
    assert not (tmp_path / "runs").exists()


def test_no_network_and_no_d4rl_file(script, tmp_path):
    result = run_script(script, "--no-compile", "--env-id", NAME, "--run-dir", "run", cwd=tmp_path)
    url = f"{CLOSED_PORT}/gym_mujoco_v2/hopper_medium-v2.hdf5"
    assert_refused(result, url, str(tmp_path / FILE), f"python {script} --env-id local/hopper/medium-v0")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_network_and_no_minari_dataset(script, tmp_path):
    env = {"HF_HUB_OFFLINE": "0"}  # 25 s: what Minari's client spends on retries
    result = run_script(script, "--no-compile", "--env-id", "D4RL/pen/human-v2", cwd=tmp_path, env=env)
    target = tmp_path / ".minari/datasets/D4RL/pen/human-v2"
    assert_refused(result, "D4RL/pen/human-v2", str(target), "--env-id local/hopper/medium-v0")
    assert not target.exists()


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--batch-size", 0),
        ("--train-steps", 0),
        ("--num-seeds", 0),
        ("--eval-every", -1),
        ("--learning-rate", "nan"),
    ],
)
def test_flag_out_of_range(script, flag, value, tmp_path):
    if flag == "--train-steps":
        flag = f"--{list(load_script(script).PHASES)[-1]}-steps"
    result = run_script(script, flag, value, "--run-dir", "run", cwd=tmp_path)
    assert_refused(result, f"{flag} is {value}", "it must be from")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_one(script, tmp_path):
    result = run_script(script, "--device", "cuda", "--run-dir", "run", cwd=tmp_path)
    assert_refused(result, "--device cuda", "not available", "--device cpu")


def test_unknown_flag(script, tmp_path):
    result = run_script(script, "--batchsize", "8", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 2 and "--batchsize" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------- datasets
def at(shape, row: int, value: float, dtype=np.float32) -> np.ndarray:
    array = np.full(shape, 0.5, dtype)
    array[row] = value
    return array


@pytest.mark.parametrize(
    "overrides, words",
    [  # the timeouts of these files, at rows 9, 19, ..., are no transitions: rows are counted in the file
        ({"timeouts": None}, ["no key 'timeouts'", "remove it"]),
        ({"observations": at((64, 11), 25, np.nan)}, ["NaN", "observations", "row 25 "]),
        ({"rewards": at(64, 31, -np.inf)}, ["infinite", "rewards", "row 31 "]),
        ({"rewards": at(64, 31, 1e300, np.float64)}, ["infinite", "rewards"]),  # it trains in float32
        ({"actions": at((64, 3), 12, 1.5)}, ["action", "row 12 ", "outside", "bounds", "1.5"]),
        ({"actions": at((64, 6), 0, 0.5)}, ["[11, 6]", "[11, 3]", "another task"]),
        ({"observations": at((64, 17), 0, 0.5)}, ["[17, 3]", "[11, 3]", "another task"]),
        ({"timeouts": np.zeros(60, bool)}, ["shapes [(64, 11), (64, 3), (64,), (64,), (60,)]", "remove it"]),
        ({"rewards": at((64, 1), 0, 0.5)}, ["(64, 3), (64, 1), (64,), (64,)]", "remove it"]),
    ],
    ids=["key missing", "nan", "infinity", "too large for float32", "action out of bounds", "action size",
         "observation size", "lengths differ", "dimensions differ"],
)  # fmt: skip
def test_bad_values_in_a_d4rl_file(script, overrides, words, tmp_path):
    write_d4rl(tmp_path / FILE, **overrides)
    flags = ("--env-id", NAME, "--run-dir", "run", *fast_flags(script), "--eval-episodes", "1")
    assert_refused(run_script(script, *flags, cwd=tmp_path), str(tmp_path / FILE), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n", [0, 1])
def test_dataset_without_a_transition(script, n, tmp_path):
    write_d4rl(tmp_path / FILE, n=n)
    flags = ("--env-id", NAME, "--run-dir", "run", *fast_flags(script))
    result = run_script(script, *flags, cwd=tmp_path)
    assert_refused(result, str(tmp_path / FILE), "no transitions", "remove it")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["truncated", "text", "minari", "groups"])
def test_file_that_is_not_d4rls(script, kind, tmp_path):
    path = tmp_path / FILE
    write_d4rl(path)
    if kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    if kind == "text":
        path.write_text("<html>404</html>")
    if kind == "minari":
        shutil.copy(ROOT / "datasets/local/hopper/medium-replay-v0/data/main_data.hdf5", path)
    if kind == "groups":  # the keys are there, but hold something else
        with h5py.File(path, "w") as file:
            for key in ("observations", "actions", "rewards", "terminals", "timeouts"):
                file[f"{key}/left"] = np.zeros(64)
    result = run_script(script, "--no-compile", "--env-id", NAME, "--run-dir", "run", cwd=tmp_path)
    words = {"truncated": "truncated", "text": "not HDF5", "minari": "no key 'observations'", "groups": "not"}
    assert_refused(result, str(path), words[kind], "remove it")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["truncated", "empty"])
def test_bad_minari_dataset(script, kind, tmp_path):
    data = tmp_path / ".minari/datasets/mine/hopper-v0/data"
    shutil.copytree(ROOT / "datasets/local/hopper/medium-replay-v0/data", data)
    if kind == "truncated":
        os.truncate(data / "main_data.hdf5", 1_000_000)
    else:
        with h5py.File(data / "main_data.hdf5", "w") as file:
            file.attrs["total_episodes"] = 0
        metadata = re.sub(r'("total_(episodes|steps)"): \d+', r"\1: 0", (data / "metadata.json").read_text())
        (data / "metadata.json").write_text(metadata)
    flags = ("--no-compile", "--env-id", "mine/hopper-v0", "--run-dir", "run")
    result = run_script(script, *flags, cwd=tmp_path)
    problem = {"truncated": "truncated", "empty": "no transitions"}[kind]
    assert_refused(result, str(data), problem, "remove it")
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------- run directories
def test_run_directory_of_another_run(script, finished):
    before = contents(finished / "run")
    flags = ("--env-id", NAME, "--run-dir", "run", *fast_flags(script))
    assert_refused(
        run_script(script, *flags, cwd=finished), "run already holds a run", "--resume", "--run-dir"
    )
    result = run_script(script, *flags, "--resume", "--batch-size", "16", "--tau", "0.01", cwd=finished)
    assert_refused(result, "batch_size (8, now 16)", "tau (0.005, now 0.01)")
    assert "learning_rate" not in result.stderr
    assert contents(finished / "run") == before


def test_checkpoint_of_another_run_is_never_continued_unasked(script, finished):
    (finished / "run/config.json").unlink()
    before = contents(finished / "run")
    flags = ("--env-id", NAME, "--run-dir", "run", *fast_flags(script))
    assert_refused(
        run_script(script, *flags, cwd=finished), "run already holds a run", "--resume", "--run-dir"
    )
    assert contents(finished / "run") == before


def test_resume_without_run_dir(script, tmp_path):
    assert_refused(run_script(script, "--resume", cwd=tmp_path), "--resume needs --run-dir")


def test_run_directory_below_a_file(script, tmp_path):
    write_d4rl(tmp_path / FILE)
    (tmp_path / "file").write_text("mine")
    flags = ("--env-id", NAME, "--run-dir", "file/run", *fast_flags(script))
    assert_refused(run_script(script, *flags, cwd=tmp_path), "file/run", "choose another --run-dir")
    assert (tmp_path / "file").read_text() == "mine"


# -------------------------------------------------------------------------------------------------- disk full
def run_on_full_disk(script, *flags, cwd, limit: int):
    """No file may grow beyond limit bytes; the system reports it much like a full disk."""
    flags = ("--env-id", NAME, "--run-dir", "run", *fast_flags(script), *flags)
    env = {"PYTHONDONTWRITEBYTECODE": "1"}  # or Python would leave cut .pyc files
    limits = (resource.RLIMIT_FSIZE, (limit, limit))
    return run_script(script, *flags, cwd=cwd, env=env, preexec_fn=lambda: resource.setrlimit(*limits))


def test_disk_full_at_a_checkpoint_keeps_the_one_before(script, finished):
    path = finished / "run/checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    end = saved["state"]["step"]
    saved["state"].update(step=end - 1, logged=end - 2)  # as if the run had been cut one step before its end
    torch.save(saved, path)
    for name in ("model.pt", "result.json"):
        (finished / "run" / name).unlink()
    before = path.read_bytes()
    result = run_on_full_disk(script, "--resume", cwd=finished, limit=len(before) // 2)
    assert_refused(result, "cannot write run/checkpoint.pt", "make room", "--resume")
    assert f"at step {end - 1}" in result.stdout
    assert path.read_bytes() == before
    loaded = load_script(script).load_model(path, torch.device("cpu"))
    assert loaded["state"]["step"] == end - 1
    assert sorted(contents(finished / "run")) == ["checkpoint.pt", "config.json", "metrics.jsonl"]


def test_disk_full_from_the_start_or_at_the_metrics(script, tmp_path):
    write_d4rl(tmp_path / FILE)
    assert_refused(run_on_full_disk(script, cwd=tmp_path, limit=100), "run/config.json", "make room")
    assert not list((tmp_path / "run").iterdir())
    result = run_on_full_disk(script, "--num-seeds", "10", cwd=tmp_path, limit=2500)
    assert_refused(result, "run/metrics.jsonl", "make room", "--resume")
    assert sorted(contents(tmp_path / "run")) == ["config.json", "metrics.jsonl"]


# ----------------------------------------------------------------------------------------------- saved models
class TouchesAFile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "text", "another script's", "torch code", "pickle code"]
)
def test_model_that_cannot_be_loaded(script, kind, finished):
    path, touched = finished / "run/model.pt", finished / "touched"
    if kind == "missing":
        path.unlink()
    if kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    if kind == "text":
        path.write_text("weights")
    if kind == "another script's":
        torch.save({"agent": {}, "config": {"script": "another.py"}, "max_action": [1.0]}, path)
    if kind == "torch code":
        torch.save(torch.load(path, weights_only=True) | {"more": TouchesAFile(touched)}, path)
    if kind == "pickle code":
        path.write_bytes(pickle.dumps(TouchesAFile(touched)))
    result = run_script(script, "--eval-only", "run/model.pt", "--eval-episodes", "1", cwd=finished)
    assert not touched.exists()
    assert_refused(result, "cannot load run/model.pt", "give a checkpoint.pt or model.pt")
    if kind == "torch code":  # it was a live one
        torch.load(path, weights_only=False)
        assert touched.exists()


@pytest.mark.parametrize("flags", ["--eval-candidates 0 --eval-episodes 1", "--eval-episodes -1", ""])
def test_eval_only_on_no_candidates_or_no_episodes(script, flags, finished):
    """The last: the model was trained with --eval-episodes 0, so how many to evaluate is not known."""
    result = run_script(script, "--eval-only", "run/model.pt", *flags.split(), cwd=finished)
    assert_refused(result, flags.split()[0] if flags else "--eval-episodes")


# --------------------------------------------------------------------------------------------- training fails
def test_loss_that_becomes_infinite(script, tmp_path, monkeypatch):
    """Seed 2 alone draws an observation of 1e30 first, at step 25: its V's square is beyond float32."""
    module = load_script(script)
    arrays = write_d4rl(tmp_path / FILE, n=2000)
    monkeypatch.setenv("D4RL_DATASET_DIR", str((tmp_path / FILE).parent))
    dataset = module.load_dataset(NAME)
    generators = [torch.Generator().manual_seed(module.derive_seed(seed, 1)) for seed in (1, 2)]
    drawn = []  # [step][seed]: of the observations drawn, the first number
    phase, args = list(module.PHASES.values())[0], module.Args(batch_size=8)
    for _ in range(40):
        batch, *_ = module.draw(torch.tensor(dataset.transitions), dataset.dims, generators, args, phase)
        # a transition's next observation is another's observation
        drawn.append(
            [{*obs[:, 0].tolist(), *next_obs[:, 0].tolist()} for obs, next_obs in zip(batch[0], batch[3])]
        )
    earlier = set().union(*(seen for step in drawn[:24] for seen in step))
    beside = set().union(*(step[0] for step in drawn[24:]))
    value = min(drawn[24][1] - earlier - beside)
    changed = arrays["observations"].copy()
    changed[changed == np.float32(value)] = 1e30
    assert (changed == np.float32(1e30)).sum() == 1
    write_d4rl(tmp_path / FILE, n=2000, observations=changed)
    flags = ["--env-id", NAME, "--run-dir", "run", *fast_flags(script), "--device", "cpu", "--num-seeds", "2"]
    flags += [f"--{list(module.PHASES)[0]}-steps", "2000", "--checkpoint-every", "10"]
    result = run_script(script, *flags, cwd=tmp_path)
    assert_refused(result, "seed 2 ", "not finite", "--learning-rate", code=3)
    assert 25 <= int(re.search(r"at step (\d+)", result.stderr)[1]) < 25 + module.LOG_EVERY
    saved = module.load_model(tmp_path / "run/checkpoint.pt", torch.device("cpu"))
    assert saved["state"]["step"] == 20
    assert all(torch.isfinite(value).all() for value in saved["agent"].values())
    assert not (tmp_path / "run/model.pt").exists() and not (tmp_path / "run/result.json").exists()
