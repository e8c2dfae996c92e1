"""Tables and pictures from the files of runs, as Markdown and as one HTML page that needs no network.

    python -m benchmark.sweep.report runs        # writes runs/report.md, report.html and report/*.svg
    python -m benchmark.sweep.report benchmark/results/local --readme    # prints one experiment's table

A run is a folder with config.json, metrics.jsonl (or .jsonl.gz) and result.json, anywhere in the given one.
Those of benchmark/sweep/run.py stand under their experiments, beside the papers' numbers; all others at the
end, by task, script and the arguments that are not the script's own for the task.

A score is the mean over the evaluation episodes of one training seed, and every spread is over seeds. The
headline is the last evaluation; the best one stands in a column of its own. Scores of different metrics are
never averaged together, and raw returns, of datasets without reference scores, not at all.
"""

import argparse
import functools
import gzip
import io
import itertools
import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmark.sweep import stats
from benchmark.sweep.experiments import EXPERIMENTS, ROOT, Experiment, Setting, args_of

INTRODUCTION = (
    "A score is the mean over the evaluation episodes of one training seed; every spread is over seeds. The "
    "headline is the last evaluation's score. The best one, which nobody knows before a run is over, stands "
    "apart; it is of the steps at which all seeds were evaluated. Intervals are 95 %, by bootstrap: seeds "
    "drawn anew within each task. With a handful of seeds on a single task they are too narrow, and 1.00 to "
    "1.00 says only that no two seeds crossed."
)
MIN_SEEDS = 3  # for an interval
COMPARED = (
    "score",
    "Minari score",
)  # metrics that are averaged; the scale of a raw return is its task's
BOOKKEEPING = {  # arguments that decide neither what is trained nor how its last model is measured
    "env_id", "seed", "num_seeds", "device", "compile", "tf32", "eval_every", "run_dir", "checkpoint_every",
    "resume", "eval_only", "capture_video", "track",
}  # fmt: skip
OTHER = Experiment("other", "Other runs", "Runs that belong to no experiment of benchmark/sweep", ())
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"], "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe and Ito's
MARKERS = "osD^vP"
COLUMNS = ["task", "label", "seed", "last", "metric", "because", "run"]  # of Section.seeds
Blocks = list[tuple[str, pd.DataFrame | str]]  # caption, and a table or a picture as SVG


# ------------------------------------------------------------------------------------------- files of a run
@dataclass(eq=False)
class Run:
    """The directory of one process, which trains one seed or several."""

    path: Path
    config: dict  # and all of result.json, if it is finished
    lines: list[dict]  # of metrics.jsonl
    notes: list[str]  # what is wrong with its files

    @property
    def seeds(self) -> range:
        return range(self.config["seed"], self.config["seed"] + self.config["num_seeds"])

    @property
    def finished(self) -> bool:
        return "seeds" in self.config

    @property
    def commit(self) -> str:
        return str(self.config.get("git_commit"))[:10]

    def curve(self, seed: int) -> pd.Series:
        """The score at each evaluated step."""
        key = "eval/normalized_score"
        return pd.Series(
            {x["step"]: x[key] for x in self.lines if x["seed"] == seed and key in x}, dtype=float
        )


def command_of(run: Run) -> str:
    """As run.py wrote it; a run by hand has its arguments in config.json."""
    path = run.path / "command.txt"
    return path.read_text().strip() if path.exists() else ""


