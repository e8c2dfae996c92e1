"""Experiments as command lines, and the engine that runs them: alone, and in a Ray cluster of one machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import tyro
from helpers import ROOT, fork_script, script_env

from benchmark.sweep import experiments, run
from benchmark.sweep.experiments import EXPERIMENTS, Experiment, Setting

RUNS = {  # processes of each experiment with one seed each
    "table1": 26 * 5, "table2": 4, "table3": 3 * 2 * 5, "table5": 3 * 2 * 5, "table6": 6 * 2 * 5,
    "table7": 26, "fig5": 6 * 2 * 5, "srpo_table1": 15 * 5, "srpo_fig6": 3 * 4 * 5, "srpo_fig10": 3 * 5 * 5,
    "local": 11 * 5, "local_alpha": 4 * 5,
}  # fmt: skip


def commands(capsys, *argv: str) -> list[str]:
    assert run.main([*argv, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


# ----------------------------------------------------------------------------------------------- experiments
def test_every_experiment_has_as_many_runs_as_its_table_has_cells_and_seeds(tmp_path):
    made = {name: list(run.runs_of(x, tmp_path, None, 1, [])) for name, x in EXPERIMENTS.items()}
    assert {name: len(runs) for name, runs in made.items()} == RUNS
    assert all(len({x.directory for x in runs}) == len(runs) for runs in made.values())


def test_what_is_trained_decides_the_directory(tmp_path):
    """Two commands have the same directory exactly if they are the same."""
    made = [x for experiment in EXPERIMENTS.values() for x in run.runs_of(experiment, tmp_path, 1, 1, [])]
    assert len({x.directory for x in made}) == len({x.command for x in made}) < len(made)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_is_one_that_its_script_takes(name):
    """One task for each column is enough: the columns differ in script and flags."""
    for setting in {x.label: x for x in EXPERIMENTS[name].settings}.values():
        (made,) = run.runs_of(Experiment("x", "", "", (setting,)), ROOT / "runs", 5, 5, [])
        python, script, *flags = made.command
        module = experiments.load(script)
        args = tyro.cli(module.Args, args=flags)
        module.resolve(args)
        assert python == "python" and (args.env_id, args.seed, args.num_seeds) == (setting.task, 1, 5)
        assert vars(args) | {"seed": 1, "num_seeds": 1, "run_dir": None} == experiments.args_of(setting)


def test_the_commands_of_the_local_experiment_are_the_scripts_defaults(capsys):
    flags, where = "--env-id local/reacher/wander-v0 --seed 1", "runs/local_reacher_wander-v0"
    assert commands(capsys, "--experiment", "local", "--seeds", "1")[:4] == [
        f"python dtql_gaussian.py {flags} --run-dir {where}/dtql_gaussian/seed-1",
        f"python dtql_implicit.py {flags} --run-dir {where}/dtql_implicit/seed-1",
        f"python kl_distill.py {flags} --run-dir {where}/kl_distill/seed-1",
        f"python srpo.py {flags} --run-dir {where}/srpo/seed-1",
    ]


def test_seeds_of_one_process(capsys):
    lines = commands(capsys, "--experiment", "local", "--only", "dtql_gaussian/", "--seeds-per-run", "2")
    seeds = [re.search(r"--seed (\d)(?: --num-seeds (\d))? .*/seed-(\d)$", x).groups() for x in lines]
    assert seeds == [("1", "2", "1"), ("3", "2", "3"), ("5", None, "5")]


def test_flags_are_for_every_run_and_come_after_its_own(capsys):
    flags = "--compile --eval_every 99"
    lines = commands(capsys, *f"--experiment fig5 --only umaze-v0 --seeds 1 --flags={flags}".split(" ", 6))
    assert [" ".join(x.split()[6:-2]) for x in lines] == [f"--entropy-coef {x} {flags}" for x in (0, 1)]


def test_what_experiments_have_in_common_is_trained_once(capsys):
    """Table 6's DTQL is Table 1's, and half of Table 5's runs are."""
    assert len(commands(capsys, "--experiment", "table1", "table6")) == 5 * (26 + 6)
    assert len(commands(capsys, "--experiment", "table1", "table5", "table3")) == 5 * (26 + 3 + 3)


