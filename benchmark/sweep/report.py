"""Tables and learning curves from the files of runs, as Markdown and as one HTML page that needs no network.

    python -m benchmark.sweep.report runs        # writes runs/report.md, report.html and report/*.svg
    python -m benchmark.sweep.report benchmark/results/local --readme local    # prints an experiment's table

A run is a folder with config.json, metrics.jsonl (or .jsonl.gz) and result.json, anywhere in the given one.
Those of benchmark/sweep/run.py stand under their experiments, beside the papers' numbers; all others at the
end, by task, script and the arguments that are not the script's own for the task.

Scores of different metrics are never averaged together, and raw returns, of datasets without reference
scores, not at all. INTRODUCTION below says what a score and a spread are.
"""

import argparse
import functools
import gzip
import io
import json
import shlex
import shutil
import sys
from collections.abc import Iterable
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
    "drawn anew within each task. With a handful of seeds on a single task they are too narrow."
)
MIN_SEEDS = 3  # for an interval
BOOKKEEPING = {  # arguments that decide neither what is trained nor how its last model is measured
    "env_id", "seed", "num_seeds", "device", "compile", "tf32", "eval_every", "run_dir", "checkpoint_every",
    "resume", "eval_only", "capture_video", "track",
}  # fmt: skip
OTHER = Experiment("other", "Other runs", "Runs that belong to no experiment of benchmark/sweep", ())
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"], "axes.spines.top": False, "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(  # Okabe and Ito's
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]),
}  # fmt: skip


# ------------------------------------------------------------------------------------------- files of a run
@dataclass(eq=False)
class Run:
    """The directory of one process, which trains one seed or several."""

    path: Path
    config: dict  # and all of result.json, if it is finished
    lines: list[dict]  # of metrics.jsonl

    @property
    def seeds(self) -> range:
        return range(self.config["seed"], self.config["seed"] + self.config["num_seeds"])

    @property
    def finished(self) -> bool:
        return "seeds" in self.config

    @property
    def commit(self) -> str:
        return str(self.config.get("git_commit"))[:10]

    @property
    def command(self) -> str:
        """As run.py wrote it; a run by hand has its arguments in config.json."""
        path = self.path / "command.txt"
        return path.read_text().strip() if path.exists() else ""

    @property
    def phases(self) -> list[int]:
        """Their planned steps."""
        return [x for name, x in self.config.items() if name.endswith("_steps")]

    def curve(self, seed: int) -> pd.Series:
        """The score at each evaluated step."""
        key = "eval/normalized_score"
        scored = {x["step"]: x[key] for x in self.lines if x["seed"] == seed and key in x}
        return pd.Series(scored, dtype=float)


def read_run(folder: Path, notes: list[str]) -> Run:
    """OSError, ValueError or TypeError if it is none; what else is wrong with its files goes to notes."""
    config, result, lines = json.loads((folder / "config.json").read_text()), folder / "result.json", []
    if missing := {"script", "env_id", "seed", "num_seeds"} - set(config):
        raise ValueError(f"config.json has no {', '.join(sorted(missing))}")
    config |= json.loads(result.read_text()) if result.exists() else {}
    path = next(iter(folder.glob("metrics.jsonl*")), folder / "metrics.jsonl")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
            lines.extend(map(json.loads, file))
    except (EOFError, OSError, ValueError) as error:  # cut off, or being written
        notes.append(f"{path} cannot be read to its end ({error})")
    return Run(folder, config, lines)


def script_of(run: Run) -> str | None:
    """Where its script lies in the repository."""
    paths = (Path(folder, run.config["script"]) for folder in ("", "benchmark/baselines"))
    return next((str(path) for path in paths if (ROOT / path).exists()), None)


def differences(run: Run, setting: Setting | None = None) -> dict:
    """The arguments that are not those of the setting, else the script's own for the task."""
    if (script := script_of(run)) is None:
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

    experiment: Experiment
    runs: dict[Run, Setting]
    notes: list[str] = field(default_factory=list)  # what is missing, broken or mixed
    seeds: pd.DataFrame = field(default_factory=pd.DataFrame)
    blocks: list[tuple[str, pd.DataFrame | str]] = field(default_factory=list)  # caption, table or SVG

    def cells(self):
        """((task, label), its rows of seeds), in the experiment's order."""
        return self.seeds.groupby(["task", "label"], sort=False)


def own_setting(run: Run) -> Setting:
    """What a run outside of all experiments is of: by its arguments, but for steps and episodes."""
    own = {x: y for x, y in differences(run).items() if not x.endswith("_steps") and x != "eval_episodes"}
    label = ", ".join([Path(run.config["script"]).stem, *(f"{x} {y}" for x, y in own.items())])
    return Setting(run.config["env_id"], label, script_of(run) or run.config["script"])