def read_json(path: Path, keys: set[str]) -> dict:
    """The object in a file; ValueError if it is none or lacks a key, FileNotFoundError."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not keys <= set(content):
        raise ValueError(f"{path.name} is not a run's")
    return content


def read_run(folder: Path) -> Run:
    """ValueError if config.json does not say what it is of. Without a readable result.json it is unfinished;
    a line of metrics.jsonl that cannot be read is left out. Both are noted."""
    run = Run(folder, read_json(folder / "config.json", {"script", "env_id", "seed", "num_seeds"}), [], [])
    path = next(iter(folder.glob("metrics.jsonl*")), folder / "metrics.jsonl")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = json.loads(text)
                    line["step"], line["seed"]
                    run.lines.append(line)
                except (ValueError, TypeError, KeyError):
                    run.notes.append(f"line {number} of {path.name} is none of a run's, or cut off: left out")
    except (EOFError, OSError) as error:
        run.notes.append(f"{path.name} cannot be read to its end ({error})")
    try:
        run.config |= read_json(folder / "result.json", {"seeds", "metric", "train_seconds", "eval_seconds"})
    except ValueError as error:
        run.notes.append(f"result.json cannot be read ({error})")
    except FileNotFoundError:
        pass
    for seed, scores in run.config.get("seeds", {}).items() if run.lines else ():
        curve = run.curve(int(seed))
        if not len(curve) or not np.isclose(curve.iloc[-1], scores["last"]):
            run.notes.append(f"seed {seed}: the last score of result.json is not that of {path.name}")
    return run


def script_of(run: Run) -> str | None:
    """Where its script lies in the repository."""
    paths = (Path(folder, run.config["script"]) for folder in ("", "benchmark/baselines"))
    return next((str(path) for path in paths if (ROOT / path).exists()), None)


def differences(run: Run, setting: Setting | None = None) -> dict:
    """The arguments that are not those of the setting, else the script's own for the task."""
    script = script_of(run)
    if script is None:
        return {}
    usual = args_of(setting or Setting(run.config["env_id"], "", script))
    return {name: x for name, x in run.config.items()
            if name in usual and name not in BOOKKEEPING and x != usual[name]}  # fmt: skip


def reasons(run: Run, setting: Setting) -> str:
    """Why its number is not comparable to the paper's; empty if it is."""
    found = [] if run.config["metric"] in ("score", None) else [f"{run.config['metric']}, not D4RL's"]
    if script_of(run) is None:
        return "; ".join([*found, "another script"])
    usual = args_of(setting)
    for name, x in differences(run, setting).items():
        fewer = (name.endswith("_steps") or name == "eval_episodes") and x < usual[name]
        found.append(f"{x} of {usual[name]} {name}".replace("_", " ") if fewer else f"{name} {x}")
    return "; ".join(found)


# ------------------------------------------------------------------------------------------------ experiments
@dataclass
class Section:
    """The runs of one experiment, or all those of none. seeds: a row for each seed of a finished run."""

    name: str
    title: str
    experiment: Experiment
    runs: dict[Run, Setting]
    notes: list[str] = field(default_factory=list)  # what is missing, broken or mixed
    seeds: pd.DataFrame = field(default_factory=pd.DataFrame)
    blocks: Blocks = field(default_factory=list)

    @property
    def question(self) -> str:
        return self.experiment.question


def place_of(run: Run) -> tuple[str, Path]:
    """The budget that run.py reduced it to, or "", and the folder of its setting."""
    *_, budget, task, name, _ = ("",) * 4 + run.path.resolve().parts
    return budget if budget.startswith("budget-") else "", Path(task, name)


def own_setting(run: Run) -> Setting:
    """What a run outside of all experiments is of: by its arguments."""
    own = {x: y for x, y in differences(run).items() if not x.endswith("_steps") and x != "eval_episodes"}
    label = ", ".join([Path(run.config["script"]).stem, *(f"{x} {y}" for x, y in own.items())])
    flags = [text for x, y in own.items() for text in (
        [f"--{'' if y else 'no-'}{x.replace('_', '-')}"] if isinstance(y, bool)
        else [f"--{x.replace('_', '-')}", str(y)])]  # fmt: skip
    return Setting(run.config["env_id"], label, script_of(run) or run.config["script"], tuple(flags))


