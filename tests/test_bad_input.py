"""Bad input: exit code 2, one line that says what is wrong and what to do; nothing is lost."""

import json
import os
import pickle
import re
import shutil
import signal
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    SCRIPTS,
    fast_flags,
    fork_script,
    load_script,
    run_script,
    train,
    write_d4rl,
)

NAME, FILE = "hopper-medium-v2", ".d4rl/datasets/hopper_medium-v2.hdf5"  # FILE: below HOME, as D4RL has it
SCRIPT = SCRIPTS[0]  # for what is the same code in all four
all_scripts = pytest.mark.parametrize("script", SCRIPTS)


def assert_refused(result, *words: str, code: int = 2) -> None:
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == code, result.stderr
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    assert lines[0].startswith(Path(result.args[1]).name + ": ")
    for word in words:
        assert word in lines[0], f"no {word!r} in: {lines[0]}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(home):
    """refused(words, *flags, script=SCRIPT): these flags are bad input, told in one line with these words."""

    def refused(words: str | list[str], *flags, script: str = SCRIPT) -> None:
        module, before = load_script(script), contents(home)
        with pytest.raises(
            (module.InputError, OSError)
        ) as error:  # of which main() makes the line and the code
            train(script, *flags)
        for word in [words] if isinstance(words, str) else words:
            assert word in str(error.value), f"no {word!r} in: {error.value}"
        after = contents(home)
        assert {name: after.get(name) for name in before} == before
        assert not {
            name for name in {*after} - {*before} if not name.endswith("metrics.jsonl") or after[name]
        }

    return refused


@pytest.fixture
def small(home) -> list[str]:
    """Flags of a short run on a D4RL file."""
    write_d4rl(home / FILE)
    return ["--env-id", NAME, "--run-dir", "run", *fast_flags(SCRIPT)]


@pytest.fixture(scope="module")
def finished_home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("finished")
    write_d4rl(home / FILE)
    flags = "--env-id", NAME, "--run-dir", "run", *fast_flags(SCRIPT)
    assert fork_script(SCRIPT, *flags, cwd=home).returncode == 0
    return home


@pytest.fixture
def finished(finished_home, home) -> Path:
    """The directory of a finished run, in a home with its D4RL file."""
    shutil.copytree(finished_home, home, dirs_exist_ok=True)
    return home / "run"


# ----------------------------------------------------------------------------------- processes, one of a kind
def test_a_process_ends_with_one_line_and_code_2(tmp_path):
    """NaN in a file."""
    write_d4rl(tmp_path / FILE, observations=at((64, 11), 25, np.nan))
    flags = "--env-id", NAME, "--run-dir", "run", *fast_flags(SCRIPT)
    result = run_script(SCRIPT, *flags, cwd=tmp_path)
    assert_refused(result, str(tmp_path / FILE), "observation of row", "25", "NaN")
    assert not (tmp_path / "run").exists()


def test_no_script_checks_input_by_assert():
    """Which `python -O` would remove."""
    assert not [name for name in SCRIPTS if re.search(r"(?m)^\s*assert\b", (ROOT / name).read_text())]


@pytest.mark.parametrize(
    "error, code", [("ValueError", 1), ("KeyError", 1), ("OSError", 2), ("FloatingPointError", 3),
                    ("KeyboardInterrupt", 130)]
)  # fmt: skip
def test_exit_codes(error, code, monkeypatch, capsys, small):
    """An error in the program is no bad input: it keeps its traceback."""
    module = load_script(SCRIPT)
    kind = vars(module)["__builtins__"][error]

    def update(*_):
        raise kind("planted")

    monkeypatch.setitem(module.PHASES, [*module.PHASES][-1], update)
    monkeypatch.setattr(sys, "argv", [SCRIPT, *small])
    with pytest.raises(kind if code == 1 else SystemExit) as exit_:
        module.main()
    assert Path("run/config.json").exists() and not Path("run/result.json").exists()
    if code != 1:
        assert exit_.value.code == code
        assert capsys.readouterr().err == f"{SCRIPT}: planted\n"


