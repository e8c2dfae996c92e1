"""Whole runs of the scripts as a user starts them: files, resuming, seeds, evaluation of saved models."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SCRIPTS, load_script, run_script, script_env, write_d4rl

SHORT = (
    "--no-compile --num-seeds 2 --batch-size 32 --learning-rate 3e-4 --eval-every 50 --eval-episodes 2 "
    "--checkpoint-every 13"
).split()


def short(script: str) -> list[str]:
    """Flags of a run of 180 steps, the last phase from 60 on; it evaluates three times."""
    *before, last = load_script(script).PHASES
    steps = {name: 60 // len(before) for name in before} | {last: 120}
    flags = [flag for name, n in steps.items() for flag in (f"--{name}-steps", str(n))]
    return [*SHORT, *flags, *specific(script)]


def specific(script: str) -> list[str]:
    """What the scripts differ in: SRPO's policy has a single candidate, and a batch size more."""
    return ["--behavior-batch-size", "32"] if script == "srpo.py" else ["--eval-candidates", "8"]


def metrics(run_dir) -> list[dict]:
    """metrics.jsonl without the times in it."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def load(path) -> dict:
    return torch.load(path, weights_only=True)


def assert_equal_runs(a, b, in_order=True) -> None:
    """The same final weights, bit for bit, and the same metrics; an evaluation beside training may end after
    later losses were written."""
    weights_a, weights_b = load(a / "model.pt")["agent"], load(b / "model.pt")["agent"]
    assert weights_a.keys() == weights_b.keys()
    assert all(torch.equal(weights_a[name], weights_b[name]) for name in weights_a)
    order = lambda line: (0,) if in_order else (line["step"], line["seed"], "eval/return" in line)
    assert sorted(metrics(a), key=order) == sorted(metrics(b), key=order)
    assert not list(b.glob("snapshot*"))


@pytest.fixture(scope="module", params=SCRIPTS)
def finished(request, tmp_path_factory):
    """(script, the directory of an uninterrupted run, its output)."""
    home = tmp_path_factory.mktemp("finished")
    done = run_script(request.param, *short(request.param), "--run-dir", "run", cwd=home)
    assert done.returncode == 0, done.stderr
    return request.param, home / "run", done.stdout


def workers(script: str) -> list[str]:
    """One script evaluates in a process of its own, beside training."""
    return ["--eval-workers", "1"] if script == SCRIPTS[0] else []


def start(script, run_dir, home, *flags):
    command = [sys.executable, ROOT / script, *short(script), "--run-dir", run_dir, *flags]
    return subprocess.Popen(
        list(map(str, command)), cwd=home, env=script_env(home), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait_for_checkpoint(process, path, step: int) -> None:
    """Returns once path holds this step or a later one, or the process has ended."""
    while process.poll() is None and not (path.exists() and load(path)["state"]["step"] >= step):
        time.sleep(0.01)


def test_a_run_writes_what_it_promises(finished):
    script, run_dir, output = finished
    module = load_script(script)
    config = json.loads((run_dir / "config.json").read_text())
    assert set(module.Args.__dataclass_fields__) <= config.keys()
    settings = module.settings_of(config["env_id"])
    assert None not in [config[name] for name in settings]  # resolved, not left to the reader
    result = json.loads((run_dir / "result.json").read_text())
    lines = metrics(run_dir)
    evaluations = [line for line in lines if "eval/returns" in line]
    assert [(line["step"], line["seed"]) for line in evaluations] == [
        (step, seed) for step in (110, 160, 180) for seed in (1, 2)
    ]
    for line in evaluations:
        assert len(line["eval/returns"]) == len(line["eval/lengths"]) == 2
        score = 100 * (line["eval/return"] + 20.272305) / (3234.3 + 20.272305)  # D4RL's references for hopper
        assert line["eval/normalized_score"] == pytest.approx(score)
    for seed in (1, 2):
        scores = [line["eval/normalized_score"] for line in evaluations if line["seed"] == seed]
        assert result["seeds"][str(seed)] == pytest.approx({"last": scores[-1], "best": max(scores)})
    assert f"(last, 2 seeds × 2 episodes)\nwrote {run_dir.name}\n" in output
    losses = [line for line in lines if line["seed"] == 1 and line not in evaluations]
    ends = [30, 60, 180] if script == "srpo.py" else [60, 180]
    assert [line["step"] for line in losses] == ends  # of the phases
    assert "policy_q" in losses[-1] and "policy_q" not in losses[0]  # only what the phase trains
    if script != "srpo.py":
        assert losses[1]["bc_loss"] < 0.9 * losses[0]["bc_loss"]
    assert not list(run_dir.glob("*.part"))


def test_kill_9_in_each_phase_and_resume_gives_the_uninterrupted_run(finished, tmp_path):
    script, whole, _ = finished
    delay = random.Random(0)
    for step in (13, 39, 78):  # SRPO's phases end at 30 and 60, the others' first one at 60
        process = start(script, "run", tmp_path, "--resume", *workers(script))
        wait_for_checkpoint(process, tmp_path / "run" / "checkpoint.pt", step)
        time.sleep(delay.random() / 4)  # into the steps, evaluations and writes that follow
        process.kill()
        process.communicate()
        assert not (tmp_path / "run" / "result.json").exists()
    done = run_script(script, *short(script), "--run-dir", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming run at step" in done.stdout
    assert_equal_runs(whole, tmp_path / "run", in_order=not workers(script))


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_resume(finished, tmp_path):
    script, whole, _ = finished
    process = start(script, "run", tmp_path, *workers(script))
    wait_for_checkpoint(process, tmp_path / "run" / "checkpoint.pt", 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    saved = load(tmp_path / "run" / "checkpoint.pt")["state"]["step"]
    assert f"interrupted at step {saved}; to continue: python {ROOT / script}" in errors
    command = errors.rpartition("to continue: python ")[2].split()
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=script_env(tmp_path), text=True)
    assert done.returncode == 0
    assert_equal_runs(whole, tmp_path / "run", in_order=not workers(script))


only_first = pytest.mark.parametrize("finished", SCRIPTS[:1], indirect=True)  # the others have its code


@only_first
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_beside_training_gives_the_run_that_evaluates_in_place(finished, count, tmp_path):
    script, in_place, output = finished
    done = run_script(script, *short(script), "--eval-workers", count, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(in_place, tmp_path / "run", in_order=False)
    done = run_script(script, "--eval-only", "run/model.pt", "--eval-workers", count, cwd=tmp_path)
    assert done.stdout in output


@only_first
def test_an_evaluation_that_ctrl_c_cut_is_done_by_the_resumed_run(finished, tmp_path):
    script, in_place, _ = finished
    process = start(script, "run", tmp_path, "--eval-workers", "1")
    wait_for(process, tmp_path / "run" / "snapshot-110.pt")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors
    done = run_script(script, *short(script), "--run-dir", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(in_place, tmp_path / "run", in_order=False)


def wait_for(process, path: Path) -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.01)


def worker_ids(pid: int) -> set[int]:
    """Processes of the workers; multiprocessing has one more, of its own."""
    ids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(i) for i in ids if "spawn_main" in Path(f"/proc/{i}/cmdline").read_text()}


@pytest.fixture
def evaluating(tmp_path):
    """A run whose two workers are at an evaluation that takes long, and these processes' ids."""
    process = start(SCRIPTS[0], "run", tmp_path, "--eval-workers", "2", "--eval-episodes", "100000")
    wait_for(process, tmp_path / "run" / "snapshot-110.pt")
    yield process, worker_ids(process.pid)
    process.kill()
    process.communicate(timeout=120)


