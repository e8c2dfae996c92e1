"""Tables and pictures from the files of runs, as Markdown and as one HTML page that needs no network.

    python benchmark/report.py runs/                  # writes runs/report.md, report.html and report/*.svg
    python benchmark/report.py benchmark/results/local --readme     # prints one experiment's table

A run is a folder with config.json, metrics.jsonl (or .jsonl.gz) and result.json, anywhere in the given one.
Those of benchmark/run.py stand under their experiment, beside the paper's numbers; all others at the end, by
task, script and the arguments that are not the script's own for the task.

A score is the mean over the evaluation episodes of one training seed, and every spread is over seeds. The
headline is the last evaluation; the best one stands in a column of its own.
"""

import argparse
import functools
import io
import itertools
import json
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import jinja2
import markupsafe
import matplotlib
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmark import speed_tables, stats  # noqa: E402
from benchmark.experiments import Numbers  # noqa: E402
from benchmark.runs import Cell, Comparison, Run, collect  # noqa: E402

INTRODUCTION = (
    "A score is the mean over the evaluation episodes of one training seed; every spread is over seeds. The "
    "headline is the last evaluation's score. The best one, which nobody knows before a run is over, stands "
    "apart; it is of the steps at which all seeds were evaluated. Intervals are 95 %, by bootstrap: seeds "
    "drawn anew within each task. With a handful of seeds on a single task they are too narrow, and 1.00 to "
    "1.00 says only that no two seeds crossed."
)
MIN_SEEDS = 3  # for an interval
NO_INTERVAL = f"none: fewer than {MIN_SEEDS} seeds"
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"], "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe and Ito's
MARKERS = "osD^vP"
Looks = dict[str, dict]  # of each label: color and marker, the same in all pictures


class Code(str):
    """A cell that is shown as code."""


@dataclass
class Table:
    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class Picture:
    caption: str
    svg: str


@dataclass
class Section:
    name: str
    title: str
    question: str
    notes: list[str]  # what is missing, broken or mixed
    blocks: list[Table | Picture]


# -------------------------------------------------------------------------------------------------- numbers
def spread(values: Iterable[float], digits: int = 1) -> str:
    """Mean ± standard deviation; the mean alone of one value."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return "–"
    std = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{std}"


def each(values: Iterable[float]) -> str:
    return ", ".join(f"{x:.0f}" for x in values)


def distinct(values: Iterable) -> str:
    return " or ".join(map(str, sorted(set(values))))


def paper_number(numbers: Numbers, task: str, label: str, measure: str) -> float | None:
    return numbers.get((task, label), {}).get(measure, (None, None))[0]


def published(numbers: Numbers, task: str, label: str, measure: str, digits: int = 1) -> str:
    """The paper's number with its std if it gives one; a dash if it has none."""
    mean, std = numbers.get((task, label), {}).get(measure, (None, None))
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


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


def estimate(statistic: Callable, *scores: stats.Scores) -> tuple[np.ndarray, np.ndarray | None]:
    """A statistic of one or two labels' scores and its interval, None where there are too few seeds."""
    point = statistic(*scores)
    if min(len(x) for x in itertools.chain(*scores)) < MIN_SEEDS:
        return point, None
    rng = np.random.default_rng(0)
    return point, stats.interval(statistic(*(stats.resample(x, rng) for x in scores)))


def bounds(interval: np.ndarray | None, digits: int) -> str:
    return NO_INTERVAL if interval is None else " to ".join(f"{x:.{digits}f}" for x in interval)


# --------------------------------------------------------------------------------------------------- tables
def score_table(comparison: Comparison, numbers: Numbers) -> Table:
    """A row for each setting, after the own score of a dataset that is at hand."""
    header = ["task", "algorithm", "seeds", "last score", "best score", "last, each seed"]
    header += [f"paper ({comparison.experiment.source})"] if numbers else []
    marked = any(cell.reasons() for cell in comparison.cells.values())
    header += ["† because"] if marked else []
    rows = []
    for task in comparison.tasks:
        behaviour = dataset_score(task)
        if behaviour is not None:
            row = [task, "the dataset's mean episode", "", f"{behaviour:.1f}"]
            rows.append(row + [""] * (len(header) - len(row)))
        for label in comparison.labels:
            cell = comparison.cells.get((task, label))
            if cell is None:
                continue
            last, reasons = cell.scores("last"), cell.reasons()
            row = [task, label, str(len(last)), spread(last) + "†" * bool(reasons)]
            row += [spread(cell.scores("best")), each(last)]
            row += [published(numbers, task, label, "score")] if numbers else []
            rows.append(row + (["; ".join(reasons)] if marked else []))
    episodes = distinct(run.result["episodes"] for run in comparison.runs)
    caption = f"Scores, mean ± std over seeds, {episodes} episodes for each."
    return Table(caption + " †: not comparable to the papers'." * marked, header, rows)


