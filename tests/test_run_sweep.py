"""Experiments as command lines, and the engine that runs them: alone, and on a Ray cluster of two nodes."""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tyro
from helpers import ROOT, script_env

sys.path.insert(0, str(ROOT))
from benchmark import entropy, experiments, run
from benchmark.experiments import EXPERIMENTS, Experiment, Setting

RUNS = {  # processes of each experiment with one seed each
    "table1": 26 * 5, "table2": 4, "table3": 3 * 2 * 5, "table4": 0, "table5": 3 * 2 * 5, "fig7": 3 * 2 * 5,
    "table6": 6 * 2 * 5, "table7": 26, "fig5": 6 * 2 * 5, "srpo_table1": 15 * 5, "srpo_fig6": 3 * 4 * 5,
    "srpo_fig10": 3 * 5 * 5, "local": 4 * 5, "local_sets": 6 * 2 * 5, "local_pretrain": 2 * 5,
    "local_entropy": 3 * 5, "local_omega": 4 * 5, "local_beta": 5 * 5,
}  # fmt: skip


def commands(capsys, *argv: str) -> list[str]:
    assert run.main([*argv, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


# ----------------------------------------------------------------------------------------------- experiments
def test_every_experiment_has_as_many_runs_as_its_table_has_cells_and_seeds():
    made = {
        name: list(run.runs_of(experiment, ROOT / "runs", None, 1, 1.0, []))
        for name, experiment in EXPERIMENTS.items()
    }
    assert {name: len(runs) for name, runs in made.items()} == RUNS
    directories = [x.directory for runs in made.values() for x in runs]
    assert len(set(directories)) == len(directories)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_is_one_that_its_script_takes(name):
    for setting in EXPERIMENTS[name].settings:
        one = Experiment("x", "", "", (setting,))
        (made,) = run.runs_of(one, ROOT / "runs", 5, 5, 1.0, [])
        python, script, *flags = shlex.split(made.command_line().partition(" && ")[0])
        assert python == "python" and (ROOT / script).exists()
        module = experiments.load(script)
        args = tyro.cli(module.Args, args=flags)
        module.resolve(args)
        assert args.env_id == setting.task and args.seed == 1 and args.num_seeds == 5
        counts = {flag: getattr(args, flag[2:].replace("-", "_")) for flag in experiments.steps(setting)}
        assert counts == experiments.steps(setting) and len(counts) == len(module.PHASES) + 1


def test_the_commands_of_the_local_experiment_are_the_scripts_defaults(capsys):
    flags, where = "--env-id local/hopper/medium-v0 --seed 1", "runs/local/local_hopper_medium-v0"
    assert commands(capsys, "--experiment", "local", "--seeds", "1") == [
        f"python dtql_gaussian.py {flags} --run-dir {where}/dtql/seed-1",
        f"python dtql_implicit.py {flags} --run-dir {where}/dtql-implicit/seed-1",
        f"python kl_distill.py {flags} --run-dir {where}/kl/seed-1",
        f"python srpo.py {flags} --run-dir {where}/srpo/seed-1",
    ]


def test_seeds_of_one_process(capsys):
    lines = commands(capsys, "--experiment", "local", "--only", "/dtql/", "--seeds-per-run", "2")
    seeds = [
        re.search(r"--seed (\d)(?: --num-seeds (\d))? --run-dir \S*/seed-(\d)$", x).groups() for x in lines
    ]
    assert seeds == [("1", "2", "1"), ("3", "2", "3"), ("5", None, "5")]


def test_a_budget_is_in_the_flags_and_in_the_directory(capsys):
    (line,) = commands(capsys, "--experiment", "local_pretrain", "--only", "no-pre", "--seeds", "1",
                       "--budget", "0.25")  # fmt: skip
    assert line == (
        "python dtql_gaussian.py --env-id local/hopper/medium-v0 --seed 1 --pretrain-steps 0 "
        "--train-steps 3000 --eval-every 750 "
        "--run-dir runs/budget-0.25/local_pretrain/local_hopper_medium-v0/no-pretraining/seed-1"
    )


def test_a_flag_takes_the_place_of_what_the_budget_gives(capsys):
    flags = ["--budget", "0.25", "--flags=--no-compile --eval_every 99"]
    (line,) = commands(capsys, "--experiment", "local", "--only", "/dtql/", "--seeds", "1", *flags)
    assert " --pretrain-steps 2000 --train-steps 3000 --no-compile --eval_every 99 --run-dir " in line


def test_what_experiments_have_in_common_is_trained_once(capsys):
    """Table 6's DTQL is Table 1's, Figure 7's runs are those of Table 5, of which half are Table 1's."""
    assert len(commands(capsys, "--experiment", "table1", "table6")) == 5 * (26 + 6)
    assert commands(capsys, "--experiment", "table5", "fig7") == commands(capsys, "--experiment", "table5")
    assert len(commands(capsys, "--experiment", "table1", "table5", "fig7")) == 5 * (26 + 3)


def test_shards_are_disjoint_and_together_the_experiment(capsys):
    everything = commands(capsys, "--experiment", "table6", "local")
    shards = [commands(capsys, "--experiment", "table6", "local", "--shard", f"{i}/7") for i in range(7)]
    assert sorted(sum(shards, [])) == sorted(everything)
    assert len(set(everything)) == len(everything) == 80
    assert {len(shard) for shard in shards} == {11, 12}


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table5", "table6", "table7", "srpo_table1"])
def test_every_cell_of_a_table_has_the_papers_number(name):
    experiment = EXPERIMENTS[name]
    numbers = experiment.paper()
    for setting in experiment.settings:
        for measure in set(experiment.measures) - {"curve"}:
            value, _ = numbers[setting.task, setting.label][measure]
            assert value > 0


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
        ("fig7", "walker2d-medium-v2", "DTQL", "score", (89.4, None)),
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


def test_table_4_is_the_scripts_settings_and_a_difference_fails(capsys, monkeypatch):
    assert run.main(["--experiment", "table4"]) == 0
    assert "234 settings of 26 tasks, 0 differ" in capsys.readouterr().out
    tasks = experiments.load("dtql_gaussian.py").TASKS
    monkeypatch.setitem(tasks, "pen-human-v1", (1499.0, *tasks["pen-human-v1"][1:]))
    assert run.main(["--experiment", "table4"]) == 1
    assert "pen-human-v1: alpha 1500 (dtql_gaussian.py: 1499)" in capsys.readouterr().out


def test_the_entropy_of_a_squashed_gaussian_is_its_integral():
    mean, std, high = torch.tensor([0.3]), torch.tensor([0.8]), torch.tensor([0.4])
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    a = torch.linspace(-0.4, 0.4, 400_002, dtype=torch.float64)[1:-1]
    z = torch.arctanh(a / 0.4)
    normal = torch.distributions.Normal(mean.double(), std.double())
    density = normal.log_prob(z) - torch.log(0.4 * (1 - (a / 0.4) ** 2))
    expected = -(density.exp() * density).sum() * (a[1] - a[0])
    assert entropy.entropy(mean, std, high, noise).item() == pytest.approx(expected.item(), abs=0.01)


# ---------------------------------------------------------------------------------- the engine, a fake script
FAKE = """
import json, os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
task, folder = flags["--env-id"], pathlib.Path(flags["--run-dir"])
if task == "early":  # an interrupt of run.py, while this script has not begun
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)
folder.mkdir(parents=True, exist_ok=True)
again = (folder / "config.json").exists()
(folder / "config.json").write_text(json.dumps({"train_steps": 1000}))
if task == "bad":
    sys.exit(print("bad: no such task", file=sys.stderr) or 2)
if task == "broken" or task == "flaky" and not again:
    sys.exit(print("a line before\\nout of luck", file=sys.stderr) or 1)
if flags.get("--eval-episodes") == "0":  # a probe: fastest in total with two copies
    time.sleep(1)  # until all are there
    speed = {1: 100, 2: 70, 4: 20}[len([x for x in folder.parent.iterdir() if x.is_dir()])]
    lines = [{"step": 500 * i, "seed": 1, "steps_per_second": speed if i > 2 else 1} for i in (1, 2, 3)]
else:
    lines = [{"step": 1000, "seed": 1, "eval/normalized_score": 7.0}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\\n" for x in lines))
(folder / "result.json").write_text(json.dumps({"threads": os.environ.get("OMP_NUM_THREADS")}))
"""
OUTCOMES = ("fine", "bad", "broken", "flaky", "unwritable", "well")


@pytest.fixture
def add_fake(tmp_path, monkeypatch):
    """Adds an experiment of the fake script: its name, tasks, and the label of all."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def add(name: str, tasks: Iterable[str], label: str = "x") -> Path:
        settings = tuple(Setting(task, label, str(script)) for task in tasks)
        monkeypatch.setitem(EXPERIMENTS, name, Experiment(name, "", "", settings, seeds=1))
        return tmp_path / "runs"

    return add


@pytest.fixture
def fake(add_fake):
    return add_fake("fake", OUTCOMES)


def runs_in(runs: Path, name: str = "fake") -> list[run.Run]:
    return list(run.runs_of(EXPERIMENTS[name], runs, None, 1, 1.0, []))


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster on this machine, whose head does no work; what runs in it can import benchmark/."""
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**27})
    nodes.add_node(num_cpus=2, object_store_memory=2**27)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture(params=["--shard", "--address"])
