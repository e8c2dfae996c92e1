"""benchmark/report.py, runs.py and stats.py: the statistics against rliable and by hand, and reports of made
runs whose numbers are known."""

import gzip
import json
import re
import sys
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, run_script

sys.path.insert(0, str(ROOT))
from benchmark import experiments, report, runs, stats  # noqa: E402
from benchmark.experiments import EXPERIMENTS, Setting  # noqa: E402


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


def rliables_samples(n: int, *matrices: np.ndarray) -> list[stats.Scores]:
    """What rliable resamples after np.random.seed(0), as stats' scores [n, seed] of each task."""
    random = np.random.RandomState(0)
    drawn = [[] for _ in matrices]
    for _ in range(n):
        for samples, x in zip(drawn, matrices):
            samples.append(x[random.choice(len(x), x.shape, replace=True), np.arange(x.shape[1])])
    return [by_task(np.stack(samples)) for samples in drawn]


@pytest.mark.parametrize("seeds, tasks", [(3, 1), (5, 1), (5, 4), (10, 3)])
def test_iqm_and_its_interval_are_rliables(rliable, seeds, tasks):
    library, metrics = rliable
    x = made_scores(seeds, tasks, 0)
    np.random.seed(0)
    point, ends = library.get_interval_estimates(
        {"x": x}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=300
    )
    assert stats.iqm(by_task(x)) == pytest.approx(point["x"][0], rel=1e-12)
    (samples,) = rliables_samples(300, x)
    np.testing.assert_allclose(stats.interval(stats.iqm(samples)), ends["x"][:, 0], rtol=1e-12)


def test_the_performance_profile_and_its_band_are_rliables(rliable):
    library, _ = rliable
    x, thresholds = made_scores(5, 3, 1), np.linspace(0, 100, 21)
    np.random.seed(0)
    share, band = library.create_performance_profile({"x": x}, thresholds, reps=200)
    np.testing.assert_allclose(stats.profile(by_task(x), thresholds), share["x"], rtol=1e-12)
    (samples,) = rliables_samples(200, x)
    np.testing.assert_allclose(stats.interval(stats.profile(samples, thresholds)), band["x"], rtol=1e-12)


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_probability_of_improvement_and_its_interval_are_rliables(rliable, tasks):
    library, metrics = rliable
    x, y = made_scores(5, tasks, 2), made_scores(4, tasks, 3) - 5
    probability = lambda x, y: np.array([metrics.probability_of_improvement(x, y)])
    np.random.seed(0)
    point, ends = library.get_interval_estimates({"x, y": [x, y]}, probability, reps=200)
    assert stats.improvement(by_task(x), by_task(y)) == pytest.approx(point["x, y"][0], rel=1e-12)
    samples = rliables_samples(200, x, y)
    np.testing.assert_allclose(stats.interval(stats.improvement(*samples)), ends["x, y"][:, 0], rtol=1e-12)


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


@pytest.mark.parametrize("x, y, expected", [
    ([[1, 2]], [[0, 0.5]], 1), ([[0, 0.5]], [[1, 2]], 0), ([[3, 3]], [[3, 3]], 0.5),
    ([[1, 2, 3]], [[2]], 0.5), ([[1, 2, 3]], [[1, 1]], 5 / 6), ([[1], [1]], [[0], [1]], 0.75),
])  # fmt: skip
def test_the_probability_of_improvement_of_known_scores(x, y, expected):
    x, y = ([np.array(z, dtype=float) for z in scores] for scores in (x, y))
    assert stats.improvement(x, y) == pytest.approx(expected)
    assert stats.improvement(y, x) == pytest.approx(1 - expected)


def test_the_profile_of_known_scores():
    scores = [np.array([10.0, 30.0]), np.array([20.0, 50.0])]
    np.testing.assert_allclose(stats.profile(scores, np.array([0, 10, 20, 49, 50])), [1, 0.75, 0.5, 0.25, 0])