def test_shards_are_disjoint_and_together_the_experiment(capsys):
    everything = commands(capsys, "--experiment", "table6", "local")
    shards = [commands(capsys, "--experiment", "table6", "local", "--shard", f"{i}/7") for i in range(7)]
    assert sorted(sum(shards, [])) == sorted(everything)
    assert len(set(everything)) == len(everything) == 115
    assert {len(shard) for shard in shards} == {16, 17}


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table5", "table6", "table7", "srpo_table1"])
def test_every_cell_of_a_table_has_the_papers_number(name):
    numbers = EXPERIMENTS[name].paper()
    measures = {"table2": {"seconds_per_1k_steps", "hours"}, "table7": {"hours"}}.get(name, {"score"})
    for setting in EXPERIMENTS[name].settings:
        assert all(numbers[setting.task, setting.label][measure][0] > 0 for measure in measures)


@pytest.mark.parametrize(
    "name, task, label, measure, expected",
    [
        ("table1", "hopper-medium-v2", "DTQL", "score", (99.6, 0.87)),
        ("table1", "antmaze-umaze-v2", "DTQL", "score", (92.6, 1.24)),
        ("table1", "walker2d-medium-v2", "IQL", "score", (78.3, None)),
        ("table2", "antmaze-umaze-v0", "IDQL", "hours", (14.64, None)),
        ("table2", "antmaze-umaze-v0", "DTQL", "seconds_per_1k_steps", (21.83, None)),
        ("table3", "hopper-medium-v2", "no pretraining", "score", (87.6, None)),
        ("table5", "walker2d-medium-v2", "KL", "score", (3.4, None)),
        ("table6", "antmaze-large-play-v2", "SRPO", "score", (53.6, None)),
        ("table7", "pen-cloned-v1", "DTQL", "hours", (0.6, None)),
        ("srpo_fig10", "halfcheetah-medium-v2", "β = 0.2", "score", (60.4, 0.8)),
        ("fig5", "antmaze-umaze-v0", "entropy 1", "score", (94.8, 1.0)),
    ],
)
def test_the_papers_numbers_are_found_under_our_labels(name, task, label, measure, expected):
    assert EXPERIMENTS[name].paper()[task, label][measure] == expected


def test_the_papers_entropy_term_is_the_one_of_its_antmaze_tasks():
    assert {task for task, _ in EXPERIMENTS["fig5"].paper()} == set(experiments.ANTMAZE_V0)


def test_the_scripts_settings_are_those_of_table_4():
    """Epochs there are of 1000 gradient steps."""
    script, rows = experiments.load("dtql_gaussian.py"), experiments.read("table4_hyperparameters.csv")
    assert {row["task"] for row in rows} == set(experiments.TASKS)
    for row in rows:
        ours = script.settings_of(row["task"])
        for column, value in list(row.items())[1:]:
            if column.endswith("_epochs"):
                column, value = column.replace("_epochs", "_steps"), 1000 * float(value)
            if column == "lr_decay":
                column, value = "lr_schedule", {"1": "cosine", "0": "constant"}[value]
            assert ours[column] == (value if column == "lr_schedule" else float(value)), (row["task"], column)


# ---------------------------------------------------------------------------------- the engine, a fake script
FAKE = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir" if "--run-dir" in sys.argv else "--resume") + 1])
task, again = folder.parts[-3], (folder / "config.json").exists()
assert again == (sys.argv[1:] == ["--resume", str(folder)]), sys.argv
(folder / "config.json").write_text(json.dumps({"train_steps": 1000}))
if task == "bad":
    sys.exit(print("bad: no such task", file=sys.stderr) or 2)
if task == "broken" or task == "flaky" and not again:
    sys.exit(print("a line before\\nout of luck", file=sys.stderr) or 1)
if task == "slow" and not again:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
(folder / "metrics.jsonl").write_text(json.dumps({"step": 1000, "seed": 1}) + "\\n")
result = {"seeds": {"1": {"last": 7.0}}, "metric": "score", "threads": os.environ.get("OMP_NUM_THREADS")}
(folder / "result.json").write_text(json.dumps(result))
"""
OUTCOMES = ("fine", "bad", "broken", "flaky", "unwritable", "well")


@pytest.fixture
def add_fake(tmp_path, monkeypatch):
    """Adds an experiment of the fake script; the directory of its runs."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def add(name: str, tasks: Iterable[str]) -> Path:
        settings = tuple(Setting(task, "x", str(script)) for task in tasks)
        monkeypatch.setitem(EXPERIMENTS, name, Experiment(name, "", "", settings, seeds=1))
        return tmp_path / "runs"

    return add