def engine(request) -> list[str]:
    here = request.param == "--shard"
    return ["--shard", "0/1"] if here else ["--address", request.getfixturevalue("cluster").address]


def attempts(runs: Path, task: str) -> int:
    return (runs / "fake" / task / "x" / "seed-1" / "log.txt").read_text().count(": process ")


@pytest.mark.xdist_group("cluster")  # one Ray cluster for all
def test_a_failing_run_is_tried_again_shown_and_fails_the_sweep_whose_others_finish(fake, engine, capfd):
    (fake / "fake").mkdir(parents=True)
    (fake / "fake" / "unwritable").write_text("a file, where a directory should be made")
    assert run.main(["--experiment", "fake", "--runs", str(fake), *engine]) == 1
    shown = capfd.readouterr()
    begun = {"fine": 1, "bad": 1, "broken": 3, "flaky": 2, "well": 1}
    assert {task: attempts(fake, task) for task in begun} == begun
    done = {path.parts[-4] for path in fake.glob("fake/*/x/seed-1/result.json")}
    assert done == {"fine", "flaky", "well"}
    for folder, line, code in (("bad", "no such task", 2), ("broken", "out of luck", 1)):
        assert re.search(rf"failed: .*fake/{folder}/x/seed-1\n(    .*\n)*    .*{line}", shown.err)
        assert re.search(rf"failed: .*fake/{folder}/x/seed-1, attempt \d: exit code {code}", shown.out)
    assert re.search(r"again: .*unwritable/x/seed-1, attempt 1: .*Not a directory", shown.out)
    assert re.search(r"failed: .*unwritable/x/seed-1, attempt 3: .*Not a directory", shown.out)
    assert "3 of 6 runs are done" in shown.out
    assert "--- " not in shown.out + shown.err  # run.py's notes in a log, which say the same
    assert re.search(r"done: .*fake/fine/x/seed-1 \(100%, score 7.0\)", shown.out)
    script, run_dir = fake.parent / "fake.py", fake / "fake/fine/x/seed-1"
    command = f"python {script} --env-id fine --seed 1 --run-dir {run_dir}\n"
    assert (run_dir / "command.txt").read_text() == command

    logs = {path: path.read_text() for path in fake.glob("fake/*/x/seed-1/log.txt") if path.parts[-4] in done}
    assert run.main(["--experiment", "fake", "--runs", str(fake), *engine, "--attempts", "1"]) == 1
    assert {path: path.read_text() for path in logs} == logs  # what is done is not run again
    assert (attempts(fake, "bad"), attempts(fake, "broken")) == (2, 4)


