"""Whole runs: their files, the same after any kill, resuming, evaluation of saved models, W&B."""

import atexit
import dataclasses
import fcntl
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from helpers import (
    ROOT,
    SCRIPTS,
    fast_flags,
    fork_script,
    load_script,
    run_script,
    script_env,
    train,
    write_d4rl,
)

SCRIPT = SCRIPTS[0]  # for what is the same code in all four
KILL, INTERRUPT = signal.SIGKILL, signal.SIGINT
NAME = "hopper-medium-v2"
EVERY = 7  # steps between checkpoints
FIRST, END = 24, 72  # steps before the last phase, and in all
EVALUATIONS = 44, 64, 72


@functools.cache
def data_dir() -> str:
    """A folder with a small file for NAME."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    write_d4rl(Path(folder, "hopper_medium-v2.hdf5"))
    return folder


def fork(script: str, *flags, env: dict | None = None, **options):
    return fork_script(script, *flags, env={"D4RL_DATASET_DIR": data_dir()} | (env or {}), **options)


@pytest.fixture
def home(home, monkeypatch):
    monkeypatch.setenv("D4RL_DATASET_DIR", data_dir())
    return home


def fast(script: str) -> list[str]:
    """Flags of a run of two steps in each phase."""
    return ["--env-id", NAME, *fast_flags(script)]


def short(script: str) -> list[str]:
    """Flags of a run that is evaluated and saved several times."""
    *before, last = load_script(script).PHASES
    steps = {name: FIRST // len(before) for name in before} | {last: END - FIRST}
    flags = f"--env-id {NAME} --device cpu --num-seeds 2 --batch-size 32 --learning-rate 3e-4 --eval-every 20"
    flags += f" --eval-episodes 2 --checkpoint-every {EVERY}"
    flags += " --behavior-batch-size 32" if script == "srpo.py" else " --eval-candidates 8"
    return [*flags.split(), *(flag for name, n in steps.items() for flag in (f"--{name}-steps", str(n)))]


def metrics(run_dir: Path) -> list[dict]:
    """metrics.jsonl without the times in it."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_equal_runs(a: Path, b: Path) -> None:
    """The same final weights, bit for bit, and the same metrics."""
    weights_a, weights_b = load(a / "model.pt")["agent"], load(b / "model.pt")["agent"]
    assert weights_a.keys() == weights_b.keys()
    assert [name for name in weights_a if not torch.equal(weights_a[name], weights_b[name])] == []
    assert metrics(a) == metrics(b)


@functools.cache
def undisturbed(script: str) -> tuple[str, Path, str]:
    """(script, the directory of a run, its output)."""
    home = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, home)
    done = fork(script, *short(script), "--run-dir", "run", cwd=home)
    assert done.returncode == 0, done.stderr
    return script, home / "run", done.stdout


@pytest.fixture(params=SCRIPTS)
def finished(request):
    return undisturbed(request.param)


common_code = pytest.mark.parametrize("finished", SCRIPTS[:1], indirect=True)