def attempts(runs: Path, task: str) -> int:
    """By the fake script's output."""
    lines = {"bad": "no such task", "broken": "out of luck", "flaky": "out of luck"}
    return (runs / task / "fake" / "seed-1" / "log.txt").read_text().count(lines[task])


@pytest.mark.parametrize("engine", [["--shard", "0/1"], []], ids=["alone", "ray"])
def test_a_failing_run_is_tried_again_shown_and_fails_the_sweep_whose_others_finish(engine, add_fake, capfd):
    runs = add_fake("fake", OUTCOMES)
    (runs / "unwritable").mkdir(parents=True)
    (runs / "unwritable" / "fake").write_text("a file, where a directory should be made")
    assert run.main(["--experiment", "fake", "--runs", str(runs), *engine]) == 1
    shown = capfd.readouterr()
    assert {task: attempts(runs, task) for task in ("bad", "broken", "flaky")} == {
        "bad": 1,
        "broken": 3,
        "flaky": 1,
    }
    done = {path.parts[-4] for path in runs.glob("*/fake/seed-1/result.json")}
    assert done == {"fine", "flaky", "well"}
    for folder, line, code in (("bad", "no such task", 2), ("broken", "out of luck", 1)):
        assert re.search(rf"failed: .*{folder}/fake/seed-1\n(    .*\n)*    .*{line}", shown.err)
        assert re.search(rf"failed: .*{folder}/fake/seed-1, attempt \d: exit code {code}", shown.out)
    assert re.search(r"failed: .*unwritable/fake/seed-1, attempt 3: .*Not a directory", shown.out)
    assert "3 of 6 runs are done" in shown.out
    assert re.search(r"done: .*fine/fake/seed-1, score 7.0", shown.out)
    script, run_dir = runs.parent / "fake.py", runs / "fine/fake/seed-1"
    command = f"python {script} --env-id fine --seed 1 --run-dir {run_dir}\n"
    assert (run_dir / "command.txt").read_text() == command
    assert json.loads((run_dir / "result.json").read_text())["threads"] == "1"


def test_what_is_done_is_not_run_again(add_fake, capfd):
    runs = add_fake("fake", ["fine"])
    base = ["--experiment", "fake", "--runs", str(runs), "--shard", "0/1"]
    assert run.main(base) == 0
    before = (runs / "fine/fake/seed-1/result.json").stat().st_mtime_ns
    assert run.main(base) == 0
    assert (runs / "fine/fake/seed-1/result.json").stat().st_mtime_ns == before
    assert "1 runs in" in capfd.readouterr().out


def test_an_attempt_waits_for_the_process_of_the_one_before(add_fake, tmp_path):
    """A process that inherited log.txt from an attempt given up for dead still holds the run."""
    runs = add_fake("fake", ["fine"])
    (x,) = run.runs_of(EXPERIMENTS["fake"], runs, None, 1, [])
    x.directory.mkdir(parents=True)
    wait = f"import fcntl, os, time; fcntl.flock(1, fcntl.LOCK_EX); open('{tmp_path}/held', 'w')\n"
    wait += f"while not os.path.exists('{tmp_path}/go'): time.sleep(0.05)\nprint('the orphan ends')"
    with open(x.directory / "log.txt", "ab") as log:
        orphan = subprocess.Popen([sys.executable, "-c", wait], stdout=log)
    wait_for(lambda: (tmp_path / "held").exists())
    code = "import sys; from pathlib import Path; from benchmark.sweep import run\n"
    code += f"sys.exit(run.attempt(run.Run(Path({str(x.directory)!r}), {x.command!r}), 1))"
    second = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    opened = lambda: [x.resolve().name for x in Path(f"/proc/{second.pid}/fd").iterdir()]
    wait_for(lambda: second.poll() is not None or "log.txt" in opened())
    assert not (x.directory / "command.txt").exists()
    (tmp_path / "go").touch()
    assert orphan.wait() == second.wait() == 0 and x.done()


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_script_dies_with_its_sweep_which_then_goes_on(how, add_fake, tmp_path):
    runs = add_fake("fake", ["slow"])
    sweep = f"""
import sys
from benchmark.sweep.experiments import EXPERIMENTS, Experiment, Setting
from benchmark.sweep import run
EXPERIMENTS["fake"] = Experiment("fake", "", "", (Setting("slow", "x", {str(tmp_path / "fake.py")!r}),), 1)
sys.exit(run.main(["--experiment", "fake", "--runs", {str(runs)!r}, "--shard", "0/1"]))
"""
    driver = subprocess.Popen([sys.executable, "-c", sweep], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))  # fmt: skip
    run_dir = runs / "slow/fake/seed-1"
    wait_for(
        lambda: (run_dir / "pid").exists() and (run_dir / "pid").read_text() or driver.poll() is not None
    )
    os.kill(driver.pid, how)
    _, error = driver.communicate()
    wait_for(lambda: not alive(int((run_dir / "pid").read_text())))
    if how != signal.SIGKILL:
        command = f"python -m benchmark.sweep.run --experiment fake --runs {runs} --shard 0/1"
        assert driver.returncode == 130 and command in error
    assert run.main(["--experiment", "fake", "--runs", str(runs), "--shard", "0/1"]) == 0  # by --resume
    assert (run_dir / "result.json").exists()