def test_an_attempt_waits_for_the_process_of_the_one_before(fake):
    """A process that inherited log.txt from an attempt given up for dead still holds the run."""
    (x, *_) = runs_in(fake)
    x.directory.mkdir(parents=True)
    with open(x.directory / "log.txt", "ab") as log:
        run.lock(log)
        orphan = subprocess.Popen(["sh", "-c", "sleep 2; echo the orphan ends"], stdout=log)
    assert run.attempt(x) == 0 and orphan.wait() == 0
    orphans, own = (x.directory / "log.txt").read_text().split("the orphan ends\n")
    assert "waiting for the process of an earlier attempt to end" in orphans
    assert own.count(": process ") == 1 and ": process " not in orphans


def test_an_interrupt_before_a_script_has_begun_ends_the_sweep(add_fake, capsys):
    runs = add_fake("fake", ["early", "fine"])
    assert run.main(["--experiment", "fake", "--runs", str(runs), "--shard", "0/1"]) == 130
    shown = capsys.readouterr()
    assert "to go on: python benchmark/run.py --experiment fake" in shown.err
    assert "again" not in shown.out and attempts(runs, "early") == 1
    assert not (runs / "fake" / "fine").exists()


def test_only_the_command_whose_file_is_missing_runs(fake):
    (x, *_) = runs_in(fake)
    then = ("python", "-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()")
    x = replace(x, then=(*then, str(x.directory / "then.json")), products=("result.json", "then.json"))
    assert run.attempt(x) == 0 and attempts(fake, "fine") == 2
    trained = (x.directory / "result.json").stat().st_mtime_ns
    (x.directory / "then.json").unlink()
    assert run.attempt(x) == 0 and attempts(fake, "fine") == 3
    assert x.done() and (x.directory / "result.json").stat().st_mtime_ns == trained