# -------------------------------------------------------------------------------------- names, network, flags
@pytest.mark.parametrize(
    "name, meant", [("hoper-medum-v2", "hopper-medium-v2"), ("local/hoper/medium-v0",) * 2]
)
def test_an_unknown_name_shows_the_closest_and_asks_no_server(name, meant, refused):
    refused([repr(name), meant.replace("hoper", "hopper")], "--env-id", name)


def test_no_network_and_no_d4rl_file(refused, home):
    words = [f"no {home / FILE}, and no mirror has it; put it there", "--env-id local/reacher/wander-v0"]
    refused(words, "--env-id", NAME, "--run-dir", "run")


def test_no_network_and_no_minari_dataset(refused):
    refused(["D4RL/pen/human-v2", "no network"], "--env-id", "D4RL/pen/human-v2", "--run-dir", "run")


@pytest.mark.parametrize(
    "flag, value",
    [("--batch-size", 0), ("--train-steps", 0), ("--num-seeds", 0), ("--eval-every", -1), ("--seed", -1),
     ("--learning-rate", "nan"), ("--sigma-max", "inf"), ("--discount", 2), ("--tau", -0.1), ("--tau", 1.5),
     ("--expectile", "nan"), ("--eval-candidates", -1), ("--checkpoint-every", 0)],
)  # fmt: skip
def test_a_flag_out_of_range(flag, value, refused):
    refused(f"{flag} cannot be {value}", flag, value, "--run-dir", "run")