def collect(root: Path) -> list[Section]:
    """All runs in a folder: of each experiment that has some which none before it shows; then the others."""
    runs, notes = [], []
    for folder in sorted({path.parent for x in ("config.json", "command.txt") for path in root.rglob(x)}):
        try:
            runs.append(read_run(folder))
        except FileNotFoundError:
            notes.append(f"{folder} has no config.json: it never began; not counted")
        except ValueError as error:
            notes.append(f"{folder}/config.json cannot be read ({error}); not counted")
    sections, shown = [], set()
    for budget in sorted({place_of(run)[0] for run in runs}):
        for experiment in EXPERIMENTS.values():
            settings = {(budget, x.folder): x for x in experiment.settings}
            found = {run: settings[place_of(run)] for run in runs if place_of(run) in settings}
            found = {run: x for run, x in found.items() if matches(run, x)}
            if not set(found) <= shown:
                shown |= set(found)
                suffix = f" ({budget} of all steps)" if budget else ""
                name = "-".join(filter(None, (experiment.name, budget)))
                sections.append(Section(name, experiment.title + suffix, experiment, found))
    others = {run: own_setting(run) for run in runs if run not in shown}
    if others or not sections and notes:
        sections.append(Section(OTHER.name, OTHER.title, OTHER, others))
    for section in sections:
        count_seeds(section)
    if sections:
        sections[-1].notes += notes
    return sections


def matches(run: Run, setting: Setting) -> bool:
    return (run.config["script"], run.config["env_id"]) == (Path(setting.script).name, setting.task)


def count_seeds(section: Section) -> None:
    """Fills in seeds, each counted once, in the experiment's order, and notes what is wrong with them."""
    rows, notes, experiment = {}, section.notes, section.experiment
    for run, setting in section.runs.items():
        notes += [f"{run.path}: {note}" for note in run.notes]
        for seed in run.seeds if run.finished else ():
            key = setting.task, setting.label, seed
            if key in rows:
                notes.append(f"There twice: {setting.label} on {setting.task}, seed {seed}; counted from "
                             f"{rows[key]['run'].path}, not from {run.path}")  # fmt: skip
                continue
            last = run.config["seeds"].get(str(seed), {"last": np.nan})["last"]
            rows[key] = dict(zip(COLUMNS, (*key, last, run.config["metric"], reasons(run, setting), run)))
    order = {(x.task, x.label): i for i, x in enumerate(experiment.settings)}
    ordered = sorted(rows.values(), key=lambda x: (order.get((x["task"], x["label"]), 0), x["seed"]))
    section.seeds = seeds = pd.DataFrame(ordered, columns=COLUMNS)
    cells = seeds.groupby(["task", "label"], sort=False)
    counts = cells.size().to_dict()
    missing = [f"{label} on {task}" for task, label in order if (task, label) not in counts]
    enough = experiment.seeds if order else 0
    few = [f"{label} on {task} ({n})" for (task, label), n in counts.items() if n < enough]
    unfinished = [run for run in section.runs if not run.finished]
    if missing:
        notes.append(f"Without a finished run: {len(missing)} of {len(order)}, {', '.join(missing)}.")
    if unfinished:
        notes.append(f"Unfinished and not counted: {len(unfinished)} runs, listed at the end.")
    if few:
        notes.append(f"Fewer seeds than the experiment's {experiment.seeds}: {', '.join(few)}.")
    for (task, label), cell in cells:
        runs = cell["run"].unique()
        for what, kinds in (("arguments", {json.dumps(differences(run), sort_keys=True) for run in runs}),
                            ("dataset's SHA-256", {run.config.get("dataset_sha256") for run in runs}),
                            ("physics", {run.config.get("physics") for run in runs})):  # fmt: skip
            if len(kinds) > 1:
                kinds = " and ".join(sorted(map(str, kinds)))
                notes.append(f"The runs of {label} on {task} differ in their {what}: {kinds}")
    commits = pd.Series([run.commit for run in seeds["run"].unique()]).value_counts()
    if len(commits) > 1:
        counts = ", ".join(f"{x} ({n} runs)" for x, n in commits.items())
        notes.append(f"The runs are of {len(commits)} commits: {counts}.")
    if len(raw := seeds.loc[seeds["metric"] == "return", "task"].unique()):
        notes.append(f"Raw returns, for there are no reference scores, in no aggregate: {', '.join(raw)}.")