def test_a_run_of_two_experiments_is_trained_in_one_and_copied_to_the_other(add_fake, capsys):
    """Planned together or later; not if its flags differ."""
    runs = add_fake("fake", ["fine", "broken"])
    add_fake("other", ["broken", "fine", "well"], label="y")
    base = ["--runs", str(runs), "--shard", "0/1", "--attempts", "1"]
    assert run.main(["--experiment", "fake", "other", *base]) == 1
    shown = capsys.readouterr()
    assert "5 runs in" in shown.out and "3 to train, 2 copies" in shown.out
    assert "3 of 5 runs are done" in shown.out and shown.err.count("failed: ") == 1
    first, copy = (runs / name / "seed-1" for name in ("fake/fine/x", "other/fine/y"))
    log = (copy / "log.txt").read_text()
    assert ": process " not in log and f"copied from {first}" in log
    for name in ("config.json", "metrics.jsonl", "result.json", "command.txt"):
        assert (copy / name).read_bytes() == (first / name).read_bytes()
    assert not (runs / "other/broken/y/seed-1/log.txt").exists()  # what has failed is not tried once more

    add_fake("third", ["fine"])
    assert run.main(["--experiment", "third", *base]) == 0
    assert ": process " not in (runs / "third/fine/x/seed-1/log.txt").read_text()
    add_fake("fourth", ["fine"])
    assert run.main(["--experiment", "fourth", *base, "--flags=--alpha 3"]) == 0
    assert ": process " in (runs / "fourth/fine/x/seed-1/log.txt").read_text()


def test_without_ray_one_sees_how_it_stands_while_a_run_runs(fake, capsys):
    progress = [run.Progress(x) for x in runs_in(fake)[:1]]
    with run.View(progress, every=0) as view:
        run.train_here(progress, 1, view)
    assert "1 runs: 0 done, 1 running, 0 failed; left: ?\n  " in capsys.readouterr().out