def paper_table(comparison: Comparison, numbers: Numbers) -> Table:
    """Tasks by algorithms: our last scores, then all of the paper's."""
    tasks = comparison.scored_tasks()
    theirs = list(dict.fromkeys(label for task, label in numbers if task in tasks))
    rows, means = [], []
    for task in tasks:
        cells = [comparison.cells[task, label] for label in comparison.labels]
        scores = [cell.scores("last") for cell in cells]
        means.append([x.mean() for x in scores])
        ours = [f"{spread(x)}{'†' * bool(cell.reasons())} ({len(x)})" for cell, x in zip(cells, scores)]
        rows.append([task, *ours, *(published(numbers, task, label, "score") for label in theirs)])
    mean_row = [f"mean of the {len(tasks)} tasks", *(f"{x:.1f}" for x in np.mean(means, axis=0))]
    for label in theirs:
        values = [paper_number(numbers, task, label, "score") for task in tasks]
        mean_row.append("–" if None in values else f"{np.mean(values):.1f}")
    header = ["task", *(f"{x}, ours" for x in comparison.labels), *(f"{x}, paper" for x in theirs)]
    caption = f"Last score (seeds), and the paper's ({comparison.experiment.source}). †: not comparable."
    return Table(caption, header, [*rows, mean_row])


def cost_table(comparison: Comparison, numbers: Numbers) -> Table:
    """Time and memory of the processes."""
    source = f"paper ({comparison.experiment.source})"
    columns = {  # title: measure of the paper's, digits, value of a run
        "training h": ("hours", 2, lambda run: run.result["train_seconds"] / 3600),
        "s per 1000 steps": ("seconds_per_1k_steps", 2, Run.seconds_per_1k_steps),
        "evaluating h": ("", 2, lambda run: run.result["eval_seconds"] / 3600),
        "peak MiB": ("", 0, lambda run: run.result["peak_memory_mib"]),
    }
    header, published_measures = ["task", "algorithm", "runs", "seeds at once"], set()
    for title, (measure, *_) in columns.items():
        header.append(title)
        if any(paper_number(numbers, *name, measure) is not None for name in comparison.cells):
            header.append(source)
            published_measures.add(measure)
    rows = []
    for name, cell in comparison.cells.items():
        for at_once in sorted({len(run.seeds) for run in cell.runs}):
            runs = [run for run in cell.runs if len(run.seeds) == at_once]
            row = [*name, str(len(runs)), str(at_once)]
            for measure, digits, value in columns.values():
                row.append(f"{np.mean([value(run) for run in runs]):.{digits}f}")
                if measure in published_measures:
                    row.append(published(numbers, *name, measure, digits))
            rows.append([*row, distinct(run.result["device"] for run in runs)])
    caption = (
        "Time and memory of a run, mean over runs. s per 1000 steps: in the phase that trains the policy. "
        "Seeds at once share a run's time."
    )
    return Table(caption, [*header, "device"], rows)


def acting_table(comparison: Comparison, numbers: Numbers) -> Table:
    """Time to act, from benchmark/speed.py's files: no run measures it."""
    settings = {Path(x.script).stem: x for x in comparison.experiment.settings}
    rows = []
    for row in speed_tables.rows_of("paper"):
        setting = settings.get(row["script"].rpartition(".")[2])
        if setting:
            theirs = published(numbers, setting.task, setting.label, "seconds_per_trajectory", 2)
            ours = f"{row['inference_s_per_trajectory']:.2f} ({row['candidates']})"
            one = f"{row['inference_s_one_candidate']:.2f}"
            rows.append([setting.label, ours, one, theirs, row["device"]])
    header = ["algorithm", "s per trajectory (candidates)", "with one candidate"]
    header += [f"paper ({comparison.experiment.source})", "device"]
    return Table("Time to act on a trajectory's 700 states (benchmark/speed.py).", header, rows)