def test_the_share_of_a_run_that_is_done(tmp_path):
    x = run.Run(tmp_path, ())
    assert run.fraction(x) == 0
    (tmp_path / "config.json").write_text('{"pretrain_steps": 100, "train_steps": 300, "alpha": 1}')
    assert run.fraction(x) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 50}\n{"step": 100}\n{"st')
    assert run.fraction(x) == 0.25
    (tmp_path / "result.json").touch()
    assert run.fraction(x) == 1


def test_a_directory_with_another_run_is_refused(add_fake, capsys):
    runs = add_fake("fake", ["fine"])
    assert run.main(["--experiment", "fake", "--runs", str(runs), "--shard", "0/1"]) == 0
    with pytest.raises(SystemExit, match="2"):
        run.main(["--experiment", "fake", "--runs", str(runs), "--shard", "0/1", "--flags", "--alpha 3"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is another run; choose another --runs" in error


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--experiment", "tabel1"], "invalid choice: 'tabel1'"),
        (["--experiment", "local", "--shard", "3/3"], "argument --shard"),
        (["--experiment", "local", "--seeds", "0"], "argument --seeds"),
        (["--experiment", "local", "--only", "nothing"], "has nothing in its path"),
        (["--experiment", "local", "--flags=--seed 3"], "--flags: --seed is set by local for DTQL"),
        (["--experiment", "local", "--flags=--eval_only=x"], "--flags: --eval-only is set by local for DTQL"),
        (["--experiment", "table3", "--flags=--pretrain_steps=9"],
         "--flags: --pretrain-steps is set by table3 for no pretraining"),
        (["--experiment", "srpo_fig6", "--flags=--baseline"], "--flags: --baseline is set by srpo_fig6"),
        (["--experiment", "local", "--shard", "0/2", "--gpus-per-run", "1"], "not with --gpus-per-run"),
        (["--experiment", "local", "--shard", "0/2", "--address", "x:1"], "not with --gpus-per-run"),
    ],
)  # fmt: skip
def test_bad_flags_end_with_one_line(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(flags)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


# ------------------------------------------------------------------------------------------ a script, killed
def test_a_run_that_is_killed_resumes_to_the_same_metrics(tmp_path):
    """In the middle, by kill -9 of the sweep."""
    flags = "--pretrain-steps 5 --train-steps 60 --eval-episodes 0 --checkpoint-every 5"
    base = ["--flags", flags, *"--experiment local --only dtql_gaussian/ --seeds 1 --shard 0/1".split()]
    start = lambda runs: subprocess.Popen(
        [sys.executable, "-m", "benchmark.sweep.run", *base, "--runs", str(runs)], cwd=ROOT,
        env=script_env(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    name = "local_reacher_wander-v0/dtql_gaussian/seed-1"
    assert fork_script("dtql_gaussian.py", *flags.split(), "--run-dir", "whole", cwd=tmp_path).returncode == 0
    driver = start(tmp_path / "cut")
    wait_for(lambda: (tmp_path / "cut" / name / "checkpoint.pt").exists() or driver.poll() is not None)
    driver.kill()
    driver.wait()
    assert not (tmp_path / "cut" / name / "result.json").exists()
    assert start(tmp_path / "cut").wait() == 0
    whole, cut = ((tmp_path / x / "metrics.jsonl").read_text().splitlines() for x in ("whole", f"cut/{name}"))
    timeless = lambda lines: [json.loads(x) | {"steps_per_second": 0} for x in lines]
    assert timeless(whole) == timeless(cut) and len(whole) > 0