def test_broken_lines_of_metrics_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\0\0\0\n{"st\n{"step": 2}\n{"step"')
    assert run.metrics(tmp_path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    "flags, machine, message",
    [
        ([], {"memory": 1.0}, "no machine of the Ray cluster has CPUs"),
        ([], {"GPU": 1.0}, "no machine of the Ray cluster has CPUs"),
        (["--runs-per-gpu", "2"], {"CPU": 4.0}, "--runs-per-gpu: Ray sees no GPU"),
    ],
)
def test_machines_that_cannot_run_it_end_with_one_line(flags, machine, message, capsys):
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": machine}])
    with pytest.raises(SystemExit, match="2"):
        run.share(ray, run.parse(["--experiment", "local", *flags]), None, None)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_directory_with_another_run_is_refused(fake, capsys):
    assert run.main(["--experiment", "fake", "--runs", str(fake), "--only", "fine", "--shard", "0/1"]) == 0
    with pytest.raises(SystemExit, match="2"):
        run.main(["--experiment", "fake", "--runs", str(fake), "--shard", "0/1", "--flags", "--alpha 3"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is another run; choose another --runs" in error


@pytest.mark.xdist_group("cluster")
def test_auto_keeps_the_number_with_most_steps_per_second_in_total(fake, cluster, capsys, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "fake", Experiment("fake", "", "", EXPERIMENTS["fake"].settings[:1], 1))
    flags = ["--runs", str(fake), "--address", cluster.address, "--runs-at-once", "auto"]
    assert run.main(["--experiment", "fake", *flags]) == 0
    shown = capsys.readouterr().out
    assert "auto: 1 at once with 2 threads each: 100.0 steps per second" in shown
    assert "auto: 2 at once with 1 threads each: 140.0 steps per second" in shown
    assert "auto: 2 runs per machine" in shown
    assert json.loads((fake / "fake/fine/x/seed-1/result.json").read_text()) == {"threads": "1"}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--experiment", "tabel1"], "invalid choice: 'tabel1'"),
        (["--experiment", "local", "--shard", "3/3"], "argument --shard"),
        (["--experiment", "local", "--budget", "0"], "argument --budget"),
        (["--experiment", "local", "--only", "nothing"], "has nothing in its path"),
        (["--experiment", "local", "--flags=--seed 3"], "--flags: --seed is set by local for DTQL"),
        (["--experiment", "local", "--flags=--no_resume"], "--flags: --resume is set by local for DTQL"),
        (["--experiment", "local_pretrain", "--budget", "0.5", "--flags=--pretrain_steps=9"],
         "--flags: --pretrain-steps is set by local_pretrain for no pretraining"),
        (["--experiment", "local_omega", "--flags=--baseline"], "--flags: --baseline is set by local_omega"),
        (["--experiment", "local", "--shard", "0/2", "--runs-at-once", "2"], "not with --runs-per-gpu"),
        (["--experiment", "local", "--shard", "0/2", "--address", "x:1"], "not with --runs-per-gpu"),
        (["--experiment", "local", "--runs-per-gpu", "2", "--runs-at-once", "2"], "give --runs-per-gpu or"),
    ],
)  # fmt: skip
def test_bad_flags_end_with_one_line(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(flags)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_entropy_without_a_run_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["entropy.py"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(entropy.__file__, run_name="__main__")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run directory" in error


# ------------------------------------------------------------------------- the engine, scripts, and accidents
SMALL = ("--no-compile --batch-size 128 --eval-candidates 1 --eval-episodes 1 --eval-every 60 "
         "--checkpoint-every 20")  # fmt: skip
TINY = ["--experiment", "local", "--seeds", "1", "--budget", "0.02", "--flags", SMALL]
RUN = "local/local_hopper_medium-v0/dtql/seed-1"
TIMEOUT = 600  # seconds, of what takes 10 on an idle machine


def start(runs: Path, *flags: str) -> subprocess.Popen:
    """run.py in the background of a shell that has no job control: with SIGINT ignored."""
    command = [sys.executable, str(ROOT / "benchmark/run.py"), *TINY, "--runs", str(runs), *flags]
    return subprocess.Popen(command, env=script_env(runs.parent), text=True, cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))  # fmt: skip


def process_of(run_dir: Path, driver: subprocess.Popen, number: int = 1) -> int:
    """The process of the n-th attempt at a run, once it is that far and a checkpoint has been written."""
    checkpoint = run_dir / "checkpoint.pt"
    written = lambda: checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    before = written()
    while driver.poll() is None:
        log = run_dir / "log.txt"
        found = re.findall(r": process (\d+)", log.read_text()) if log.exists() else []
        if len(found) >= number and written() > before:
            return int(found[number - 1])
        time.sleep(0.05)
    pytest.fail(f"the sweep ended before: {driver.communicate()}")


def children_of(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parent_of(pid: int) -> int:
    return int(re.search(r"PPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def metrics(run_dir: Path) -> list[dict]:
    """metrics.jsonl without the times in it."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    driver = start(runs, "--only", "/dtql/", "--shard", "0/1")
    out, err = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == 0, out + err
    return runs / RUN


def assert_equal_runs(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    seeds = [json.loads((x / "result.json").read_text())["seeds"] for x in (a, b)]
    assert seeds[0] == seeds[1]


@pytest.mark.xdist_group("cluster")
def test_a_worker_killed_and_then_a_node_leave_the_undisturbed_metrics(undisturbed, cluster, tmp_path):
    cluster.add_node(num_cpus=2, object_store_memory=2**27)
    run_dir = tmp_path / "runs" / RUN
    driver = start(tmp_path / "runs", "--only", "/dtql/", "--address", cluster.address)
    first = process_of(run_dir, driver)
    os.kill(parent_of(first), signal.SIGKILL)
    second = process_of(run_dir, driver, 2)
    assert not alive(first)  # the script died with its worker
    raylet = parent_of(parent_of(second))
    (node,) = [x for x in cluster.worker_nodes if x.all_processes["raylet"][0].process.pid == raylet]
    cluster.remove_node(node, allow_graceful=False)
    out, err = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == 0, out + err
    assert out.count("its worker died") == 2 and "1 of 1 runs are done" in out
    assert_equal_runs(undisturbed, run_dir)


@pytest.mark.xdist_group("undisturbed")
def test_the_entropy_of_a_run_is_that_of_its_saved_policy(undisturbed):
    entropy.main(undisturbed)
    written = json.loads((undisturbed / "entropy.json").read_text())
    assert written["states"] == entropy.STATES
    script = experiments.load("dtql_gaussian.py")
    saved = script.load_model(undisturbed / "model.pt", torch.device("cpu"))
    agent = script.load_agent(saved, script.saved_args(saved["config"]), torch.device("cpu"))
    dataset = script.load_dataset("local/hopper/medium-v0")
    mean, std = agent.policy(torch.from_numpy(dataset.transitions[None, :, : dataset.dims[0]]))
    policy = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, std), torch.distributions.TanhTransform(cache_size=1)
    )  # actions of Hopper lie in [-1, 1]
    torch.manual_seed(0)
    expected = -policy.log_prob(policy.sample()).sum(dim=-1).mean()
    assert written["seeds"] == {"1": pytest.approx(expected.item(), abs=0.05)}


@pytest.mark.xdist_group("undisturbed")
def test_after_the_head_and_its_driver_died_and_after_ctrl_c_the_sweep_goes_on(undisturbed, tmp_path):
    """The same command goes on, with a new head, where the first stopped; after Ctrl-C also without Ray."""
    runs, run_dir = tmp_path / "runs", tmp_path / "runs" / RUN
    driver = start(runs, "--only", "/dtql/")
    script = process_of(run_dir, driver)
    # The driver, then Ray's head and node, which are its own, and the worker: as when a machine goes out.
    for pid in (driver.pid, *children_of(driver.pid), parent_of(script)):
        os.kill(pid, signal.SIGKILL)
    driver.communicate(timeout=TIMEOUT)
    while alive(script):  # it dies with its worker
        time.sleep(0.05)
    assert not (run_dir / "result.json").exists()

    driver = start(runs, "--only", "/dtql/")
    process_of(run_dir, driver, 2)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == 130, out + err
    assert f"to go on: python benchmark/run.py {shlex.join(TINY)} --runs {runs} --only /dtql/" in err
    log = (run_dir / "log.txt").read_text()
    assert "interrupted at step" in log and log.count("resuming") == 1
    assert not (run_dir / "result.json").exists()

    driver = start(runs, "--only", "/dtql/", "--shard", "0/1")
    out, err = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == 0, out + err
    assert (run_dir / "log.txt").read_text().count("resuming") == 2
    assert_equal_runs(undisturbed, run_dir)