def collect(root: Path) -> list[Section]:
    """All runs in a folder: of each experiment that has some which none before it shows; then the others."""
    runs, notes, sections, shown = [], [], [], set()
    for folder in sorted({path.parent for x in ("config.json", "command.txt") for path in root.rglob(x)}):
        try:
            runs.append(read_run(folder, notes))
        except (OSError, ValueError, TypeError) as error:
            notes.append(f"{folder} is not counted: {error}")
    for experiment in EXPERIMENTS.values():
        settings = {x.folder.parts: x for x in experiment.settings}  # where run.py puts its runs
        places = {run: run.path.resolve().parts[-3:-1] for run in runs}
        found = {run: settings[place] for run, place in places.items() if place in settings}
        if not set(found) <= shown:
            shown |= set(found)
            sections.append(Section(experiment, found))
    others = {run: own_setting(run) for run in runs if run not in shown}
    if others or not sections and notes:
        sections.append(Section(OTHER, others))
    for section in sections:
        count_seeds(section)
    if sections:
        sections[-1].notes += notes
    return sections


def count_seeds(section: Section) -> None:
    """Fills in seeds, each counted once, in the experiment's order, and notes what is wrong with them."""
    notes, experiment = section.notes, section.experiment
    order = {(x.task, x.label): i for i, x in enumerate(experiment.settings)}
    unscored = {"last": np.nan}
    rows = [(setting.task, setting.label, seed, run.config["seeds"].get(str(seed), unscored)["last"],
             run.config["metric"], reasons(run, setting), run)
            for run, setting in section.runs.items() if run.finished for seed in run.seeds]  # fmt: skip
    seeds = pd.DataFrame(rows, columns=["task", "label", "seed", "last", "metric", "because", "run"])
    twice = seeds.duplicated(["task", "label", "seed"])
    for x in seeds[twice].itertuples():
        notes.append(f"There twice: {x.label} on {x.task}, seed {x.seed}; not counted from {x.run.path}")
    place = [order.get(key, 0) for key in zip(seeds["task"], seeds["label"])]
    seeds = seeds.assign(place=place)[~twice].sort_values(["place", "seed"], kind="stable")
    section.seeds = seeds
    counts = section.cells().size().to_dict()
    if missing := [f"{label} on {task}" for task, label in order if (task, label) not in counts]:
        notes.append(f"Without a finished run: {len(missing)} of {len(order)}, {', '.join(missing)}.")
    if unfinished := [run for run in section.runs if not run.finished]:
        notes.append(f"Unfinished and not counted: {len(unfinished)} runs, listed at the end.")
    few = [f"{x[1]} on {x[0]} ({n})" for x, n in counts.items() if order and n < experiment.seeds]
    if few:
        notes.append(f"Fewer seeds than the experiment's {experiment.seeds}: {', '.join(few)}.")
    for (task, label), cell in section.cells():
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
def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation; the mean alone of one value."""
    values = pd.Series(values, dtype=float).dropna()
    if not len(values):
        return "–"
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


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


def iqm(scores: stats.Scores) -> tuple[str, str]:
    """The interquartile mean of tasks' scores, and its interval."""
    if min(map(len, scores)) < MIN_SEEDS:
        return f"{stats.iqm(scores):.1f}", f"none: fewer than {MIN_SEEDS} seeds"
    low, high = stats.interval(stats.iqm(stats.resample(scores, np.random.default_rng(0))))
    return f"{stats.iqm(scores):.1f}", f"{low:.1f} to {high:.1f}"


# --------------------------------------------------------------------------------------------------- tables
def telling(rows: list[dict]) -> pd.DataFrame:
    """Without the columns that say nothing."""
    table = pd.DataFrame(rows).fillna("")
    return table.loc[:, [not set(table[x]) <= {"", "–"} for x in table]]


def score_table(section: Section) -> pd.DataFrame:
    """A row for each setting, after the own score of a dataset that is at hand."""
    rows, tasks = [], set()
    for (task, label), cell in section.cells():
        if task not in tasks and dataset_score(task) is not None:
            rows.append({"task": task, "algorithm": "the dataset's mean episode", "metric": "Minari score",
                         "last": f"{dataset_score(task):.1f}"})  # fmt: skip
        tasks.add(task)
        because = "; ".join(filter(None, cell["because"].unique()))
        best = curves(cell).max() if len(curves(cell)) else []
        rows.append({
            "task": task, "algorithm": label, "metric": distinct(map(str, cell["metric"])),
            "seeds": str(len(cell)), "last": spread(cell["last"]) + "†" * bool(because), "best": spread(best),
            "last, each seed": ", ".join(f"{x:.0f}" for x in cell["last"]),
            f"paper ({section.experiment.source})": published(section.experiment, task, label, "score"),
            "† because": because,
        })  # fmt: skip
    return telling(rows)