def test_noise_levels_in_the_wrong_order(refused):
    refused("--sigma-min 3.0 is not below", "--sigma-min", 3, "--sigma-max", 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_such_device(refused):
    refused(["--device cuda", "--device cpu"], "--device", "cuda", "--run-dir", "run")


@pytest.mark.parametrize(
    "flags",
    ["--batchsize 8", "--device cuda:99", "--device gpu", "--lr-schedule linear", "--batch-size many"],
)
def test_flags_that_do_not_parse(flags, capsys, home):
    with pytest.raises(SystemExit) as exit_:
        train(SCRIPT, *flags.split(), "--run-dir", "run")
    output = capsys.readouterr()
    assert exit_.value.code == 2 and flags.split()[0] in output.out + output.err
    assert not list(home.iterdir())


# --------------------------------------------------------------------------------------------------- datasets
def at(shape, row: int, value: float, dtype=np.float32) -> np.ndarray:
    array = np.full(shape, 0.5, dtype)
    array[row] = value
    return array


@pytest.mark.parametrize(
    "overrides, words",
    [  # the timeouts of these files, at rows 9, 19, ..., are no transitions: rows are counted in the file
        ({"timeouts": None}, ["not a whole", "timeouts"]),
        ({"observations": at((64, 11), 25, np.nan)}, ["the observation of row [25]"]),
        ({"observations": at((64, 11), 29, np.nan)}, ["the next observation of row [28]"]),
        ({"rewards": at(64, 31, -np.inf)}, ["the reward of row [31]"]),
        ({"rewards": at(64, 31, 1e300, np.float64)}, ["the reward of row [31]"]),  # it trains in float32
        ({"terminals": at(64, 3, np.nan)}, ["the terminal of row [3]"]),
        ({"actions": at((64, 3), 12, 1.5)}, ["the action of row [12]", "out of bounds"]),
        ({"actions": at((64, 6), 0, 0.5)}, ["(11, 6)"]),
        ({"observations": at((64, 17), 0, 0.5)}, ["(17, 3)"]),
        ({"observations": at(64, 0, 0.5)}, ["(64,)"]),
        ({"timeouts": np.zeros(60, bool)}, ["not a whole"]),
        ({"rewards": at(60, 0, 0.5)}, ["(60,)"]),
        ({"actions": at((60, 3), 0, 0.5)}, ["(60, 3)"]),
        ({"rewards": at((64, 2), 0, 0.5)}, ["(64, 2)"]),
        ({"timeouts": np.ones(64, bool)}, ["no transitions"]),
    ],
)
def test_bad_values_in_a_d4rl_file(overrides, words, refused, small, home):
    write_d4rl(home / FILE, **overrides)
    refused(
        [NAME, *words] if words[0][0] == "(" and "1" in words[0][:3] else words, *small, "--eval-episodes", 1
    )


@pytest.mark.parametrize("n", [0, 1])
def test_a_dataset_without_a_transition(n, refused, small, home):
    write_d4rl(home / FILE, n=n)
    refused([str(home / FILE), "no transitions"], *small)


@pytest.mark.parametrize("kind", ["truncated", "text", "minari", "groups"])
def test_a_file_that_is_not_d4rls(kind, refused, small, home):
    path = home / FILE
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
    refused(f"{path} is not a whole HDF5 file of {NAME}", *small)


@pytest.mark.parametrize("kind", ["truncated", "empty"])
def test_a_bad_minari_dataset(kind, refused, home):
    data = home / ".minari/datasets/mine/hopper-v0/data"
    shutil.copytree(ROOT / "datasets/local/hopper/medium-replay-v0/data", data)
    if kind == "truncated":
        os.truncate(data / "main_data.hdf5", 1_000_000)
    else:
        with h5py.File(data / "main_data.hdf5", "w") as file:
            file.attrs["total_episodes"] = 0
        metadata = re.sub(r'("total_(episodes|steps)"): \d+', r"\1: 0", (data / "metadata.json").read_text())
        (data / "metadata.json").write_text(metadata)
    words = {"truncated": "truncated", "empty": "no episodes"}[kind]
    refused(words, "--env-id", "mine/hopper-v0", "--run-dir", "run", "--eval-episodes", 0)


# -------------------------------------------------------------------------------------------- run directories
def test_the_directory_of_another_run(finished, small, refused):
    refused("run holds a run already; --resume run continues it", *small)
    (finished / "config.json").unlink()
    (finished / "checkpoint.pt").unlink()
    refused("run holds a run already", *small)  # metrics, of whatever program
    refused("run is not the directory of a run", "--resume", "run")


@pytest.mark.parametrize(
    "flags, words",
    [("--batch-size 16 --tau 0.01", ["batch_size", "tau"]), ("--run-dir other", ["run_dir"]),
     ("--env-id hopper-expert-v2", ["env_id"]), ("--checkpoint-every 1", ["checkpoint_every"]),
     ("--eval-only run", ["eval_only"]), ("--train-steps 1", ["train_steps", "can only become more"])],
)  # fmt: skip
def test_resuming_with_other_flags(flags, words, finished):
    module = load_script(SCRIPT)
    config = json.loads((finished / "config.json").read_text())
    with pytest.raises(module.InputError) as error:
        train(SCRIPT, "--resume", "run", *flags.split())
    assert all(word in str(error.value) for word in words) and "learning_rate" not in str(error.value)
    assert json.loads((finished / "config.json").read_text()) == config


def test_resuming_what_is_no_run(refused, finished, home):
    (home / "empty").mkdir()
    shutil.copytree(finished, home / "old")
    config = json.loads((finished / "config.json").read_text())
    (home / "old/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "compile"}))
    (home / "cut").mkdir()
    (home / "cut/config.json").write_text("{")
    for name in ("missing", "empty", "old", "cut"):
        refused(f"{name} is not the directory of a run", "--resume", name)
        refused(f"{name} is not the directory of a run", "--eval-only", name)
    refused(f"run is a run of {SCRIPT}", "--resume", "run", script="srpo.py")


def test_resuming_on_another_dataset(refused, finished, home):
    write_d4rl(home / FILE, seed=1)
    refused("run was begun with another dataset", "--resume", "run")


@pytest.mark.parametrize("kind", ["cut", "another network", "another device"])
def test_a_checkpoint_that_does_not_fit(kind, refused, finished):
    path = finished / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    if kind == "another network":
        saved["agent"].popitem()
    if kind == "another device":
        saved["rng"] = torch.zeros(16, dtype=torch.uint8)  # as CUDA's
    torch.save(saved, path)
    if kind == "cut":
        os.truncate(path, path.stat().st_size // 2)
    before = path.read_bytes()
    with pytest.raises(load_script(SCRIPT).InputError, match="cannot load run/checkpoint.pt"):
        train(SCRIPT, "--resume", "run")
    assert path.read_bytes() == before


def test_a_run_directory_below_a_file(refused, small, home):
    (home / "file").write_text("mine")
    refused("file/run", *small[:2], "--run-dir", "file/run", *small[4:])


# -------------------------------------------------------------------------------------------------- disk full
def test_disk_full_at_a_checkpoint_keeps_the_one_before(finished):
    path = finished / "checkpoint.pt"
    before, limit = path.read_bytes(), path.stat().st_size // 2
    home, flags = finished.parent, ("--resume", "run", "--train-steps", "5")
    result = fork_script(SCRIPT, *flags, cwd=home, limit=limit)
    assert_refused(result, "cannot write run/checkpoint.pt; the one before is kept", "make room", "--resume")
    assert path.read_bytes() == before
    assert fork_script(SCRIPT, "--resume", "run", cwd=home).returncode == 0
    assert torch.load(path, weights_only=True)["state"]["step"] == 7


def test_disk_full_from_the_start_or_at_the_metrics(small, home):
    result = fork_script(SCRIPT, *small, cwd=home, limit=600)  # more than it prints
    assert_refused(result, "run/config.json", "make room")
    flags = *small, "--num-seeds", "10"
    assert_refused(fork_script(SCRIPT, *flags, cwd=home, limit=2200), "too large")
    assert not (home / "run/checkpoint.pt").exists()


# ----------------------------------------------------------------------------------------------- saved models
class TouchesAFile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "another's", "torch code", "pickle code"])
def test_a_model_that_cannot_be_loaded(kind, finished, refused):
    path, touched = finished / "model.pt", finished / "touched"
    if kind == "missing":
        path.unlink()
    if kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    if kind == "text":
        path.write_text("weights")
    if kind == "another's":
        torch.save({"agent": {}}, path)
    if kind == "torch code":
        torch.save(torch.load(path, weights_only=True) | {"more": TouchesAFile(touched)}, path)
    if kind == "pickle code":
        path.write_bytes(pickle.dumps(TouchesAFile(touched)))
    refused("cannot load the model of run", "--eval-only", "run", "--eval-episodes", 1)
    assert not touched.exists()
    if kind == "torch code":  # it was a live one
        torch.load(path, weights_only=False)
        assert touched.exists()


@pytest.mark.parametrize(
    "flags, words",
    [("", "--eval-episodes"), ("--eval-episodes -1", "--eval-episodes"), ("--tau 0.1", "tau"),
     ("--seed 7 --num-seeds 3", "num_seeds"), ("--track", "track"), ("--capture-video", "capture_video"),
     ("--train-steps 9", "train_steps")],
)  # fmt: skip
def test_evaluating_only_with_flags_that_it_would_not_heed(flags, words, finished, refused):
    """The first: the model was trained with --eval-episodes 0, so how many to evaluate is not known."""
    refused(words, "--eval-only", "run", *flags.split())


# --------------------------------------------------------------------------------------------- training fails
@all_scripts
def test_a_loss_that_is_not_finite(script, tmp_path):
    """Observations of 1e30: V's square is beyond float32, at the first step."""
    write_d4rl(tmp_path / FILE, observations=at((64, 11), slice(40, 64), 1e30))
    flags = ["--env-id", NAME, "--run-dir", "run", *fast_flags(script), "--num-seeds", "2"]
    result = fork_script(script, *flags, "--checkpoint-every", "1", cwd=tmp_path)
    assert_refused(result, "not finite at step 1", "loss", code=3)
    assert not any(
        (tmp_path / "run" / name).exists() for name in ("checkpoint.pt", "model.pt", "result.json")
    )


def test_a_checkpoint_from_before_a_loss_that_is_not_finite_stays(finished, monkeypatch):
    module, update = load_script(SCRIPT), load_script(SCRIPT).PHASES["train"]
    losses = iter([1.0, float("nan")])
    patched = lambda *args: update(*args) | {"policy_q": torch.tensor([next(losses)])}
    monkeypatch.setitem(module.PHASES, "train", patched)
    before = (finished / "checkpoint.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="at step 6.*policy_q"):
        train(SCRIPT, "--resume", "run", "--train-steps", 4)
    assert (finished / "checkpoint.pt").read_bytes() == before
    monkeypatch.undo()


def test_ctrl_c_before_training_is_one_line(tmp_path):
    at = "load_dataset", 1, signal.SIGINT
    assert_refused(fork_script(SCRIPT, *fast_flags(SCRIPT), cwd=tmp_path, at=at), code=130)