# -------------------------------------------------------------------------------------------------- numbers
def spread(values: Iterable[float], digits: int = 1) -> str:
    """Mean ± standard deviation; the mean alone of one value."""
    values = np.asarray([x for x in values if not np.isnan(x)], dtype=float)
    if not len(values):
        return "–"
    return f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")


def distinct(values: Iterable) -> str:
    return " or ".join(map(str, sorted(set(values))))


def published(experiment: Experiment, task: str, label: str, measure: str) -> str:
    """The paper's number with its std if it gives one; a dash if it has none."""
    mean, std = experiment.paper().get((task, label), {}).get(measure, (None, None))
    digits = 1 if measure == "score" else 2
    return "–" if mean is None else f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


@functools.cache
def dataset_score(task: str) -> float | None:
    """The normalised score of the mean episode of a dataset in datasets/; None for other tasks."""
    folder = ROOT / "datasets" / task / "data"
    if not (folder / "metadata.json").exists():
        return None
    reference = json.loads((folder / "metadata.json").read_text())
    low, high = (reference.get(f"ref_{end}_score") for end in ("min", "max"))
    if None in (low, high):
        return None
    with h5py.File(folder / "main_data.hdf5", "r") as file:
        returns = [float(np.sum(episode["rewards"])) for episode in file.values()]
    return 100 * (np.mean(returns) - low) / (high - low)


def curves(cell: pd.DataFrame) -> pd.DataFrame:
    """The score of each seed (column) at each step (row) at which all of them were scored."""
    found = {seed: run.curve(seed) for seed, run in zip(cell["seed"], cell["run"]) if run.lines}
    return pd.DataFrame(found).dropna()


def estimate(statistic: Callable, *scores: stats.Scores) -> tuple[np.ndarray, np.ndarray | None]:
    """A statistic of one or two labels' scores and its interval, None where there are too few seeds."""
    point = statistic(*scores)
    if min(len(x) for x in itertools.chain(*scores)) < MIN_SEEDS:
        return point, None
    rng = np.random.default_rng(0)
    return point, stats.interval(statistic(*(stats.resample(x, rng) for x in scores)))


def bounds(interval: np.ndarray | None, digits: int) -> str:
    few = f"none: fewer than {MIN_SEEDS} seeds"
    return few if interval is None else " to ".join(f"{x:.{digits}f}" for x in interval)


# --------------------------------------------------------------------------------------------------- tables
def score_table(section: Section) -> pd.DataFrame:
    """A row for each setting, after the own score of a dataset that is at hand."""
    rows = []
    for task, of_task in section.seeds.groupby("task", sort=False):
        if dataset_score(task) is not None:
            rows.append({"task": task, "algorithm": "the dataset's mean episode", "metric": "Minari score",
                         "last": f"{dataset_score(task):.1f}"})  # fmt: skip
        for label, cell in of_task.groupby("label", sort=False):
            because = "; ".join(filter(None, cell["because"].unique()))
            best = curves(cell).max() if len(curves(cell)) else []
            rows.append({
                "task": task, "algorithm": label, "metric": distinct(map(str, cell["metric"])),
                "seeds": len(cell), "last": spread(cell["last"]) + "†" * bool(because), "best": spread(best),
                "last, each seed": ", ".join(f"{x:.0f}" for x in cell["last"]),
                f"paper ({section.experiment.source})": published(section.experiment, task, label, "score"),
                "† because": because,
            })  # fmt: skip
    table = pd.DataFrame(rows).fillna("").replace({"seeds": {"": ""}})
    table["seeds"] = [f"{x:.0f}" if x != "" else "" for x in table["seeds"]]
    return table.loc[:, [not set(table[x]) <= {"", "–"} for x in table]]  # without columns that say nothing