def complete_tasks(section: Section, metric: str) -> pd.DataFrame:
    """The seeds with this metric, of the tasks in which every label of the section has it."""
    seeds = section.seeds[section.seeds["metric"] == metric].dropna(subset="last")
    labels = seeds.groupby("task")["label"].transform("nunique")
    return seeds[labels == section.seeds["label"].nunique()]


def iqm_table(seeds: pd.DataFrame) -> pd.DataFrame:
    """Over tasks, of seeds with one metric."""
    rows = []
    for label, of_label in seeds.groupby("label", sort=False):
        scores = [x["last"].to_numpy() for _, x in of_label.groupby("task", sort=False)]
        point, interval = iqm(scores)
        rows.append({"algorithm": label, "tasks": str(len(scores)), "IQM": point, "95 % interval": interval,
                     "seeds of each": distinct(map(len, scores)),
                     "mean": f"{np.mean([x.mean() for x in scores]):.1f}"})  # fmt: skip
    return pd.DataFrame(rows)


def paper_table(section: Section, complete: pd.DataFrame) -> pd.DataFrame:
    """Tasks by algorithms: our last scores, then all of the paper's; and their means over tasks."""
    paper = {key: x["score"][0] for key, x in section.experiment.paper().items() if "score" in x}
    theirs = pd.Series(paper, dtype=float).unstack(sort=False).reindex(complete["task"].unique())
    ours = complete.pivot_table(index="task", columns="label", values="last", sort=False)
    table = ours.add_suffix(", ours").join(theirs.dropna(axis=1, how="all").add_suffix(", paper"))
    table.loc[f"mean of the {len(table)} tasks"] = table.mean(skipna=False)
    return table.map(lambda x: "–" if np.isnan(x) else f"{x:.1f}").rename_axis("task").reset_index()


def time_table(section: Section) -> pd.DataFrame:
    """Time and memory of the processes, by how many seeds each trains, and the paper's hours."""
    rows = []
    runs = section.seeds.drop_duplicates("run")
    at_once = runs["run"].map(lambda run: len(run.seeds))
    for (task, label, n), cell in runs.groupby(["task", "label", at_once], sort=False):
        configs = pd.DataFrame([run.config for run in cell["run"]])
        speeds = [x["steps_per_second"] for run in cell["run"] for x in run.lines  # of the last phase
                  if "steps_per_second" in x and x["step"] > sum(run.phases[:-1])]  # fmt: skip
        memory = pd.to_numeric(configs["peak_memory_mib"]).mean()
        rows.append({
            "task": task, "algorithm": label, "runs": str(len(configs)), "seeds at once": str(n),
            "training h": f"{configs['train_seconds'].mean() / 3600:.2f}",
            "paper, h": published(section.experiment, task, label, "hours"),
            "s per 1000 steps": f"{np.median([1000 / x for x in speeds]):.2f}" if speeds else "–",
            "paper, s": published(section.experiment, task, label, "seconds_per_1k_steps"),
            "evaluating h": f"{configs['eval_seconds'].mean() / 3600:.2f}",
            "peak MiB of the GPU": "–" if np.isnan(memory) else f"{memory:.0f}",
            "device": distinct(configs["device"]),
        })  # fmt: skip
    return telling(rows)