def test_a_run_writes_what_it_promises(finished):
    script, run_dir, output = finished
    module = load_script(script)
    config = json.loads((run_dir / "config.json").read_text())
    fields = set(module.Args.__dataclass_fields__)
    described = {
        "script",
        "id",
        "dataset",
        "dataset_sha256",
        "action_low",
        "action_high",
        "obs_dim",
        "action_dim",
    }
    assert fields | described | {"git_commit", "versions"} == config.keys()
    assert None not in [config[name] for name in module.settings_of(config["env_id"])]  # resolved
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    assert (config["script"], config["git_commit"]) == (script, commit.strip() or None)
    assert (config["obs_dim"], config["action_dim"], config["action_high"]) == (11, 3, [1, 1, 1])
    result = json.loads((run_dir / "result.json").read_text())
    assert {name: x for name, x in result.items() if name in config} == config
    assert (result["metric"], result["step"], result["peak_memory_mib"]) == ("score", END, None)
    assert result["train_seconds"] > 0 and result["eval_seconds"] > 0
    lines = metrics(run_dir)
    evaluations = [line for line in lines if "eval/returns" in line]
    assert [(line["step"], line["seed"]) for line in evaluations] == [
        (step, seed) for step in EVALUATIONS for seed in (1, 2)
    ]
    for line in evaluations:
        assert len(line["eval/returns"]) == len(line["eval/lengths"]) == 2
        score = 100 * (line["eval/return"] + 20.272305) / (3234.3 + 20.272305)  # D4RL's references
        assert line["eval/normalized_score"] == pytest.approx(score)
    for seed in (1, 2):
        scores = [line["eval/normalized_score"] for line in evaluations if line["seed"] == seed]
        assert result["seeds"][str(seed)] == pytest.approx({"last": scores[-1], "best": max(scores)})
    assert f"writing run; after an interruption: python {script} --resume run\n" in output
    assert re.search(r"\(last, 2 seeds × 2 episodes\); physics: D4RL's, of MuJoCo 2.1.0\nwrote run: ", output)
    losses = [line for line in lines if line["seed"] == 1]
    ends = {FIRST, *EVALUATIONS} | ({FIRST // 2} if script == "srpo.py" else set())
    assert [line["step"] for line in losses] == sorted(ends | {*range(EVERY, END, EVERY)})
    assert "policy_q" in losses[-1] and "policy_q" not in losses[0]  # only what the phase trains
    if script != "srpo.py":
        assert losses[-1]["bc_loss"] < losses[0]["bc_loss"]
    assert not list(run_dir.glob("*.part"))


@common_code  # of the others a run that was killed equals another
def test_one_command_gives_one_run(finished, tmp_path):
    script, run_dir, output = finished
    env = {"D4RL_DATASET_DIR": data_dir()}
    done = run_script(script, *short(script), "--run-dir", "run", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(run_dir, tmp_path / "run")
    again, first = (json.loads((x / "config.json").read_text()) for x in (tmp_path / "run", run_dir))
    assert again["id"] != first["id"] and again | {"id": ""} == first | {"id": ""}


def kill_often(script: str, home: Path, *flags, seed: int, **options) -> None:
    """The run, killed at random moments of every kind, and resumed each time."""
    rng, step = random.Random(seed), 0
    checkpoints = lambda: len({*range(EVERY, END, EVERY), END} - {*range(step + 1)})  # yet to be written
    run = lambda at=None, *flags: fork(script, *flags, cwd=home, at=at, **options)
    begin, resume = (*short(script), *flags, "--run-dir", "run"), ("--resume", "run")
    assert run(("os.fsync", 1, KILL), *begin).returncode == -KILL  # between mkdir and config.json
    assert not (home / "run/config.json").exists()
    assert run(("torch.randint", rng.randint(1, EVERY), KILL), *begin).returncode == -KILL
    assert not (home / "run/checkpoint.pt").exists()
    moments = [
        lambda: ("torch.randint", rng.randint(EVERY + 1, FIRST - 1)),  # in a step before the last phase
        lambda: ("os.replace", rng.randint(2, 4)),  # before the checkpoint has its name; config.json is first
        lambda: ("act", rng.randint(1, 9)),  # in the first evaluation
        lambda: ("torch.randint", rng.randint(3, 20)),  # after a line of metrics and before its checkpoint
        lambda: ("os.fsync", rng.randint(2, 3)),  # in the middle of a checkpoint
        lambda: ("os.replace", checkpoints() + 2),  # after the last step, before model.pt
        lambda: ("os.replace", checkpoints() + 3),  # between model.pt and result.json
    ]
    for moment in moments:
        done = run((*moment(), KILL), *resume)
        assert done.returncode == -KILL, done.stderr
        assert not (home / "run/result.json").exists()
        step = load(home / "run/checkpoint.pt")["state"]["step"]
    assert step == END
    done = run(None, *resume)
    assert done.returncode == 0, done.stderr


def test_a_run_killed_at_any_moment_and_resumed_is_the_undisturbed_one(finished, tmp_path):
    script, whole, _ = finished
    kill_often(script, tmp_path, seed=SCRIPTS.index(script))
    assert_equal_runs(whole, tmp_path / "run")


ALL_COMPILED = "ALL_COMPILED" in os.environ  # all four, and at all moments: minutes


@pytest.mark.parametrize("script", SCRIPTS if ALL_COMPILED else SCRIPTS[:1])
def test_a_compiled_run_killed_at_any_moment_and_resumed_is_the_undisturbed_one(script, tmp_path):
    """Of networks with one hidden layer, which are sooner compiled."""
    options = {"env": {"TORCHINDUCTOR_COMPILE_THREADS": "1"}, "constants": {"HIDDEN": (32,), "BLOCKS": 1}}
    run = lambda *flags, **at: fork(script, *flags, cwd=tmp_path, **options, **at)
    command = [*short(script), "--compile", *([] if ALL_COMPILED else ["--pretrain-steps", "0"])]
    done = run(*command, "--run-dir", "whole")
    assert done.returncode == 0, done.stderr
    if ALL_COMPILED:
        kill_often(script, tmp_path, "--compile", seed=9, **options)
    else:  # between two checkpoints
        at = ("torch.randint", 6 * EVERY + 3, KILL)
        assert run(*command, "--run-dir", "run", at=at).returncode == -KILL
        assert load(tmp_path / "run/checkpoint.pt")["state"]["step"] == 6 * EVERY
        assert run("--resume", "run").returncode == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


@common_code
def test_ctrl_c_ends_in_one_line_that_continues_the_run(finished, tmp_path):
    script, whole, _ = finished
    at = ("torch.randint", random.Random(script).randint(1, END - 1), INTERRUPT)
    done = fork(script, *short(script), "--run-dir", "run", cwd=tmp_path, at=at)
    assert done.returncode == 130
    assert re.fullmatch(f"{script}: .*--resume.*\n", done.stderr)
    flags = re.search(f"after an interruption: python {script} (.*)", done.stdout)[1].split()
    assert fork(script, *flags, cwd=tmp_path).returncode == 0
    assert_equal_runs(whole, tmp_path / "run")


@pytest.mark.parametrize("finished", [SCRIPT, "srpo.py"], indirect=True)  # by the name of the last phase
def test_a_finished_run_goes_on_for_more_steps(finished, tmp_path):
    script, whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    last = [*load_script(script).PHASES][-1]
    done = fork(script, "--resume", "run", cwd=tmp_path)  # for no more
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole, tmp_path / "run")
    done = fork(script, "--resume", "run", f"--{last}-steps", "56", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = metrics(whole), metrics(tmp_path / "run")
    assert after[: len(before)] == before
    assert {line["step"] for line in after[len(before) :]} == {77, 80}
    assert json.loads((tmp_path / "run/result.json").read_text())["step"] == 80
    assert json.loads((tmp_path / "run/config.json").read_text())[f"{last}_steps"] == 56
    weights = [load(x / "model.pt")["agent"] for x in (whole, tmp_path / "run")]
    assert not all(torch.equal(weights[0][name], x) for name, x in weights[1].items() if "policy" in name)


def test_more_steps_later_are_as_many_at_once(home):
    """With a constant learning rate; the same code in all four, of which one always decays it."""
    flags = [*fast(SCRIPT), "--lr-schedule", "constant"]
    train(SCRIPT, *flags, "--run-dir", "grown")
    train(SCRIPT, "--resume", "grown", "--train-steps", 5)
    train(SCRIPT, *flags, "--train-steps", 5, "--run-dir", "whole")
    weights = [load(Path(x, "model.pt"))["agent"] for x in ("grown", "whole")]
    assert all(torch.equal(weights[0][name], x) for name, x in weights[1].items())


def test_a_saved_model_acts_as_the_training_process_did(finished, home):
    script, run_dir, output = finished
    last = [line for line in metrics(run_dir) if "eval/returns" in line][-2:]
    done = fork(script, "--eval-only", run_dir, cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == next(line for line in output.splitlines()[::-1] if "(last" in line) + "\n"
    module = load_script(script)
    args = module.parse_args(["--eval-only", str(run_dir)])
    device, task = module.resolve(args), module.load_task(args.env_id)
    agent = module.Agent(*task.sizes, args, device)
    agent.load_state_dict(load(run_dir / "model.pt")["agent"])
    state = torch.get_rng_state()
    values = module.evaluate(agent, task, args)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("eval/returns", "eval/lengths", "eval/normalized_score"):
        assert values[name] == [line[name] for line in last]
    done = fork(script, "--eval-only", run_dir, "--eval-episodes", "3", cwd=home)
    assert "2 seeds × 3 episodes" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_phase_starts_once_whenever_the_run_is_cut(script, home, monkeypatch):
    """Cut after each step and resumed: the same starts and updates in the same order."""
    module = load_script(script)
    events, expected, write = [], [], module.write
    for name in module.PHASES:
        expected += [f"start {name}"] + [name] * 2
        update = lambda *_, name=name: events.append(name) or {"loss": torch.zeros(1)}
        monkeypatch.setitem(module.PHASES, name, update)
        monkeypatch.setitem(module.STARTS, name, lambda agent, name=name: events.append(f"start {name}"))
    flags = [*fast(script), "--checkpoint-every", "1"]
    n = 2 * len(module.PHASES)
    for cut in range(1, n + 1):
        checkpoints = iter(range(1, n + 1))

        def write_and_die(path, content):
            write(path, content)
            if path.name == "checkpoint.pt" and next(checkpoints) == cut:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, "write", write_and_die)
            with pytest.raises(KeyboardInterrupt):
                train(script, *flags, "--run-dir", cut)
        assert len([event for event in events if not event.startswith("start")]) == cut
        train(script, "--resume", cut)
        assert events == expected
        events.clear()


# ------------------------------------------------------------------------------------ the same code in all
def test_two_processes_do_not_train_in_one_directory(home):
    train(SCRIPT, *fast(SCRIPT), "--run-dir", "run")
    before = Path("run/metrics.jsonl").read_bytes()
    with open("run/metrics.jsonl", "a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)  # as the process does that trains
        with pytest.raises(load_script(SCRIPT).InputError, match="another process trains in run"):
            train(SCRIPT, "--resume", "run")
    assert Path("run/metrics.jsonl").read_bytes() == before
    train(SCRIPT, "--resume", "run")


def test_a_file_system_without_locks_will_do(home, monkeypatch):
    def no_locks(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    train(SCRIPT, *fast(SCRIPT), "--run-dir", "run")
    assert Path("run/result.json").exists()


def test_runs_of_one_second_have_directories_of_their_own(home, monkeypatch):
    monkeypatch.setattr(load_script(SCRIPT).time, "time", lambda: 1.7e9)
    results = [train(SCRIPT, *fast(SCRIPT), "--alpha", alpha) for alpha in (1, 5)]
    assert len({*Path("runs").iterdir()}) == len({result["id"] for result in results}) == 2


def test_a_tilde_is_the_home_directory_in_every_flag(home):
    train(SCRIPT, *fast(SCRIPT), "--run-dir", "~/a")
    train(SCRIPT, "--resume", "~/a")
    assert load_script(SCRIPT).parse_args(["--eval-only", "~/a"]).batch_size == 8
    assert [path.name for path in home.iterdir()] == ["a"]


def test_training_in_a_thread_of_a_notebook_leaves_its_signals_alone(home, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    handler, module = signal.getsignal(INTERRUPT), load_script(SCRIPT)
    steps = {f"{phase}_steps": 2 for phase in module.PHASES}
    args = module.Args(NAME, **steps, eval_episodes=0, batch_size=8, device="cpu", run_dir="run")
    thread = threading.Thread(target=module.train, args=[dataclasses.replace(args)])
    thread.start()
    thread.join()
    assert Path("run/result.json").exists() and signal.getsignal(INTERRUPT) is handler


def test_the_program_s_own_errors_keep_their_traceback(home):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = sys.argv[1:]
import dtql_gaussian as script
def update(agent, batch, args): raise ValueError("planted")
script.PHASES["train"] = update
script.main()"""
    command = [sys.executable, "-c", code, SCRIPT, *fast(SCRIPT), "--run-dir", "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("ValueError: planted\n")
    train(SCRIPT, "--resume", "run")  # and nothing is lost


def test_a_script_copied_alone_runs_on_a_minari_dataset(tmp_path):
    shutil.copy(ROOT / SCRIPT, tmp_path)
    data = ROOT / "datasets/local/hopper/medium-replay-v0"
    shutil.copytree(data, tmp_path / "sets/mine/hop/replay-v3")
    env = script_env(tmp_path, MINARI_DATASETS_PATH=str(tmp_path / "sets"))
    run = lambda *flags: subprocess.run(
        [sys.executable, SCRIPT, *flags], cwd=tmp_path, env=env, text=True, capture_output=True
    )
    assert re.search(r"--expectile.*?τ of the expectile", run("--help").stdout, re.DOTALL)
    flags = *fast_flags(SCRIPT), "--eval-episodes", "1", "--run-dir", "run"
    done = run(*flags, "--env-id", "mine/hop/replay-v3")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["seeds"].keys() == {"1"} and result["git_commit"] is None


def test_weights_and_biases_offline_gets_the_metrics_under_an_id_of_the_run(tmp_path):
    for name in ("a/seed-1", "b:?/seed-1"):  # ends of the paths are alike
        flags = *fast(SCRIPT), "--num-seeds", "2", "--eval-episodes", "1", "--run-dir", name
        done = fork(SCRIPT, "--track", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (log,) = (tmp_path / name / "wandb").glob("offline-run-*/*.wandb")
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert log.stem == f"run-{config['id']}"
        content = log.read_bytes()
        assert b"seed2/eval/normalized_score" in content and b"seed1/bc_loss" in content


def test_weights_and_biases_that_cannot_start_is_one_line_and_leaves_no_run(tmp_path):
    flags = "--track", *fast(SCRIPT), "--run-dir", "run"
    for _ in range(2):  # the same command again is not refused for what the first left
        done = fork(SCRIPT, *flags, cwd=tmp_path, env={"WANDB_MODE": "online", "WANDB_API_KEY": ""})
        assert done.returncode == 2, done.stderr
        assert re.fullmatch(
            rf"{SCRIPT}: --track: .*`wandb login`, or set WANDB_MODE=offline.*\n", done.stderr
        )
        assert not (tmp_path / "run/config.json").exists()