def paper_table(section: Section, complete: pd.DataFrame) -> pd.DataFrame:
    """Tasks by algorithms: our last scores, then all of the paper's; and their means over tasks."""
    paper = {key: x["score"][0] for key, x in section.experiment.paper().items() if "score" in x}
    theirs = pd.Series(paper, dtype=float).unstack(sort=False).reindex(complete["task"].unique())
    ours = complete.pivot_table(index="task", columns="label", values="last", sort=False)
    table = ours.add_suffix(", ours").join(theirs.dropna(axis=1, how="all").add_suffix(", paper"))
    table.loc[f"mean of the {len(table)} tasks"] = table.mean(skipna=False)
    return table.map(lambda x: "–" if np.isnan(x) else f"{x:.1f}").rename_axis("task").reset_index()


def last_speeds(run: Run) -> list[float]:
    """Steps per second in the last phase, which trains the policy."""
    *before, _ = (x for name, x in run.config.items() if name.endswith("_steps"))
    return [x["steps_per_second"] for x in run.lines if "steps_per_second" in x and x["step"] > sum(before)]


def time_table(section: Section) -> pd.DataFrame:
    """Time and memory of the processes, and the paper's hours."""
    rows = []
    cells = section.seeds.drop_duplicates("run").groupby(["task", "label"], sort=False)["run"]
    for (task, label), runs in cells:
        for at_once in sorted({len(run.seeds) for run in runs}):
            configs = pd.DataFrame([run.config for run in runs if len(run.seeds) == at_once])
            speeds = [1000 / speed for run in runs if len(run.seeds) == at_once for speed in last_speeds(run)]
            memory = pd.to_numeric(configs["peak_memory_mib"]).mean()
            rows.append({
                "task": task, "algorithm": label, "runs": len(configs), "seeds at once": at_once,
                "training h": f"{configs['train_seconds'].mean() / 3600:.2f}",
                "paper, h": published(section.experiment, task, label, "hours"),
                "s per 1000 steps": f"{np.median(speeds):.2f}" if speeds else "–",
                "paper, s": published(section.experiment, task, label, "seconds_per_1k_steps"),
                "evaluating h": f"{configs['eval_seconds'].mean() / 3600:.2f}",
                "peak MiB of the GPU": "–" if np.isnan(memory) else f"{memory:.0f}",
                "device": distinct(configs["device"]),
            })  # fmt: skip
    table = pd.DataFrame(rows)
    return table.loc[:, [set(table[x]) != {"–"} for x in table]]