# ------------------------------------------------------------------------------------------- learning curves
def draw_curves(of_task: pd.DataFrame, labels: list[str]) -> str:
    """As SVG, small enough for a phone; a label has the same colour in all pictures of its section."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4, 2.5 + 0.09 * of_task["label"].nunique()), layout="constrained")
        ax = figure.subplots()
        for label, cell in of_task.groupby("label", sort=False):
            curve, i = curves(cell), labels.index(label)
            color, style = f"C{i % 6}", ("o-", "s--")[i // 6 % 2]
            mean, std = curve.mean(axis=1), curve.std(axis=1)
            ax.plot(mean, style, markersize=3.5, label=f"{label} ({curve.shape[1]})", color=color)
            if curve.shape[1] >= MIN_SEEDS:
                ax.fill_between(curve.index, mean - std, mean + std, alpha=0.18, linewidth=0, color=color)
            else:
                ax.plot(curve, linewidth=0.6, color=color)
        if (score := dataset_score(of_task["task"].iloc[0])) is not None:
            ax.axhline(score, color="#000000", linewidth=0.8, linestyle=":")
        ax.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k")
        ax.set(xlabel="gradient steps", ylabel=of_task["metric"].iloc[0])
        ax.grid(color="#888888", alpha=0.25, linewidth=0.6)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


# --------------------------------------------------------------------------------------------------- output
def fill(section: Section) -> None:
    """All there is to say about an experiment."""
    seeds, blocks, labels = section.seeds, section.blocks, [*section.seeds["label"].unique()]
    if seeds["last"].notna().any():
        caption = "Scores, mean ± std over seeds. †: not comparable to the papers'."
        blocks.append((caption, score_table(section)))
        for task, of_task in seeds.dropna(subset="last").groupby("task", sort=False):
            if any(len(curves(cell)) > 1 for _, cell in of_task.groupby("label")):
                caption = (
                    f"{task}: score over training, mean of the seeds (number) ± std; of one or two, each"
                )
                caption += "; dotted: the dataset's mean episode" * (dataset_score(task) is not None)
                blocks.append((caption, draw_curves(of_task, labels)))
        for metric in ("score", "Minari score"):  # a raw return has its task's own scale
            complete = complete_tasks(section, metric)
            if metric == "score" and complete["task"].nunique() > 1 and section.experiment.source:
                caption = f"Last scores, and the paper's ({section.experiment.source})."
                blocks.append((caption, paper_table(section, complete)))
            if len(complete):
                caption = f"Interquartile mean (IQM) of the last {metric}s, over the tasks that all have."
                blocks.append((caption, iqm_table(complete)))
    if len(seeds):
        caption = "Time and memory of a run, mean over runs; s per 1000 steps: of the last phase."
        blocks.append((caption, time_table(section)))
        rows = [{"task": x["task"].iloc[0], "algorithm": x["label"].iloc[0], "commit": run.commit,
                 "seeds": ", ".join(map(str, x["seed"])), "command": run.command, "folder": str(run.path)}
                for run, x in seeds.groupby("run", sort=False)]  # fmt: skip
        blocks.append(("Where the numbers come from.", pd.DataFrame(rows)))
    rows = [{"task": run.config["env_id"], "script": run.config["script"],
             "seeds": ", ".join(map(str, run.seeds)), "folder": str(run.path),
             "last step": f"{max((x['step'] for x in run.lines), default=0)} of {sum(run.phases)}"}
            for run in section.runs if not run.finished]  # fmt: skip
    if rows:
        blocks.append(("Unfinished runs, without result.json: in none of these numbers.", pd.DataFrame(rows)))


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
        parts += [f"## {section.experiment.title}", section.experiment.question, notes]
        for i, (caption, block) in enumerate(section.blocks):
            if isinstance(block, pd.DataFrame):
                parts += [caption, markdown(block)]
            else:
                file = pictures / f"{section.experiment.name}-{i}.svg"
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
    for (task, label), cell in section.cells():
        if dataset_score(task) is not None and not any(row["task"] == task for row in rows):
            rows.append({"task": task, "policy": "the dataset's mean episode",
                         "score, mean ± std over seeds": f"{dataset_score(task):.1f}"})  # fmt: skip
        minutes = [run.config["train_seconds"] / 60 / len(run.seeds) for run in cell["run"]]
        rows.append({"task": task, "policy": label, "score, mean ± std over seeds": spread(cell["last"]),
                     "IQM (95 % interval)": "{} ({})".format(*iqm([cell["last"].to_numpy()])),
                     "each seed": ", ".join(f"{x:.0f}" for x in cell["last"]),
                     "training of a seed, min": f"{np.mean(minutes):.1f}"})  # fmt: skip
    runs = section.seeds["run"]
    made = (f"{distinct(section.cells().size())} seeds, "
            f"{distinct(run.config['eval_episodes'] for run in runs)} episodes for each, commit "
            f"{distinct(run.commit for run in runs)}; made by `{command}`.")  # fmt: skip
    return f"{markdown(pd.DataFrame(rows).fillna(''))}\n\n{made}"


def fail(message: str) -> None:
    print(f"report.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("runs", type=Path, help="folder that has run directories in it")
    parser.add_argument("--output", type=Path, help="folder of the report (default: the runs')")
    parser.add_argument("--readme", metavar="EXPERIMENT", help="only print the table of this one")
    args = parser.parse_args(argv)
    sections = collect(args.runs)
    if not sections:
        fail(f"{args.runs} has no run in it (no config.json); give a folder that has, such as runs/")
    words = ["python", "-m", "benchmark.sweep.report", *(sys.argv[1:] if argv is None else argv)]
    if args.readme:
        found = [x for x in sections if x.experiment.name == args.readme and len(x.seeds)]
        if not found:
            fail(f"{args.runs} has no finished run of the experiment {args.readme!r}")
        print(readme_block(found[0], shlex.join(words)))
        return
    output = args.output or args.runs
    for section in sections:
        fill(section)
    output.mkdir(parents=True, exist_ok=True)
    write_markdown(sections, output, shlex.join(words))
    write_html(sections, output, shlex.join(words))
    print(f"wrote {output / 'report.md'} and {output / 'report.html'}")


if __name__ == "__main__":
    main()
