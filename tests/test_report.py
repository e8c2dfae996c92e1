"""benchmark/sweep/report.py and stats.py: the statistics against rliable and by hand, and reports of made
runs whose numbers are known."""

import gzip
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from helpers import fork_script

from benchmark.sweep import experiments, report, stats
from benchmark.sweep.experiments import DTQL, EXPERIMENTS, KL, LOCAL, SRPO, Setting

HOPPER, WALKER = "hopper-medium-v2", "walker2d-medium-v2"
DTQL_HOPPER, KL_HOPPER = Setting(HOPPER, "", DTQL), Setting(HOPPER, "", KL)


# ---------------------------------------------------------------------------------------------- statistics
@pytest.fixture
def rliable():
    library = pytest.importorskip("rliable.library", reason="rliable==1.2.0, which needs pandas<3")
    metrics = pytest.importorskip("rliable.metrics")
    return library, metrics


def made_scores(seeds: int, tasks: int, rng_seed: int) -> np.ndarray:
    """[seed, task], whole numbers so that there are ties."""
    rng = np.random.default_rng(rng_seed)
    return np.round(rng.normal(50, 15, (seeds, tasks)) + 10 * np.arange(tasks))


def by_task(matrix: np.ndarray) -> stats.Scores:
    return list(np.moveaxis(matrix, -1, 0))


def rliables_samples(n: int, x: np.ndarray) -> stats.Scores:
    """What rliable resamples after np.random.seed(0), as stats' scores [n, seed] of each task."""
    random = np.random.RandomState(0)
    drawn = [x[random.choice(len(x), x.shape, replace=True), np.arange(x.shape[1])] for _ in range(n)]
    return by_task(np.stack(drawn))


@pytest.mark.parametrize("seeds, tasks", [(3, 1), (5, 1), (5, 4), (10, 3)])
def test_iqm_and_its_interval_are_rliables(rliable, seeds, tasks):
    library, metrics = rliable
    x = made_scores(seeds, tasks, 0)
    np.random.seed(0)
    point, ends = library.get_interval_estimates(
        {"x": x}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=300
    )
    assert stats.iqm(by_task(x)) == pytest.approx(point["x"][0], rel=1e-12)
    samples = rliables_samples(300, x)
    np.testing.assert_allclose(stats.interval(stats.iqm(samples)), ends["x"][:, 0], rtol=1e-12)


def test_our_own_resampling_gives_rliables_intervals_up_to_chance(rliable):
    library, metrics = rliable
    x = made_scores(5, 4, 4)
    np.random.seed(0)
    function = lambda x: np.array([metrics.aggregate_iqm(x)])
    ends = library.get_interval_estimates({"x": x}, function, reps=4000)[1]["x"][:, 0]
    ours = stats.interval(stats.iqm(stats.resample(by_task(x), np.random.default_rng(0))))
    np.testing.assert_allclose(ours, ends, atol=0.05 * (ends[1] - ends[0]))


@pytest.mark.parametrize("scores, expected", [
    ([[7.0]], 7), ([[1, 2, 6]], 3), ([[0, 10, 20, 90]], 15), ([[100, 1, 2, 3, -50]], 2),
    ([[0, 1, 2, 3], [4, 5, 6, 7]], 3.5), ([[0, 0], [8, 9, 10, 100, 100, 100]], 31.75),
])  # fmt: skip
def test_the_iqm_of_known_scores(scores, expected):
    assert stats.iqm([np.array(x, dtype=float) for x in scores]) == pytest.approx(expected)