# ------------------------------------------------------------------------------------------------- pictures
def look_of(labels: Iterable[str]) -> dict[str, dict]:
    """Color and marker of each label, the same in all pictures of a section."""
    return {x: {"color": COLORS[i % 6], "marker": MARKERS[(i + i // 6) % 6]}
            for i, x in enumerate(dict.fromkeys(labels))}  # fmt: skip


def draw(height: float, plot: Callable, **axes) -> str:
    """One panel as SVG, height inches and small enough for a phone; plot(ax) draws into it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4, height), layout="constrained")
        ax = figure.subplots()
        plot(ax)
        ax.set(**axes)
        ax.grid(color="#888888", alpha=0.25, linewidth=0.6)
        if labels := ax.get_legend_handles_labels()[1]:  # below the axes, where it hides nothing
            figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)
            figure.set_figheight(height + 0.09 * sum(1 + label.count("\n") for label in labels))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def wrapped(name: str) -> str:
    """On lines that leave a picture its room."""
    return "\n".join(textwrap.wrap(name, 26))


def draw_curves(of_task: pd.DataFrame, looks: dict) -> str:
    def plot(ax) -> None:
        for label, cell in of_task.groupby("label", sort=False):
            curve, look = curves(cell), looks[label]
            color = look["color"]
            mean, std = curve.mean(axis=1), curve.std(axis=1)
            ax.plot(mean, markersize=3.5, label=wrapped(f"{label} ({curve.shape[1]})"), **look)
            if curve.shape[1] >= MIN_SEEDS:
                ax.fill_between(
                    curve.index, mean - std, mean + std, alpha=0.18, linewidth=0, color=look["color"]
                )
            else:
                ax.plot(curve, linewidth=0.6, color=color)
        ax.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k")

    return draw(2.5, plot, xlabel="gradient steps", ylabel=of_task["metric"].iloc[0])


def draw_rows(xlabel: str, rows: list[dict], looks: dict, line: float | None = None) -> str:
    """A line for each row: a point with its ends, the single values and the paper's number beside it."""
    names = [wrapped(row["name"]) for row in rows]
    heights = np.array([0.1 + 0.18 * (1 + name.count("\n")) for name in names])  # inches
    places = np.cumsum(heights) - heights / 2

    def plot(ax) -> None:
        for y, row in zip(places, rows):
            look = looks[row["label"]]
            ax.plot(row["values"], [y] * len(row["values"]), "|", markersize=8, color=look["color"])
            if row["ends"] is not None:
                ax.plot(row["ends"], [y, y], color=look["color"], linewidth=2, alpha=0.6)
            ax.plot(row["point"], y, markersize=6, **look)
            if row.get("paper") is not None:
                ax.plot(row["paper"], y, "d", markersize=9, markerfacecolor="none", color="#000000")
        if line is not None:
            ax.axvline(line, color="#000000", linewidth=0.8, linestyle=":")
        ax.set_yticks(places, names)
        ax.set_ylim(heights.sum(), 0)

    return draw(0.6 + heights.sum(), plot, xlabel=xlabel)


def score_pictures(section: Section, looks: dict) -> Blocks:
    """Scores of a task's algorithms, of a single algorithm those of all tasks; and curves over training."""
    seeds, blocks = section.seeds.dropna(subset="last"), []
    single, paper = len(looks) == 1, section.experiment.paper()
    for (title, metric), group in seeds.groupby(["label" if single else "task", "metric"], sort=False):
        rows = []
        for (task, label), cell in group.groupby(["task", "label"], sort=False):
            mean, std = cell["last"].mean(), cell["last"].std()
            rows.append({"name": f"{task if single else label} ({len(cell)})", "label": label, "point": mean,
                         "ends": None if np.isnan(std) else (mean - std, mean + std), "values": cell["last"],
                         "paper": paper.get((task, label), {}).get("score", (None,))[0]})  # fmt: skip
        caption = f"{title}: last {metric}, mean of the seeds (number) ± std; ticks: each"
        caption += "; ◇: the paper's" * any(row["paper"] is not None for row in rows)
        caption += "; dotted: the dataset's mean episode" * (dataset_score(title) is not None)
        blocks.append((caption, draw_rows(f"last {metric}", rows, looks, dataset_score(title))))
    for task, of_task in seeds.groupby("task", sort=False):
        if any(len(curves(cell)) > 1 for _, cell in of_task.groupby("label")):
            caption = f"{task}: score over training, mean of the seeds (number) ± std; of one or two, each"
            blocks.append((caption, draw_curves(of_task, looks)))
    return blocks


# ----------------------------------------------------------------------------------------------- aggregates
def complete_tasks(section: Section, metric: str) -> pd.DataFrame:
    """The seeds with this metric, of the tasks in which every label of the section has it."""
    seeds = section.seeds[section.seeds["metric"] == metric].dropna(subset="last")
    labels = seeds.groupby("task")["label"].transform("nunique")
    return seeds[labels == section.seeds["label"].nunique()]


def aggregate_blocks(seeds: pd.DataFrame, metric: str, looks: dict) -> Blocks:
    """IQM, performance profile, probability of improvement, over tasks of one metric."""
    scores = {label: [x["last"].to_numpy() for _, x in of_label.groupby("task", sort=False)]
              for label, of_label in seeds.groupby("label", sort=False)}  # fmt: skip
    numbers = {label: distinct(map(len, of_tasks)) for label, of_tasks in scores.items()}
    rows, lines = [], []
    for label, of_tasks in scores.items():
        point, ends = estimate(stats.iqm, of_tasks)
        rows.append({"algorithm": label, "tasks": len(of_tasks), "seeds of each": numbers[label],
                     "IQM": f"{point:.1f}", "95 % interval": bounds(ends, 1),
                     "mean": f"{np.mean([x.mean() for x in of_tasks]):.1f}"})  # fmt: skip
        lines.append(
            {
                "name": f"{label} ({numbers[label]})",
                "label": label,
                "point": point,
                "ends": ends,
                "values": (),
            }
        )
    pooled = seeds["last"]
    thresholds = np.linspace(min(0, pooled.min()), pooled.max(), 101)

    def profile(ax) -> None:
        for line, (label, of_tasks) in zip(lines, scores.items()):
            share, ends = estimate(lambda x: stats.profile(x, thresholds), of_tasks)
            color = looks[label]["color"]
            ax.step(thresholds, share, where="post", label=wrapped(line["name"]), color=color)
            if ends is not None:
                ax.fill_between(thresholds, *ends, step="post", alpha=0.18, linewidth=0, color=color)

    blocks = [
        (f"Interquartile mean (IQM) of the last {metric}s, over the tasks that all algorithms here have; of "
         "fewer than 4 it is their mean.", pd.DataFrame(rows)),
        (f"IQM of the last {metric}s (seeds) with its interval", draw_rows("IQM", lines, looks)),
        (f"Performance profile of the last {metric}s (seeds) with its interval",
         draw(2.5, profile, xlabel=f"{metric} x", ylabel="share above x", ylim=(-0.02, 1.02))),
    ]  # fmt: skip
    rows = []
    for x, y in itertools.combinations(scores, 2):
        point, ends = estimate(stats.improvement, scores[x], scores[y])
        rows.append({"algorithms": f"{x} over {y}", "seeds of each": f"{numbers[x]} against {numbers[y]}",
                     "probability": f"{point:.2f}", "95 % interval": bounds(ends, 2)})  # fmt: skip
    if rows:
        caption = (
            "Probability of improvement: that a seed of the first scores above one of the second, a tie "
            "counting half, averaged over tasks."
        )
        blocks.append((caption, pd.DataFrame(rows)))
    return blocks


def fill(section: Section) -> None:
    """All there is to say about an experiment."""
    seeds, blocks, looks = section.seeds, section.blocks, look_of(section.seeds["label"])
    if seeds["last"].notna().any():
        caption = "Scores, mean ± std over seeds. †: not comparable to the papers'."
        blocks += [(caption, score_table(section)), *score_pictures(section, looks)]
        for metric in COMPARED:
            complete = complete_tasks(section, metric)
            if metric == "score" and complete["task"].nunique() > 1 and section.experiment.source:
                caption = f"Last scores, and the paper's ({section.experiment.source})."
                blocks.append((caption, paper_table(section, complete)))
            if len(complete):
                blocks += aggregate_blocks(complete, metric, looks)
        if not any(len(complete_tasks(section, metric)) for metric in COMPARED):
            section.notes.append("No task has scores of all algorithms here, so there is no aggregate.")
    if len(seeds):
        caption = "Time and memory of a run, mean over runs; s per 1000 steps: of the last phase."
        blocks.append((caption, time_table(section)))
        rows = [{"task": x["task"].iloc[0], "algorithm": x["label"].iloc[0], "commit": run.commit,
                 "seeds": ", ".join(map(str, x["seed"])), "command": command_of(run), "folder": str(run.path)}
                for run, x in seeds.groupby("run", sort=False)]  # fmt: skip
        blocks.append(("Where the numbers come from.", pd.DataFrame(rows)))
    if unfinished := [run for run in section.runs if not run.finished]:
        rows = []
        for run in unfinished:
            planned = sum(x for name, x in run.config.items() if name.endswith("_steps"))
            reached = max((line["step"] for line in run.lines), default=0)
            rows.append({"task": run.config["env_id"], "script": run.config["script"],
                         "seeds": ", ".join(map(str, run.seeds)), "last step": f"{reached} of {planned}",
                         "folder": str(run.path)})  # fmt: skip
        blocks.append(("Unfinished runs, without result.json: in none of these numbers.", pd.DataFrame(rows)))


# --------------------------------------------------------------------------------------------------- output
def escape(text: str) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    return str(text).replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")


def markdown(table: pd.DataFrame) -> str:
    return table.map(escape).to_markdown(index=False, disable_numparse=True)


def write_markdown(sections: list[Section], output: Path, command: str) -> None:
    """report.md, and its pictures as files in report/."""
    pictures = output / "report"
    shutil.rmtree(pictures, ignore_errors=True)  # an earlier report's
    pictures.mkdir()
    parts = ["# Runs", INTRODUCTION, f"Made by `{command}`."]
    for section in sections:
        notes = "\n".join(f"- {escape(note)}" for note in section.notes)
        parts += [f"## {section.title}", section.question, notes]
        for i, (caption, block) in enumerate(section.blocks):
            if isinstance(block, pd.DataFrame):
                parts += [caption, markdown(block)]
            else:
                file = pictures / f"{section.name}-{i}.svg"
                file.write_text(block.replace("<svg ", '<svg style="background: white" ', 1))
                parts.append(f"![{escape(caption)}](report/{file.name})")
    (output / "report.md").write_text("\n\n".join(filter(None, parts)) + "\n")


def write_html(sections: list[Section], output: Path, command: str) -> None:
    """report.html with its pictures inside; what is black in them takes the page's text colour."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.j2")
    with pd.option_context("display.max_colwidth", None):
        text = page.render(introduction=INTRODUCTION, sections=sections, command=command)
    (output / "report.html").write_text(text)


def readme_block(section: Section, command: str) -> str:
    """An experiment as the README shows it: a row for each algorithm."""
    rows = []
    for (task, label), cell in section.seeds.groupby(["task", "label"], sort=False):
        if dataset_score(task) is not None and not any(row["task"] == task for row in rows):
            rows.append({"task": task, "policy": "the dataset's mean episode",
                         "score, mean ± std over seeds": f"{dataset_score(task):.1f}"})  # fmt: skip
        point, ends = estimate(stats.iqm, [cell["last"].to_numpy()])
        minutes = [run.config["train_seconds"] / 60 / len(run.seeds) for run in cell["run"]]
        rows.append({"task": task, "policy": label, "score, mean ± std over seeds": spread(cell["last"]),
                     "IQM (95 % interval)": f"{point:.1f} ({bounds(ends, 1)})",
                     "each seed": ", ".join(f"{x:.0f}" for x in cell["last"]),
                     "training of a seed, min": f"{np.mean(minutes):.0f}"})  # fmt: skip
    runs = section.seeds["run"]
    made = (f"{distinct(section.seeds.groupby(['task', 'label']).size())} seeds, "
            f"{distinct(run.config['eval_episodes'] for run in runs)} episodes for each, commit "
            f"{distinct(run.commit for run in runs)}; made by `{command}`.")  # fmt: skip
    return f"{markdown(pd.DataFrame(rows).fillna(''))}\n\n{made}"


def fail(message: str) -> None:
    print(f"report.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that has run directories in it")
    parser.add_argument(
        "--output", type=Path, help="folder of report.md and report.html (default: the runs')"
    )
    parser.add_argument("--readme", action="store_true", help="only print the table of one experiment")
    args = parser.parse_args(argv)
    if not args.runs.is_dir():
        fail(f"{args.runs} is not a folder; give one that has run directories in it, such as runs/")
    sections = collect(args.runs)
    if not sections:
        fail(f"{args.runs} has no run in it (no config.json); make one, by benchmark.sweep.run or a script")
    command = shlex.join(
        ["python", "-m", "benchmark.sweep.report", *(sys.argv[1:] if argv is None else argv)]
    )
    if args.readme:
        if len(sections) > 1 or not len(sections[0].seeds):
            fail(f"--readme is for finished runs of one experiment; {args.runs} has none, or others too")
        print(readme_block(sections[0], command))
        return
    output = args.output or args.runs
    for section in sections:
        fill(section)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_markdown(sections, output, command)
        write_html(sections, output, command)
    except OSError as error:
        fail(f"cannot write to {output} ({error.strerror}); choose another --output")
    print(f"wrote {output / 'report.md'} and {output / 'report.html'}")


if __name__ == "__main__":
    main()