def test_seeds_are_resampled_within_their_task():
    """Of tasks whose seeds agree every sample is the data; so their interval has no width."""
    scores = [np.full(5, 10.0), np.full(3, 90.0)]
    samples = stats.resample(scores, np.random.default_rng(0), 50)
    assert [x.shape for x in samples] == [(50, 5), (50, 3)]
    assert all((a == b).all() for a, b in zip(samples, scores))
    for statistic in (stats.iqm, lambda x: stats.profile(x, np.array([50.0]))):
        low, high = stats.interval(statistic(samples))
        assert low == high == statistic(scores)


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
    folder: Path, setting: Setting, scores: dict[int, list[float]], zipped=False, **changes
) -> Path:
    """A run as the scripts write it; scores: of each seed at its evaluations. changes: of config.json."""
    script = experiments.load(setting.script)
    args = script.Args(env_id=setting.task, seed=min(scores), num_seeds=len(scores))
    config = asdict(args) | script.settings_of(setting.task)
    given = zip(setting.flags[::2], setting.flags[1::2])
    config |= {flag[2:].replace("-", "_"): json.loads(x) for flag, x in given}
    config |= {
        "script": Path(setting.script).name,
        "git_commit": "c0ffee" * 6,
        "dataset_sha256": "1",
    } | changes
    steps = sum(x for k, x in config.items() if k.endswith("_steps"))
    lines = [{"step": 500, "seed": seed, "q_loss": 1.0, "steps_per_second": 50.0} for seed in scores]
    lines += [{"step": steps, "seed": seed, "q_loss": 1.0, "steps_per_second": 100.0} for seed in scores]
    n = len(next(iter(scores.values())))
    for i in range(n):
        step = steps * (i + 1) // n
        lines += [{"step": step, "seed": x, "eval/normalized_score": y[i]} for x, y in scores.items()]
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "config.json").write_text(json.dumps(config))
    if zipped:
        (folder / "metrics.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "metrics.jsonl").write_text(text)
    result = {
        "script": config["script"], "env_id": config["env_id"], "metric": "score", "episodes": 10,
        "seeds": {seed: {"last": x[-1], "best": max(x)} for seed, x in scores.items()}, "steps": steps,
        "steps_per_second": 100.0, "train_seconds": 7200.0, "eval_seconds": 1800.0,
        "peak_memory_mib": 512.0, "device": "x86_64, 1 threads",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def setting(name: str, task: str, label: str) -> Setting:
    return next(x for x in EXPERIMENTS[name].settings if (x.task, x.label) == (task, label))


def write_experiment(root: Path, name: str, task: str, label: str, scores: dict, **options) -> Path:
    of = setting(name, task, label)
    return write_run(experiments.run_dir(root, name, of, min(scores)), of, scores, **options)


def make_report(root: Path, monkeypatch, *flags: str) -> tuple[str, str]:
    """The texts of report.md and report.html."""
    monkeypatch.setattr(sys, "argv", ["report.py", str(root), *flags])
    report.main()
    return (root / "report.md").read_text(), (root / "report.html").read_text()


def rows_of(markdown: str, *start: str) -> list[list[str]]:
    """The table rows that begin with these cells."""
    rows = [line[2:-2].split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    return [row for row in rows if tuple(row[: len(start)]) == start]


def test_known_scores_become_known_numbers_beside_the_papers(tmp_path, monkeypatch):
    hopper, walker = "hopper-medium-v2", "walker2d-medium-v2"
    write_experiment(tmp_path, "table5", hopper, "DTQL", {1: [70.0, 10.0], 2: [0.0, 20.0], 3: [5.0, 60.0]})
    write_experiment(tmp_path, "table5", hopper, "KL", {1: [15.0, 12.0]}, zipped=True)
    write_experiment(tmp_path, "table5", hopper, "KL", {2: [9.0, 14.0], 3: [1.0, 16.0]})
    write_experiment(tmp_path, "table5", walker, "DTQL", {1: [80.0], 2: [84.0], 3: [88.0]})
    write_experiment(tmp_path, "table5", walker, "KL", {1: [1.0], 2: [3.0], 3: [5.0]})
    markdown, html = make_report(tmp_path, monkeypatch)
    for task, label, *numbers in (
        (hopper, "DTQL", "30.0 ± 26.5", "50.0 ± 26.5", "10, 20, 60", "99.6"),
        (hopper, "KL", "14.0 ± 2.0", "15.0 ± 1.0", "12, 14, 16", "15.0"),
        (walker, "DTQL", "84.0 ± 4.0", "84.0 ± 4.0", "80, 84, 88", "89.4"),
        (walker, "KL", "3.0 ± 2.0", "3.0 ± 2.0", "1, 3, 5", "3.4"),
    ):
        row = [task, label, "3", *numbers]
        assert rows_of(markdown, *row)
        assert "<tr>" + "".join(f"<td>{x}</td>" for x in row) in html
    assert "paper (DTQL, Table 5)" in markdown and "paper (DTQL, Table 5)" in html
    assert rows_of(
        markdown, "mean of the 2 tasks", "8.5", "57.0", "94.5", "9.2"
    )  # KL, DTQL; the paper's DTQL, KL
    assert rows_of(markdown, "DTQL", "2", "3")[0][3] == "61.0"  # of 20, 60, 80, 84: less 10 and 88
    assert rows_of(markdown, "KL over DTQL", "3 against 3", "0.17")  # hopper: 3 of 9 pairs, walker2d: none
    for at_once in "12":  # two processes
        assert rows_of(markdown, hopper, "KL", "1", at_once, "2.00", "10.00", "0.50", "512")
    assert html.count("<svg") == markdown.count("![") == len(list((tmp_path / "report").glob("*.svg")))
    assert not re.search(r"<script|<link|<img|src=|href=\"(?!#)", html)  # nothing from elsewhere


@pytest.mark.parametrize(
    "name", ["table1", "table3", "table5", "table6", "srpo_table1", "fig5", "srpo_fig10"]
)
def test_every_paper_number_stands_in_its_own_row(name, tmp_path):
    """Against the CSV files read here by hand, where a file has a row for each task and algorithm."""
    experiment = EXPERIMENTS[name]
    comparison = runs.Comparison(experiment)
    for of in experiment.settings:
        run = runs.read_run(write_run(tmp_path / of.task / experiments.slug(of.label), of, {1: [1.0]}))
        comparison.add(run, of)
    numbers = {k: x for k, x in experiment.paper().items() if "score" in x}
    shown = {(row[0], row[1]): row[6] for row in report.score_table(comparison, numbers).rows}
    assert len(shown) == len(experiment.settings)
    file, labels = {
        "table1": ("table1_d4rl.csv", {"DTQL": "DTQL"}),
        "srpo_table1": ("srpo_table1_d4rl.csv", {"SRPO": "SRPO"}),
        "fig5": ("table1_d4rl.csv", {"DTQL": "entropy 1"}),
    }.get(name, (None, {}))
    for row in experiments.read(file) if file else ():
        if (row["task"], labels.get(row["algorithm"])) in shown:
            assert shown[row["task"], labels[row["algorithm"]]].startswith(f"{float(row['score']):.1f}")
    for (task, label), text in shown.items():
        assert text == report.published(numbers, task, label, "score")


def test_numbers_that_are_not_comparable_are_marked(tmp_path, monkeypatch):
    hopper = "hopper-medium-v2"
    full = {1: [50.0], 2: [51.0], 3: [52.0]}
    write_experiment(tmp_path, "table3", hopper, "no pretraining", full)
    write_experiment(tmp_path, "table3", hopper, "pretraining", full, train_steps=1000, eval_episodes=2)
    write_experiment(tmp_path, "local", experiments.LOCAL, "DTQL", full)
    minari = Setting("mujoco/hopper/medium-v0", "x", experiments.DTQL)
    write_run(tmp_path / "mine", minari, full)
    markdown, html = make_report(tmp_path, monkeypatch)
    (row,) = rows_of(markdown, hopper, "no pretraining", "3", "51.0 ± 1.0", "51.0 ± 1.0")
    assert row[-2:] == ["87.6", ""]  # 0 pretraining steps are the setting's own
    (row,) = rows_of(markdown, hopper, "pretraining", "3", "51.0 ± 1.0†")
    assert row[-2:] == ["99.6", "1000 of 1000000 train steps; 2 of 10 eval episodes"]
    assert rows_of(markdown, experiments.LOCAL, "DTQL", "3", "51.0 ± 1.0†")[0][-1] == "local data"
    assert rows_of(markdown, minari.task, "dtql\\_gaussian", "3", "51.0 ± 1.0†")[0][-1] == "Minari data"
    assert rows_of(markdown, experiments.LOCAL, "the dataset's mean episode", "", "51.2")
    assert "1000 of 1000000 train steps" in html


def test_an_unfinished_run_is_listed_and_not_counted(tmp_path, monkeypatch):
    scores = {1: [50.0], 2: [51.0]}
    write_experiment(tmp_path, "table5", "hopper-medium-v2", "DTQL", scores)
    folder = write_experiment(tmp_path, "table5", "hopper-medium-v2", "DTQL", {3: [1.0]})
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 500, "seed": 3}\n{"step": 70500, "seed": 3, "q_lo')
    never = tmp_path / "table5" / "hopper-medium-v2" / "kl" / "seed-1"
    never.mkdir(parents=True)
    (never / "command.txt").write_text("python kl_distill.py\n")
    markdown, html = make_report(tmp_path, monkeypatch)
    (row,) = rows_of(markdown, "hopper-medium-v2", "DTQL", "2")
    assert row[3] == "50.5 ± 0.7"
    assert rows_of(markdown, "hopper-medium-v2", "dtql\\_gaussian.py", "3", "500 of 1050000", f"`{folder}`")
    for text in (markdown.replace("\\_", "_"), unescape(html)):
        assert f"{folder}: line 2 of metrics.jsonl is cut off; left out" in text
        assert f"{never} has no config.json: it never began; not counted" in text
        assert "Fewer seeds than the experiment's 5: DTQL on hopper-medium-v2 (2)." in text
        assert "Unfinished and not counted: 1 runs, listed at the end." in text
        assert text.count("none: fewer than 3 seeds") == 1  # instead of the IQM's interval


def test_a_seed_that_is_there_twice_is_counted_once_and_both_paths_are_shown(tmp_path, monkeypatch):
    first = write_experiment(tmp_path / "a", "table5", "hopper-medium-v2", "DTQL", {1: [50.0], 2: [52.0]})
    second = write_experiment(tmp_path / "b", "table5", "hopper-medium-v2", "DTQL", {2: [99.0], 3: [54.0]})
    markdown, html = make_report(tmp_path, monkeypatch)
    assert rows_of(markdown, "hopper-medium-v2", "DTQL", "3", "52.0 ± 2.0")
    what = f"There twice: DTQL on hopper-medium-v2, seed 2; counted from {first}, not from {second}"
    assert what in markdown.replace("\\_", "_") and what in html
    (one,) = rows_of(markdown, "hopper-medium-v2", "DTQL", "1, 2")
    (other,) = rows_of(markdown, "hopper-medium-v2", "DTQL", "3", "`c0ffeec0ff`")
    assert one[-1] == f"`{first}`" and other[-1] == f"`{second}`"


def test_commits_and_arguments_that_differ_in_a_table_are_told(tmp_path, monkeypatch):
    write_experiment(tmp_path, "table5", "hopper-medium-v2", "DTQL", {1: [50.0]}, git_commit="a" * 40)
    write_experiment(tmp_path, "table5", "hopper-medium-v2", "DTQL", {2: [50.0]}, alpha=1.0)
    text = make_report(tmp_path, monkeypatch)[1]
    assert "The runs are of 2 commits: aaaaaaaaaa (1 runs), c0ffeec0ff (1 runs)." in text
    assert re.search(r"The runs of DTQL on hopper-medium-v2 differ in their arguments: .*alpha.*1\.0", text)


def test_a_run_in_another_settings_folder_is_not_counted(tmp_path, monkeypatch):
    of = setting("table5", "hopper-medium-v2", "DTQL")
    write_run(experiments.run_dir(tmp_path, "table5", replace(of, label="KL"), 1), of, {1: [50.0]})
    text = make_report(tmp_path, monkeypatch)[1]
    assert "is of dtql_gaussian.py on hopper-medium-v2 by its config.json" in text and "50.0" not in text


@pytest.mark.parametrize("file, content, what", [
    ("result.json", "{", "result.json cannot be read"),
    ("result.json", "[1]", "result.json cannot be read (result.json is not a run&#39;s)"),
    ("config.json", "{}", "config.json cannot be read (config.json is not a run&#39;s); not counted"),
    ("metrics.jsonl", "3\n", "line 1 of metrics.jsonl is not one of a run&#39;s; left out"),
    ("metrics.jsonl", '{"step": 1050000, "seed": 1, "eval/normalized_score": 49.0}\n',
     "seed 1: result.json&#39;s last score is not the last evaluation in metrics.jsonl"),
])  # fmt: skip
def test_a_broken_file_is_a_note_and_no_traceback(file, content, what, tmp_path, monkeypatch):
    folder = write_experiment(tmp_path, "table5", "hopper-medium-v2", "DTQL", {1: [50.0]})
    (folder / file).write_text(content)
    assert what in make_report(tmp_path, monkeypatch)[1]


def test_a_cut_off_gz_file_is_read_as_far_as_it_goes(tmp_path):
    folder = write_experiment(tmp_path, "local", experiments.LOCAL, "DTQL", {1: [*range(2000)]}, zipped=True)
    content = (folder / "metrics.jsonl.gz").read_bytes()
    (folder / "metrics.jsonl.gz").write_bytes(content[: len(content) // 2])
    run = runs.read_run(folder)
    assert 100 < len(run.lines) < 2000 and "metrics.jsonl.gz cannot be read beyond line" in run.notes[0]


def test_text_from_files_is_shown_as_text(tmp_path, monkeypatch):
    evil = "x/<script>alert(1)</script>|`$\\frac$"
    folder = write_run(tmp_path / "evil", Setting(evil, "x", experiments.SRPO), {1: [1.0, 2.0]})
    (folder / "command.txt").write_text("python srpo.py --env-id '<img src=x onerror=alert(1)>' | tee `log`")
    markdown, html = make_report(tmp_path, monkeypatch)
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html
    assert not any(re.search(r"(?<!\\)<", x) for x in markdown.splitlines() if "`python" not in x)
    rows, headers = (
        [len(re.split(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith(start)]
        for start in ("| x/", "| task")
    )
    assert rows == headers and len(rows) == 3  # scores, cost, where from: no cell was split


def test_runs_of_no_experiment_stand_by_what_is_their_own(tmp_path, monkeypatch):
    of = Setting("walker2d-medium-v2", "x", experiments.DTQL)
    write_run(tmp_path / "one", of, {1: [50.0]})
    write_run(tmp_path / "two", of, {1: [60.0]}, alpha=2.0, lr_decay=False)
    markdown, _ = make_report(tmp_path, monkeypatch)
    assert rows_of(markdown, of.task, "dtql\\_gaussian", "1", "50.0")
    row, *_ = rows_of(markdown, of.task, "dtql\\_gaussian, lr\\_decay False, alpha 2.0", "1")
    assert row[3] == "60.0" and "twice" not in markdown
    command = f"`python dtql_gaussian.py --env-id {of.task} --seed 1 --num-seeds 1 --no-lr-decay --alpha 2.0`"
    assert command in markdown


def test_entropies_and_times_stand_beside_the_papers(tmp_path, monkeypatch):
    folder = write_experiment(tmp_path, "fig5", "antmaze-umaze-v0", "entropy 0", {1: [90.0], 2: [92.0]})
    (folder / "entropy.json").write_text('{"unit": "nats", "seeds": {"1": -8.0, "2": -9.0}}')
    folder = write_experiment(tmp_path, "table2", "antmaze-umaze-v0", "SRPO", {1: [1.0]})
    markdown, _ = make_report(tmp_path, monkeypatch)
    assert rows_of(markdown, "antmaze-umaze-v0", "entropy 0", "2", "-8.50 ± 0.71")
    (row,) = rows_of(markdown, "antmaze-umaze-v0", "SRPO", "1", "1", "2.00")
    assert row[4:8] == ["2.00", "9.42", "10.00", "24.71"]
    acting = markdown.partition("Time to act")[2]
    for label, candidates, theirs in (("DTQL", 1024, "0.35"), ("SRPO", 1, "0.22")):
        (row,) = rows_of(acting, label)
        assert row[1].endswith(f"({candidates})") and row[3] == theirs


def test_a_reduced_sweep_does_not_mix_with_the_full_one(tmp_path, monkeypatch):
    full, half = ({seed: [x] for seed in (1, 2, 3)} for x in (80.0, 40.0))
    write_experiment(tmp_path, "local", experiments.LOCAL, "DTQL", full)
    write_experiment(tmp_path / "budget-0.5", "local", experiments.LOCAL, "DTQL", half, train_steps=6000)
    markdown, _ = make_report(tmp_path, monkeypatch)
    before, reduced = markdown.split("(budget-0.5 of all steps)")
    assert rows_of(before, experiments.LOCAL, "DTQL", "3", "80.0 ± 0.0†")
    (row,) = rows_of(reduced, experiments.LOCAL, "DTQL", "3", "40.0 ± 0.0†")
    assert "6000 of 12000 train steps" in row[-1] and "There twice" not in markdown


def test_other_settings_than_the_tasks_own_are_marked(tmp_path, monkeypatch):
    write_experiment(tmp_path, "table5", "hopper-medium-v2", "DTQL", {1: [70.0]}, alpha=7.0)
    write_experiment(tmp_path, "fig5", "antmaze-umaze-v0", "entropy 0", {1: [90.0]})
    markdown, _ = make_report(tmp_path, monkeypatch)
    assert rows_of(markdown, "hopper-medium-v2", "DTQL", "1", "70.0†")[0][-1] == "alpha 7.0"
    assert rows_of(markdown, "antmaze-umaze-v0", "entropy 0", "1", "90.0")  # the setting's own flag


def test_the_best_score_is_of_the_steps_that_all_seeds_were_evaluated_at(tmp_path, monkeypatch):
    write_experiment(tmp_path, "local", experiments.LOCAL, "KL", {1: [99.0, 10.0, 20.0, 30.0]})
    write_experiment(tmp_path, "local", experiments.LOCAL, "KL", {2: [40.0, 50.0]})
    markdown, _ = make_report(tmp_path, monkeypatch)
    row, *_ = rows_of(markdown, experiments.LOCAL, "KL", "2")
    assert row[3].startswith("40.0 ± 14.1") and row[4].startswith("40.0 ± 14.1")  # 30 and 50, not 99


def test_broken_side_files_cost_no_scores(tmp_path, monkeypatch):
    for seed in (1, 2, 3):
        folder = write_experiment(tmp_path, "local", experiments.LOCAL, "KL", {seed: [10.0, 20.0]})
    (folder / "entropy.json").write_text("{")
    (folder / "metrics.jsonl").unlink()
    markdown, _ = make_report(tmp_path, monkeypatch)
    assert rows_of(markdown, experiments.LOCAL, "KL", "3", "20.0 ± 0.0†")
    assert "entropy.json cannot be read" in markdown and "no metrics.jsonl" in markdown
    assert "score over training" in markdown  # of the other seeds


def test_the_readmes_block(tmp_path, monkeypatch, capsys):
    for label, scores in (("DTQL", (70, 75, 80, 85, 90)), ("KL", (20, 20, 20, 20, 20))):
        for seed, score in enumerate(scores, 1):
            write_experiment(tmp_path, "local", experiments.LOCAL, label, {seed: [99.0, score]})
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path), "--readme"])
    report.main()
    block = capsys.readouterr().out
    assert rows_of(block, "the dataset's mean episode", "51.2")
    (row,) = rows_of(block, "DTQL", "80.0 ± 7.9")
    assert re.fullmatch(r"80\.0 \(7\d\.\d to 8\d\.\d\)", row[2]) and row[3:] == [
        "70, 75, 80, 85, 90",
        "99.0 ± 0.0",
    ]
    assert rows_of(block, "KL", "20.0 ± 0.0", "20.0 (20.0 to 20.0)")
    assert "5 seeds, 10 episodes for each, commit c0ffeec0ff" in block
    assert not (tmp_path / "report.md").exists()


def test_the_report_of_the_same_files_is_the_same(tmp_path, monkeypatch):
    scores = {1: [10.0, 20.0], 2: [1.0, 2.0], 3: [3.0, 5.0]}
    write_experiment(tmp_path, "local", experiments.LOCAL, "DTQL", scores)
    assert make_report(tmp_path, monkeypatch) == make_report(tmp_path, monkeypatch)


@pytest.mark.parametrize("flags, what", [
    (["."], "has no run in it"), (["missing"], "is not a folder"), ([".", "--readme"], "has no run in it"),
])  # fmt: skip
def test_a_folder_without_runs_is_one_line_and_exit_code_2(flags, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        report.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and what in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_the_script_itself_is_reported_as_it_said(tmp_path, monkeypatch):
    flags = ["--no-compile", "--pretrain-steps", 2, "--train-steps", 2, "--batch-size", 8, "--num-seeds", 3]
    flags += ["--eval-episodes", 1, "--eval-candidates", 1, "--eval-workers", 0, "--run-dir", "runs/mine"]
    ran = run_script("dtql_gaussian.py", *flags, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    markdown, _ = make_report(tmp_path / "runs", monkeypatch)
    said = re.search(r"score (-?[\d.]+ ± [\d.]+) \(last, 3 seeds", ran.stdout)[1]
    (row,) = [x for x in rows_of(markdown, "local/hopper/medium-v0") if x[3] == f"{said}†"]
    assert row[2] == "3" and "2 of 12000 train steps; 1 of 10 eval episodes" in row[-1]