def test_seeds_are_resampled_within_their_task():
    """Of tasks whose seeds agree every sample is the data; so their interval has no width."""
    scores = [np.full(5, 10.0), np.full(3, 90.0)]
    samples = stats.resample(scores, np.random.default_rng(0), 50)
    assert [x.shape for x in samples] == [(50, 5), (50, 3)]
    assert all((a == b).all() for a, b in zip(samples, scores))
    low, high = stats.interval(stats.iqm(samples))
    assert low == high == stats.iqm(scores)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    """Of normal scores, 10 seeds on each of 6 tasks, so that the IQM is of 60 scores."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        scores = by_task(rng.normal(50, 10, (10, 6)))
        low, high = stats.interval(stats.iqm(stats.resample(scores, rng, 500)))
        covered += low <= 50 <= high
    assert 0.88 <= covered / 200 <= 0.99


# --------------------------------------------------------------------------------------------- made runs
def write_run(
    root: Path, of: Setting, scores: dict[int, list[float]], zipped=False, metric="score", **changes
):
    """A run as the scripts write it, where run.py puts it; its folder. scores: of each seed at its
    evaluations; changes: of config.json."""
    config = experiments.args_of(of) | {"seed": min(scores), "num_seeds": len(scores)}
    config |= {"script": Path(of.script).name, "git_commit": "c0ffee" * 6, "dataset_sha256": "1"} | changes
    *before, last = (x for name, x in config.items() if name.endswith("_steps"))
    speeds, n = [(500, 50.0), (sum(before) + last, 100.0)], len(next(iter(scores.values())))
    lines = [{"step": step, "seed": x, "steps_per_second": speed} for step, speed in speeds for x in scores]
    for i in range(n):
        step = sum(before) + last * (i + 1) // n
        lines += [{"step": step, "seed": x, "eval/normalized_score": y[i]} for x, y in scores.items()]
    result = config | {
        "seeds": {seed: {"last": x[-1], "best": max(x)} for seed, x in scores.items()}, "metric": metric,
        "physics": "MuJoCo", "train_seconds": 7200.0, "eval_seconds": 1800.0, "peak_memory_mib": None,
    }  # fmt: skip
    folder = root / of.folder / f"seed-{min(scores)}"
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    if zipped:
        (folder / "metrics.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "metrics.jsonl").write_text(text)
    return folder


def write_local(root: Path, script: str, scores: dict, **options) -> Path:
    return write_run(root, Setting(LOCAL, "", script), scores, metric="Minari score", **options)


def make_report(root: Path) -> tuple[str, str]:
    """The texts of report.md and report.html."""
    report.main([str(root)])
    return (root / "report.md").read_text(), (root / "report.html").read_text()


def rows_of(markdown: str) -> list[dict[str, str]]:
    """The rows of all tables, by column."""
    rows, lines = [], markdown.splitlines()
    cells = lambda line: [x.strip() for x in re.split(r"(?<!\\)\|", line)[1:-1]]
    for above, line in zip(lines, lines[1:]):
        if line.startswith("|:-"):
            header = cells(above)
        elif line.startswith("| ") and above.startswith("|"):
            rows.append(dict(zip(header, cells(line), strict=True)))
    return rows


def row_of(markdown: str, **values: str) -> dict[str, str]:
    """The only row that has these values in these columns."""
    (row,) = [row for row in rows_of(markdown) if values.items() <= row.items()]
    return row


def score_of(markdown: str, task: str, algorithm: str) -> dict[str, str]:
    """The only row of scores of this algorithm on this task."""
    (row,) = [
        x for x in rows_of(markdown) if "last" in x and (x["task"], x["algorithm"]) == (task, algorithm)
    ]
    return row


def test_known_scores_become_known_numbers_beside_the_papers(tmp_path):
    write_run(tmp_path, DTQL_HOPPER, {1: [70.0, 10.0], 2: [0.0, 20.0], 3: [5.0, 60.0]})
    write_run(tmp_path, KL_HOPPER, {1: [15.0, 12.0]}, zipped=True)
    write_run(tmp_path, KL_HOPPER, {2: [9.0, 14.0], 3: [1.0, 16.0]})
    write_run(tmp_path, Setting(WALKER, "", DTQL), {1: [80.0], 2: [84.0], 3: [88.0]})
    write_run(tmp_path, Setting(WALKER, "", KL), {1: [1.0], 2: [3.0], 3: [5.0]})
    markdown, html = make_report(tmp_path)
    table1, table5 = markdown.split("## DTQL, Table 5")
    for task, label, *numbers in (
        (HOPPER, "DTQL", "30.0 ± 26.5", "50.0 ± 26.5", "10, 20, 60", "99.6"),
        (HOPPER, "KL", "14.0 ± 2.0", "15.0 ± 1.0", "12, 14, 16", "15.0"),
        (WALKER, "DTQL", "84.0 ± 4.0", "84.0 ± 4.0", "80, 84, 88", "89.4"),
        (WALKER, "KL", "3.0 ± 2.0", "3.0 ± 2.0", "1, 3, 5", "3.4"),
    ):
        row = score_of(table5, task, label)
        columns = ["seeds", "last", "best", "last, each seed", "paper (DTQL, Table 5)"]
        assert [row[x] for x in columns] == ["3", *numbers]
        assert all(f"<td>{x}</td>" in html for x in numbers)
    means = row_of(table5, task="mean of the 2 tasks")
    assert list(means.items())[1:] == [("KL, ours", "8.5"), ("DTQL, ours", "57.0"), ("DTQL, paper", "94.5"),
                                       ("KL, paper", "9.2")]  # fmt: skip
    assert row_of(table5, algorithm="DTQL", tasks="2")["IQM"] == "61.0"  # of 20, 60, 80, 84: less 10 and 88
    for at_once in ("1", "2"):  # two processes
        row = row_of(table5, task=HOPPER, algorithm="KL", **{"seeds at once": at_once})
        assert (row["training h"], row["s per 1000 steps"], row["evaluating h"]) == ("2.00", "10.00", "0.50")
    assert score_of(table1, HOPPER, "DTQL")["last"] == "30.0 ± 26.5"  # one run, shown in both tables
    assert html.count("<svg") == markdown.count("![") == len(list((tmp_path / "report").glob("*.svg"))) > 0
    assert not re.search(r"<script|<link|<img|src=|href=\"(?!#)", html)  # nothing from elsewhere


@pytest.mark.parametrize("name, file, label", [
    ("table1", "table1_d4rl.csv", "DTQL"), ("srpo_table1", "srpo_table1_d4rl.csv", "SRPO"),
])  # fmt: skip
def test_every_paper_number_stands_in_its_own_row(name, file, label, tmp_path):
    """Against the CSV files read here by hand."""
    for of in EXPERIMENTS[name].settings:
        write_run(tmp_path, of, {1: [1.0]})
    (section,) = [x for x in report.collect(tmp_path) if x.experiment.name == name]
    table = report.score_table(section).set_index("task")
    assert len(table) == len(EXPERIMENTS[name].settings)
    expected = {x["task"]: x["score"] for x in experiments.read(file) if x["algorithm"] == label}
    for task, shown in table[f"paper ({EXPERIMENTS[name].source})"].items():
        if task in expected:
            assert shown.startswith(f"{float(expected[task]):.1f}")


def test_numbers_that_are_not_comparable_are_marked(tmp_path):
    full = {1: [50.0], 2: [51.0], 3: [52.0]}
    write_run(tmp_path, Setting(HOPPER, "", DTQL, ("--pretrain-steps", "0")), full)
    write_run(tmp_path, DTQL_HOPPER, full, train_steps=1000, eval_episodes=2, alpha=7.0)
    write_local(tmp_path, DTQL, full)
    markdown, html = make_report(tmp_path)
    table3 = markdown.partition("## DTQL, Table 3")[2].partition("\n## ")[0]
    row = score_of(table3, HOPPER, "no pretraining")
    assert (row["last"], row["† because"]) == ("51.0 ± 1.0", "")  # 0 steps are the setting's own
    row = score_of(table3, HOPPER, "pretraining")
    assert row["last"] == "51.0 ± 1.0†"
    assert row["† because"] == "2 of 10 eval episodes; 1000 of 1000000 train steps; alpha 7.0"
    row = score_of(markdown, LOCAL, "DTQL")
    assert (row["last"], row["† because"]) == ("51.0 ± 1.0†", "Minari score, not D4RL's")
    assert score_of(markdown, LOCAL, "the dataset's mean episode")["last"] == "11.4"
    assert "1000 of 1000000 train steps" in html


def test_numbers_of_two_units_are_in_no_statistic_together(tmp_path):
    """A task with D4RL's score, one with a dataset's own references, one with raw returns."""
    for seed in (1, 2, 3):
        write_run(tmp_path, DTQL_HOPPER, {seed: [30.0]})
        write_run(tmp_path, Setting("mine/scored-v0", "", DTQL), {seed: [50.0]}, metric="Minari score")
        write_run(tmp_path, Setting("mine/raw-v0", "", DTQL), {seed: [4000.0]}, metric="return")
    markdown, _ = make_report(tmp_path)
    assert {row["IQM"] for row in rows_of(markdown) if "IQM" in row} == {"30.0", "50.0"}
    assert {row["mean"] for row in rows_of(markdown) if "IQM" in row} == {"30.0", "50.0"}
    row = score_of(markdown, "mine/raw-v0", "dtql_gaussian")
    assert (row["metric"], row["last"], row["† because"]) == ("return", "4000.0 ± 0.0†", "return, not D4RL's")
    assert "Raw returns, for there are no reference scores, in no aggregate: mine/raw-v0." in markdown


def test_an_unfinished_run_is_listed_and_not_counted(tmp_path):
    write_run(tmp_path, DTQL_HOPPER, {1: [50.0], 2: [51.0]})
    folder = write_run(tmp_path, DTQL_HOPPER, {3: [1.0]})
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 500, "seed": 3}\n{"step": 70500, "seed": 3, "q_lo')
    never = tmp_path / HOPPER / "kl_distill" / "seed-1"
    never.mkdir(parents=True)
    (never / "command.txt").write_text("python kl_distill.py\n")
    markdown, html = make_report(tmp_path)
    assert score_of(markdown, HOPPER, "DTQL")["last"] == "50.5 ± 0.7"
    row = row_of(markdown, script="dtql_gaussian.py")
    assert (row["seeds"], row["last step"], row["folder"]) == ("3", "500 of 1050000", str(folder))
    for text in (markdown, unescape(html)):
        assert f"{folder}/metrics.jsonl cannot be read to its end" in text
        assert f"{never} is not counted: " in text
        assert f"Fewer seeds than the experiment's 5: DTQL on {HOPPER} (2)." in text
        assert "Unfinished and not counted: 1 runs, listed at the end." in text
        assert text.count("none: fewer than 3 seeds") == 1  # instead of the IQM's interval


def test_a_seed_that_is_there_twice_is_counted_once_and_both_paths_are_shown(tmp_path):
    first = write_run(tmp_path / "a", DTQL_HOPPER, {1: [50.0], 2: [52.0]})
    second = write_run(tmp_path / "b", DTQL_HOPPER, {2: [99.0], 3: [54.0]})
    markdown, html = make_report(tmp_path)
    assert score_of(markdown, HOPPER, "DTQL")["last"] == "52.0 ± 2.0"
    what = f"There twice: DTQL on {HOPPER}, seed 2; not counted from {second}"
    assert what in markdown and what in html
    assert row_of(markdown, seeds="1, 2")["folder"] == str(first)
    assert row_of(markdown, seeds="3", commit="c0ffeec0ff")["folder"] == str(second)


def test_commits_arguments_and_physics_that_differ_in_a_table_are_told(tmp_path):
    write_run(tmp_path, DTQL_HOPPER, {1: [50.0]}, git_commit="a" * 40)
    write_run(tmp_path, DTQL_HOPPER, {2: [50.0]}, alpha=1.0)
    markdown, _ = make_report(tmp_path)
    assert "The runs are of 2 commits: aaaaaaaaaa (1 runs), c0ffeec0ff (1 runs)." in markdown
    assert f'The runs of DTQL on {HOPPER} differ in their arguments: {{"alpha": 1.0}} and {{}}' in markdown
    assert "in their physics" not in markdown
    result = json.loads((tmp_path / DTQL_HOPPER.folder / "seed-2" / "result.json").read_text())
    (tmp_path / DTQL_HOPPER.folder / "seed-2" / "result.json").write_text(
        json.dumps(result | {"physics": "x"})
    )
    assert f"The runs of DTQL on {HOPPER} differ in their physics: MuJoCo and x" in make_report(tmp_path)[0]


@pytest.mark.parametrize("file, content, what", [
    ("result.json", "{", "is not counted: "), ("result.json", "[1]", "is not counted: "),
    ("config.json", "{}", "is not counted: config.json has no env_id, num_seeds, script, seed"),
    ("metrics.jsonl", '{"step": 1, "se', "metrics.jsonl cannot be read to its end"),
])  # fmt: skip
def test_a_broken_file_is_a_note_and_no_traceback(file, content, what, tmp_path):
    folder = write_run(tmp_path, DTQL_HOPPER, {1: [50.0]})
    (folder / file).write_text(content)
    markdown, html = make_report(tmp_path)
    assert what in markdown and what in unescape(html)


def test_without_metrics_the_scores_are_there(tmp_path):
    for seed in (1, 2, 3):
        folder = write_local(tmp_path, KL, {seed: [10.0, 20.0]})
    (folder / "metrics.jsonl").unlink()
    markdown, _ = make_report(tmp_path)
    assert score_of(markdown, LOCAL, "KL")["last"] == "20.0 ± 0.0†"
    assert f"{folder}/metrics.jsonl cannot be read to its end" in markdown
    assert "score over training" in markdown  # of the other seeds


def test_a_cut_off_gz_file_is_read_as_far_as_it_goes(tmp_path):
    folder = write_local(tmp_path, DTQL, {1: [*range(2000)]}, zipped=True)
    content = (folder / "metrics.jsonl.gz").read_bytes()
    (folder / "metrics.jsonl.gz").write_bytes(content[: len(content) // 2])
    run = report.read_run(folder, notes := [])
    assert 100 < len(run.lines) < 2000 and "metrics.jsonl.gz cannot be read to its end" in notes[0]


def test_text_from_files_is_shown_as_text(tmp_path):
    evil = "x/<script>alert(1)</script>|`$\\frac$"
    folder = write_run(tmp_path, Setting(evil, "", SRPO), {1: [1.0, 2.0]})
    (folder / "command.txt").write_text("python srpo.py --env-id '<img src=x onerror=alert(1)>' | tee `log`")
    markdown, html = make_report(tmp_path)
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html
    assert "<script" not in markdown and "<img" not in markdown
    rows = [row for row in rows_of(markdown) if "script" in row.get("task", "")]
    assert len(rows) == 3  # no cell was split


def test_runs_of_no_experiment_stand_by_what_is_their_own(tmp_path):
    of = Setting(WALKER, "", experiments.IMPLICIT)
    write_run(tmp_path / "one", of, {1: [50.0]})
    write_run(tmp_path / "two", of, {1: [60.0]}, alpha=2.0, precondition=True)
    markdown, _ = make_report(tmp_path)
    assert score_of(markdown, WALKER, "dtql_implicit")["last"] == "50.0"
    row = score_of(markdown, WALKER, "dtql_implicit, alpha 2.0, precondition True")
    assert (row["last"], row["† because"]) == ("60.0†", "alpha 2.0; precondition True")
    assert "There twice" not in markdown


def test_times_stand_beside_the_papers(tmp_path):
    (of,) = [x for x in EXPERIMENTS["table2"].settings if x.label == "SRPO"]
    write_run(tmp_path, of, {1: [1.0]})
    row = row_of(make_report(tmp_path)[0], algorithm="SRPO", runs="1")
    assert (row["training h"], row["paper, h"]) == ("2.00", "9.42")
    assert (row["s per 1000 steps"], row["paper, s"]) == ("10.00", "24.71")


def test_the_best_score_is_of_the_steps_that_all_seeds_were_evaluated_at(tmp_path):
    write_local(tmp_path, KL, {1: [99.0, 10.0, 20.0, 30.0]})
    write_local(tmp_path, KL, {2: [40.0, 50.0]})
    row = score_of(make_report(tmp_path)[0], LOCAL, "KL")
    assert row["last"].startswith("40.0 ± 14.1") and row["best"].startswith("40.0 ± 14.1")  # 30, 50; not 99


def test_an_experiment_of_whose_runs_all_stand_before_is_not_shown_again(tmp_path):
    """DTQL's runs of Table 1 are also in Tables 5 and 6, which need another algorithm's."""
    write_run(tmp_path, DTQL_HOPPER, {1: [1.0]})
    assert [x.experiment.name for x in report.collect(tmp_path)] == ["table1"]
    write_run(tmp_path, KL_HOPPER, {1: [1.0]})
    assert [x.experiment.name for x in report.collect(tmp_path)] == ["table1", "table5"]


def test_the_readmes_block(tmp_path, capsys):
    for script, scores in ((DTQL, (70, 75, 80, 85, 90)), (KL, (20, 20, 20, 20, 20))):
        for seed, score in enumerate(scores, 1):
            write_local(tmp_path, script, {seed: [99.0, score]})
    report.main([str(tmp_path), "--readme", "local"])
    block = capsys.readouterr().out
    assert row_of(block, policy="the dataset's mean episode")["score, mean ± std over seeds"] == "11.4"
    row = row_of(block, policy="DTQL", **{"each seed": "70, 75, 80, 85, 90"})
    assert row["score, mean ± std over seeds"] == "80.0 ± 7.9"
    assert re.fullmatch(r"80\.0 \(7\d\.\d to 8\d\.\d\)", row["IQM (95 % interval)"])
    assert row_of(block, policy="KL")["IQM (95 % interval)"] == "20.0 (20.0 to 20.0)"
    assert "5 seeds, 50 episodes for each, commit c0ffeec0ff" in block
    assert not (tmp_path / "report.md").exists()


def test_the_report_of_the_same_files_is_the_same(tmp_path):
    write_local(tmp_path, DTQL, {1: [10.0, 20.0], 2: [1.0, 2.0], 3: [3.0, 5.0]})
    assert make_report(tmp_path) == make_report(tmp_path)


@pytest.mark.parametrize("flags, what", [
    (["."], "has no run in it"), (["missing"], "has no run in it"),
    ([".", "--readme", "local"], "has no run in it"),
])  # fmt: skip
def test_a_folder_without_runs_is_one_line_and_exit_code_2(flags, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        report.main(flags)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and what in error and not list(tmp_path.iterdir())


def test_a_run_of_the_script_itself_is_reported_as_it_said(tmp_path):
    flags = ["--pretrain-steps", 2, "--train-steps", 2, "--batch-size", 8, "--num-seeds", 3]
    flags += ["--eval-episodes", 1, "--eval-candidates", 1, "--run-dir", "runs/mine"]
    ran = fork_script("dtql_gaussian.py", *flags, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    markdown, _ = make_report(tmp_path / "runs")
    said = re.search(r"score (-?[\d.]+ ± [\d.]+) \(last, 3 seeds", ran.stdout + ran.stderr)[1]
    row = score_of(markdown, LOCAL, "dtql_gaussian, eval_candidates 1, batch_size 8")
    assert (row["seeds"], row["last"], row["metric"]) == ("3", f"{said}†", "Minari score")
    assert "2 of 4000 train steps" in row["† because"]