def wait_for_end(pids: set[int]) -> None:
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a process outlives its run"
        time.sleep(0.01)


def test_workers_end_with_a_run_that_was_killed(evaluating):
    process, pids = evaluating
    assert len(pids) == 2
    process.kill()
    process.wait(timeout=60)
    wait_for_end(pids)


def test_ctrl_c_does_not_wait_for_an_evaluation(evaluating, tmp_path):
    process, pids = evaluating
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors
    wait_for_end(pids)
    state = load(tmp_path / "run" / "checkpoint.pt")["state"]
    assert (state["evaluating"], state["evaluated"]) == (110, 0)
    assert (tmp_path / "run" / "snapshot-110.pt").exists()  # so that it is done when the run goes on


def test_a_worker_that_dies_ends_the_run_in_one_line(evaluating, tmp_path):
    process, pids = evaluating
    os.kill(min(pids), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "an evaluation process died" in errors.splitlines()[-1]


def test_a_worker_that_died_before_its_first_evaluation_ends_the_run_in_one_line(tmp_path):
    process = start(SCRIPTS[0], "run", tmp_path, "--eval-workers", "1")
    wait_for(process, tmp_path / "run" / "checkpoint.pt")  # of step 13
    os.kill(*worker_ids(process.pid), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "an evaluation process died" in errors.splitlines()[-1]


def test_a_seed_learns_the_same_alone_and_beside_others(finished, tmp_path):
    script, together, _ = finished
    flags = ["--seed" if flag == "--num-seeds" else flag for flag in short(script)]  # --seed 2, alone
    done = run_script(script, *flags, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    beside = [line for line in metrics(together) if line["seed"] == 2]
    alone = metrics(tmp_path / "run")
    assert [line["step"] for line in alone] == [line["step"] for line in beside]
    for a, b in zip(alone, beside):
        for name in a:
            if not name.startswith("eval/"):  # an episode of Hopper amplifies rounding without bound
                assert a[name] == pytest.approx(b[name], rel=1e-2, abs=1e-2), name


def test_a_saved_model_acts_as_the_training_process_did(finished, tmp_path):
    script, run_dir, _ = finished
    last = [line for line in metrics(run_dir) if "eval/returns" in line][-2:]
    score = sum(line["eval/normalized_score"] for line in last) / 2
    for name in ("model.pt", "checkpoint.pt"):
        done = run_script(script, "--eval-only", run_dir / name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"score {score:.1f} ")
    module = load_script(script)
    saved = load(run_dir / "model.pt")
    args = module.saved_args(saved["config"])
    agent = module.load_agent(saved, args, torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the subprocess had
    task = module.load_task(args.env_id)
    returns, lengths = module.evaluate(agent, task.make_env, range(2))
    torch.set_num_threads(threads)
    assert returns.tolist() == [line["eval/returns"] for line in last]
    assert lengths.tolist() == [line["eval/lengths"] for line in last]


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_phase_starts_once_whenever_the_run_is_cut(script, tmp_path, monkeypatch):
    """Cut after each step and resumed: the same starts and updates in the same order."""
    module = load_script(script)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5")
    events, expected = [], []
    for name, phase in module.PHASES.items():
        expected += [f"start {name}"] + [name] * 2
        update = lambda *args, name=name: events.append(name) or {"loss": torch.zeros(1)}
        start = lambda agent, name=name: events.append(f"start {name}")
        monkeypatch.setitem(module.PHASES, name, dataclasses.replace(phase, update=update, start=start))
    steps = {f"{name}_steps": 2 for name in module.PHASES}
    args = dict(env_id="hopper-medium-v2", eval_episodes=0, compile=False, checkpoint_every=1, **steps)
    save, n = module.save_model, 2 * len(module.PHASES)
    for cut in range(1, n + 1):
        calls = iter(range(1, n + 1))

        def save_and_die(*args, **state):
            save(*args, **state)
            if next(calls) == cut:
                raise KeyboardInterrupt

        run = {"run_dir": str(tmp_path / str(cut)), "resume": True}
        with monkeypatch.context() as patch:
            patch.setattr(module, "save_model", save_and_die)
            with pytest.raises(KeyboardInterrupt):
                module.train(module.Args(**args, **run))
        assert len([event for event in events if not event.startswith("start")]) == cut
        module.train(module.Args(**args, **run))
        assert events == expected
        events.clear()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_copied_alone_runs_on_a_minari_dataset(script, tmp_path):
    shutil.copy(ROOT / script, tmp_path)
    shutil.copytree(
        ROOT / "datasets" / "local" / "hopper" / "medium-replay-v0", tmp_path / "sets/mine/hop/replay-v3"
    )
    env = script_env(tmp_path, MINARI_DATASETS_PATH=str(tmp_path / "sets"))
    run = lambda *flags: subprocess.run(
        [sys.executable, script, *flags], cwd=tmp_path, env=env, text=True, capture_output=True
    )
    assert "--expectile" in run("--help").stdout
    done = run(*short(script), "--env-id", "mine/hop/replay-v3", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seeds"].keys() == {"1", "2"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_weights_and_biases_offline_gets_the_metrics(script, tmp_path):
    done = run_script(script, *short(script), "--track", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"seed2/eval/normalized_score" in content
    assert b"seed1/bc_loss" in content