def run_table(comparison: Comparison) -> Table:
    rows = []
    for name, cell in comparison.cells.items():
        for run in cell.runs:
            seeds = each(seed for seed in run.seeds if cell.owner[seed] is run)
            rows.append([*name, seeds, Code(run.commit), Code(run.command), Code(run.path)])
    header = ["task", "algorithm", "seeds", "commit", "command", "folder"]
    return Table("Where the numbers come from.", header, rows)


def unfinished_table(comparison: Comparison) -> Table:
    rows = []
    for run in comparison.unfinished:
        planned = sum(x for name, x in run.config.items() if name.endswith("_steps"))
        reached = f"{run.last_step} of {planned}"
        rows.append([run.config["env_id"], run.config["script"], each(run.seeds), reached, Code(run.path)])
    header = ["task", "script", "seeds", "last step", "folder"]
    return Table("Unfinished runs, without result.json: in none of these numbers.", header, rows)


# ------------------------------------------------------------------------------------------------- pictures
def looks_of(comparisons: list[Comparison]) -> Looks:
    labels = dict.fromkeys(label for comparison in comparisons for label in comparison.labels)
    return {
        label: {"color": COLORS[i % 6], "marker": MARKERS[(i + i // 6) % 6]} for i, label in enumerate(labels)
    }


def wrapped(name: str) -> str:
    """On lines that leave a picture its room."""
    return "\n".join(textwrap.wrap(name, 26))


def draw(caption: str, height: float, plot: Callable, **axes) -> Picture:
    """One panel, height inches and small enough for a phone; plot(ax) draws into it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4, height), layout="constrained")
        ax = figure.subplots()
        plot(ax)
        ax.set(**axes)
        ax.grid(color="#888888", alpha=0.25, linewidth=0.6)
        labels = ax.get_legend_handles_labels()[1]
        if labels:  # below the axes, where it hides nothing
            figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)
            figure.set_figheight(height + 0.09 * sum(1 + label.count("\n") for label in labels))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Picture(caption, file.getvalue()[file.getvalue().index("<svg") :])


def draw_curves(comparison: Comparison, task: str, looks: Looks) -> Picture:
    def plot(ax) -> None:
        for label in comparison.labels:
            cell, look = comparison.cells.get((task, label)), looks[label]
            steps, scores = cell.curves() if cell else ([], ())
            if not steps:
                continue
            mean = scores.mean(axis=0)
            ax.plot(steps, mean, markersize=3.5, label=wrapped(f"{label} ({len(scores)})"), **look)
            if len(scores) >= MIN_SEEDS:
                std = scores.std(axis=0, ddof=1)
                ax.fill_between(steps, mean - std, mean + std, alpha=0.18, linewidth=0, color=look["color"])
            else:
                ax.plot(steps, scores.T, linewidth=0.6, color=look["color"])
        ax.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k")

    caption = (
        f"{task}: score over training, mean of the seeds (number) ± std; of fewer than {MIN_SEEDS}, each seed"
    )
    return draw(caption, 2.5, plot, xlabel="gradient steps", ylabel="score")


@dataclass
class Row:
    """A line of a picture: a point with its ends, the single values and the paper's number beside it."""

    name: str
    label: str
    point: float
    ends: Iterable[float] | None = None
    values: Iterable[float] = ()
    paper: float | None = None


def draw_rows(caption: str, xlabel: str, rows: list[Row], looks: Looks, line: float | None = None) -> Picture:
    names = [wrapped(row.name) for row in rows]
    heights = np.array([0.1 + 0.18 * (1 + name.count("\n")) for name in names])  # inches
    places = np.cumsum(heights) - heights / 2

    def plot(ax) -> None:
        for y, row in zip(places, rows):
            look = looks[row.label]
            ax.plot(row.values, [y] * len(row.values), "|", markersize=8, color=look["color"])
            if row.ends is not None:
                ax.plot(row.ends, [y, y], color=look["color"], linewidth=2, alpha=0.6)
            ax.plot(row.point, y, markersize=6, **look)
            if row.paper is not None:
                ax.plot(row.paper, y, "d", markersize=9, markerfacecolor="none", color="#000000")
        if line is not None:
            ax.axvline(line, color="#000000", linewidth=0.8, linestyle=":")
        ax.set_yticks(places, names)
        ax.set_ylim(heights.sum(), 0)

    return draw(caption, 0.6 + heights.sum(), plot, xlabel=xlabel)


def draw_scores(comparison: Comparison, numbers: Numbers, looks: Looks) -> list[Picture]:
    """A picture for each task with its algorithms; of a single algorithm, one with all tasks."""
    rows, single = {}, len(comparison.labels) == 1
    for (task, label), cell in comparison.cells.items():
        last = cell.scores("last")
        if not len(last):
            continue
        ends = last.mean() + np.array([-1, 1]) * last.std(ddof=1) if len(last) > 1 else None
        paper = paper_number(numbers, task, label, "score")
        name = f"{task if single else label} ({len(last)})"
        row = Row(name, label, last.mean(), ends, last, paper)
        rows.setdefault(label if single else task, []).append(row)
    pictures = []
    for title, of_title in rows.items():
        behaviour = dataset_score(title)
        caption = f"{title}: last score, mean of the seeds (number) ± std; ticks: each"
        caption += "; ◇: the paper's" * bool(numbers)
        caption += "; dotted: the dataset's mean episode" * (behaviour is not None)
        pictures.append(draw_rows(caption, "last score", of_title, looks, behaviour))
    return pictures


def draw_profile(scores: dict[str, stats.Scores], names: dict[str, str], looks: Looks) -> Picture:
    pooled = np.concatenate([x for of_tasks in scores.values() for x in of_tasks])
    thresholds = np.linspace(min(0, pooled.min()), pooled.max(), 101)

    def plot(ax) -> None:
        for label, of_tasks in scores.items():
            color = looks[label]["color"]
            share, ends = estimate(lambda x: stats.profile(x, thresholds), of_tasks)
            ax.step(thresholds, share, where="post", label=wrapped(names[label]), color=color)
            if ends is not None:
                ax.fill_between(thresholds, *ends, step="post", alpha=0.18, linewidth=0, color=color)

    caption = f"Performance profile (seeds) with its interval, which fewer than {MIN_SEEDS} seeds do not give"
    ylabel = "share of last scores above x"
    return draw(caption, 2.5, plot, xlabel="score x", ylabel=ylabel, ylim=(-0.02, 1.02))


def draw_hours(comparison: Comparison, numbers: Numbers, looks: Looks) -> Picture:
    rows = []
    for (task, label), cell in comparison.cells.items():
        hours = [run.result["train_seconds"] / 3600 / len(run.seeds) for run in cell.runs]
        names = [label] * (len(comparison.labels) > 1) + [task] * (len(comparison.tasks) > 1)
        paper = paper_number(numbers, task, label, "hours")
        rows.append(Row(", ".join(names) or label, label, np.mean(hours), None, hours, paper))
    caption = "Hours of training for a seed, mean over runs; ticks: each run"
    caption += "; ◇: the paper's" * any(row.paper is not None for row in rows)
    return draw_rows(caption, "hours", rows, looks)


# ---------------------------------------------------------------------------------------- tables and pictures
def aggregate_blocks(comparison: Comparison, looks: Looks) -> list[Table | Picture]:
    """IQM, performance profile, probability of improvement, on the tasks with scores of all algorithms."""
    tasks, labels = comparison.scored_tasks(), comparison.labels
    scores = {x: [comparison.cells[task, x].scores("last") for task in tasks] for x in labels}
    seeds = {label: distinct(map(len, of_tasks)) for label, of_tasks in scores.items()}
    names = {label: f"{label} ({n})" for label, n in seeds.items()}
    rows, lines = [], []
    for label, of_tasks in scores.items():
        point, ends = estimate(stats.iqm, of_tasks)
        mean = np.mean([x.mean() for x in of_tasks])
        rows.append([label, str(len(tasks)), seeds[label], f"{point:.1f}", bounds(ends, 1), f"{mean:.1f}"])
        lines.append(Row(names[label], label, point, ends))
    header = ["algorithm", "tasks", "seeds of each", "IQM", "95 % interval", "mean"]
    caption = (
        "Interquartile mean (IQM) of the last scores, over the tasks with scores of all algorithms here; of "
        "fewer than 4 scores it is their mean."
    )
    blocks = [
        Table(caption, header, rows),
        draw_rows("IQM of the last scores (seeds) with its interval", "IQM", lines, looks),
        draw_profile(scores, names, looks),
    ]
    if len(labels) > 1:
        rows, lines = [], []
        for x, y in itertools.combinations(labels, 2):
            point, ends = estimate(stats.improvement, scores[x], scores[y])
            against = f"{seeds[x]} against {seeds[y]}"
            rows.append([f"{x} over {y}", against, f"{point:.2f}", bounds(ends, 2)])
            lines.append(Row(f"{x} over {y}", x, point, ends))
        caption = (
            "Probability of improvement: that a seed of the first scores above one of the second, a tie "
            "counting half, averaged over tasks."
        )
        picture = "Probability of improvement with its interval; dotted: no difference"
        blocks += [
            Table(caption, ["algorithms", "seeds of each", "probability", "95 % interval"], rows),
            draw_rows(picture, "probability", lines, looks, 0.5),
        ]
    return blocks


def entropy_blocks(comparison: Comparison, looks: Looks) -> list[Table | Picture]:
    """The entropy of the trained policies, where benchmark/entropy.py has measured it."""
    rows, lines = [], []
    for (task, label), cell in comparison.cells.items():
        values = cell.entropies()
        if len(values):
            rows.append([task, label, str(len(values)), spread(values, 2)])
            lines.append(Row(f"{label}, {task}", label, values.mean(), None, values))
    if not rows:
        return []
    caption = "Entropy of the trained policy at the dataset's states, in nats, mean ± std over seeds."
    table = Table(caption, ["task", "algorithm", "seeds", "entropy"], rows)
    return [table, draw_rows("Entropy of the trained policy; ticks: each seed", "nats", lines, looks)]


def section_of(comparison: Comparison, looks: Looks) -> Section:
    """All there is to say about an experiment."""
    experiment, cells = comparison.experiment, comparison.cells
    numbers, notes, blocks = experiment.paper(), list(comparison.notes), []
    planned = {(x.task, x.label) for x in experiment.settings}
    missing = [f"{x.label} on {x.task}" for x in experiment.settings if (x.task, x.label) not in cells]
    few = [f"{label} on {task} ({len(x.owner)})" for (task, label), x in cells.items()
           if planned and len(x.owner) < experiment.seeds]  # fmt: skip
    if missing:
        notes.append(f"Without a finished run: {len(missing)} of {len(planned)}, {', '.join(missing)}.")
    if comparison.unfinished:
        notes.append(f"Unfinished and not counted: {len(comparison.unfinished)} runs, listed at the end.")
    if few:
        notes.append(f"Fewer seeds than the experiment's {experiment.seeds}: {', '.join(few)}.")
    if any(len(cell.scores("last")) for cell in cells.values()):
        scored = {name: x for name, x in numbers.items() if "score" in x}
        blocks += [score_table(comparison, scored), *draw_scores(comparison, scored, looks)]
        evaluated = {task for (task, _), cell in cells.items() if len(cell.curves()[0]) > 1}
        blocks += [draw_curves(comparison, task, looks) for task in comparison.tasks if task in evaluated]
        if scored and len(comparison.scored_tasks()) > 1:
            blocks.append(paper_table(comparison, scored))
        if comparison.scored_tasks():
            blocks += aggregate_blocks(comparison, looks)
        else:
            notes.append("No task has scores of all algorithms here, so there is no aggregate.")
    blocks += entropy_blocks(comparison, looks)
    if cells:
        blocks += [cost_table(comparison, numbers), draw_hours(comparison, numbers, looks)]
        if "seconds_per_trajectory" in experiment.measures:
            blocks.append(acting_table(comparison, numbers))
        blocks.append(run_table(comparison))
    if comparison.unfinished:
        blocks.append(unfinished_table(comparison))
    return Section(experiment.name, experiment.title, experiment.question, notes, blocks)


# --------------------------------------------------------------------------------------------------- output
def escape(text: str) -> str:
    """Text that Markdown shows literally, on one line and inside a table."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def markdown_cell(cell: str) -> str:
    if not isinstance(cell, Code):
        return escape(cell)
    return "`" + cell.replace("`", "'").replace("|", r"\|") + "`" if cell else ""


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [map(escape, header), ["---"] * len(header), *(map(markdown_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_markdown(sections: list[Section], output: Path, command: str) -> None:
    """report.md, and its pictures as files in report/."""
    pictures = output / "report"
    shutil.rmtree(pictures, ignore_errors=True)  # an earlier report's
    pictures.mkdir()
    parts = ["# Runs", INTRODUCTION, f"Made by `{command}`."]
    for section in sections:
        parts += [f"## {escape(section.title)}", escape(section.question)]
        parts += ["\n".join(f"- {escape(note)}" for note in section.notes)] if section.notes else []
        for i, block in enumerate(section.blocks):
            caption = escape(block.caption)
            if isinstance(block, Table):
                parts += [caption, markdown_table(block.header, block.rows)]
            else:
                file = pictures / f"{section.name}-{i}.svg"
                file.write_text(block.svg.replace("<svg ", '<svg style="background: white" ', 1))
                parts.append(f"![{caption}](report/{file.name})")
    (output / "report.md").write_text("\n\n".join(parts) + "\n")


def write_html(sections: list[Section], output: Path, command: str) -> None:
    """report.html with its pictures inside; what is black in them takes the page's text colour."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.tests |= {"code": lambda x: isinstance(x, Code), "table": lambda x: isinstance(x, Table)}
    environment.filters["inline"] = lambda svg: markupsafe.Markup(svg.replace("#000000", "currentColor"))
    page = environment.get_template("report.html.j2")
    text = page.render(introduction=INTRODUCTION, sections=sections, command=command)
    (output / "report.html").write_text(text)


def readme_block(comparison: Comparison, command: str) -> str:
    """An experiment as the README shows it: a row for each algorithm, and how each was made."""
    rows, notes = [], []
    for task in comparison.tasks:
        behaviour = dataset_score(task)
        if behaviour is not None:
            rows.append(["the dataset's mean episode", f"{behaviour:.1f}", "", "", ""])
        for cell in (x for x in comparison.cells.values() if x.setting.task == task):
            rows.append(readme_row(cell))
            seeds = sum(len(run.seeds) for run in cell.runs)
            train, evaluate = (
                sum(run.result[f"{x}_seconds"] for run in cell.runs) / seeds / 60 for x in ("train", "eval")
            )
            notes.append(
                f"- {cell.setting.label}: `{cell.runs[0].command}`, first of {len(cell.runs)} runs; for each "
                f"seed {train:.0f} min of training and {evaluate:.0f} min of evaluation."
            )
    runs, cells = comparison.runs, comparison.cells.values()
    header = ["policy", "score, mean ± std over seeds", "IQM (95 % interval)", "each seed", "best evaluation"]
    made = (
        f"On `{'`, `'.join(comparison.tasks)}`; {distinct(len(x.owner) for x in cells)} seeds, "
        f"{distinct(run.result['episodes'] for run in runs)} episodes for each, "
        f"commit {distinct(run.commit for run in runs)}; made by `{command}`."
    )
    return "\n".join([markdown_table(header, rows), "", *notes, "", made])


def readme_row(cell: Cell) -> list[str]:
    last = cell.scores("last")
    point, ends = estimate(stats.iqm, [last])
    iqm = f"{point:.1f} ({bounds(ends, 1)})"
    return [cell.setting.label, spread(last), iqm, each(last), spread(cell.scores("best"))]


def fail(message: str) -> None:
    print(f"report.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that has run directories in it")
    parser.add_argument(
        "--output", type=Path, help="folder of report.md and report.html (default: the runs')"
    )
    parser.add_argument("--readme", action="store_true", help="only print the table of one experiment")
    args = parser.parse_args()
    if not args.runs.is_dir():
        fail(f"{args.runs} is not a folder; give one that has run directories in it, such as runs/")
    comparisons = collect(args.runs)
    if not comparisons:
        fail(f"{args.runs} has no run in it (no config.json); make one, by benchmark/run.py or a script")
    command = shlex.join(["python", "benchmark/report.py", *sys.argv[1:]])
    if args.readme:
        if len(comparisons) > 1 or not comparisons[0].cells:
            fail(f"--readme is for finished runs of one experiment; {args.runs} has none, or others too")
        print(readme_block(comparisons[0], command))
        return
    output, looks = args.output or args.runs, looks_of(comparisons)
    sections = [section_of(comparison, looks) for comparison in comparisons]
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_markdown(sections, output, command)
        write_html(sections, output, command)
    except OSError as error:
        fail(f"cannot write to {output} ({error.strerror}); choose another --output")
    print(f"wrote {output / 'report.md'} and {output / 'report.html'}")


if __name__ == "__main__":
    main()
