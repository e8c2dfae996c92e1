"""Finished and unfinished runs as report.py shows them: read from their folders, put under their experiment.

A run directory is one with config.json; benchmark/run.py's lie in {experiment}/{task}/{label}/seed-{first}.
Nothing is dropped silently: what is not counted is an unfinished run or has a note.
"""

import gzip
import json
import shlex
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from benchmark import experiments
from benchmark.experiments import Experiment, Setting

SCRIPTS = {
    Path(path).name: path
    for path in (getattr(experiments, name) for name in ("DTQL", "IMPLICIT", "KL", "SRPO", "DQL", "IDQL"))
}
BOOKKEEPING = {  # arguments that decide neither what is trained nor how it is measured
    "env_id", "seed", "num_seeds", "device", "compile", "tf32", "eval_every", "eval_workers", "run_dir",
    "checkpoint_every", "resume", "eval_only", "capture_video", "track", "wandb_project", "wandb_entity",
}  # fmt: skip
OF_CONFIG = {"script", "env_id", "seed", "num_seeds"}
OF_RESULT = {
    "metric",
    "episodes",
    "seeds",
    "steps",
    "train_seconds",
    "eval_seconds",
    "peak_memory_mib",
    "device",
}
OTHER = Experiment("other", "Other runs", "Runs that belong to no experiment of benchmark/run.py", ())


# ------------------------------------------------------------------------------------------- files of a run
@dataclass(eq=False)
class Run:
    """The directory of one process, which trains one seed or several."""

    path: Path
    config: dict
    result: dict | None  # None: unfinished
    lines: list[dict]  # of metrics.jsonl
    entropy: dict[str, float]  # of each seed's policy, where benchmark/entropy.py has measured it
    command: str
    notes: list[str]  # what is wrong with its files

    @property
    def seeds(self) -> list[int]:
        return list(range(self.config["seed"], self.config["seed"] + self.config["num_seeds"]))

    @property
    def commit(self) -> str:
        return (self.config.get("git_commit") or "unknown")[:10]

    @property
    def last_step(self) -> int:
        return max((line["step"] for line in self.lines), default=0)

    def curve(self, seed: int) -> dict[int, float]:
        """The score at each evaluated step: normalised, or the return if there are no reference scores."""
        key = "eval/return" if self.result["metric"] == "return" else "eval/normalized_score"
        return {line["step"]: line[key] for line in self.lines if line["seed"] == seed and key in line}

    def seconds_per_1k_steps(self) -> float:
        """The median over the phase that trains the policy, which is the last; NaN if that is not known."""
        if self.config["script"] not in SCRIPTS:
            return float("nan")
        *_, phase = experiments.load(SCRIPTS[self.config["script"]]).PHASES
        start = self.result["steps"] - self.config[f"{phase}_steps"]
        speeds = [x["steps_per_second"] for x in self.lines if x["step"] > start and "steps_per_second" in x]
        return 1000 / np.median(speeds) if speeds else float("nan")


def read_json(path: Path, keys: set[str]) -> dict:
    """The object in a file; ValueError if it is none or lacks a key, FileNotFoundError."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not keys <= set(content):
        raise ValueError(f"{path.name} is not a run's")
    return content


def read_metrics(folder: Path, notes: list[str]) -> list[dict]:
    """The lines of metrics.jsonl or metrics.jsonl.gz; one that cannot be read is left out and noted."""
    path, opened = folder / "metrics.jsonl", open
    if not path.exists():
        path, opened = folder / "metrics.jsonl.gz", gzip.open
    lines, number = [], 0
    try:
        with opened(path, "rt") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = json.loads(text)
                    line["step"], line["seed"]
                    lines.append(line)
                except (ValueError, TypeError, KeyError):
                    why = "is not one of a run's" if text.endswith("\n") else "is cut off"
                    notes.append(f"line {number} of {path.name} {why}; left out")
    except FileNotFoundError:
        notes.append("no metrics.jsonl, so no learning curve")
    except (EOFError, OSError) as error:
        notes.append(f"{path.name} cannot be read beyond line {number} ({error})")
    return lines


def read_run(folder: Path) -> Run:
    """The run in a folder; ValueError or FileNotFoundError if there is no telling from config.json what it is
    of. Without a readable result.json it is unfinished."""
    config, result, notes = read_json(folder / "config.json", OF_CONFIG), None, []
    try:
        result = read_json(folder / "result.json", OF_RESULT)
    except FileNotFoundError:
        pass
    except ValueError as error:
        notes.append(f"result.json cannot be read ({error})")
    lines = read_metrics(folder, notes)
    command, entropy = folder / "command.txt", {}
    try:
        entropy = read_json(folder / "entropy.json", {"seeds"})["seeds"]
    except FileNotFoundError:
        pass
    except ValueError as error:
        notes.append(f"entropy.json cannot be read ({error})")
    run = Run(
        folder, config, result, lines,
        entropy=entropy,
        command=command.read_text().strip() if command.exists() else command_of(config),
        notes=notes,
    )  # fmt: skip
    for seed, scores in result["seeds"].items() if result and lines else ():
        curve = run.curve(int(seed))
        if not curve or not np.isclose(curve[max(curve)], scores["last"]):
            notes.append(f"seed {seed}: result.json's last score is not the last evaluation in metrics.jsonl")
    return run


def differences(config: dict) -> dict:
    """The arguments that are not the script's own for the task, less bookkeeping."""
    if config["script"] not in SCRIPTS:
        return {}
    script = experiments.load(SCRIPTS[config["script"]])
    usual = {x.name: x.default for x in fields(script.Args)} | script.settings_of(config["env_id"])
    return {k: x for k, x in config.items() if k in usual and k not in BOOKKEEPING and x != usual[k]}


def command_of(config: dict) -> str:
    """A command line with these arguments, of a run that has no command.txt."""
    given = {name: config[name] for name in ("env_id", "seed", "num_seeds")} | differences(config)
    words = ["python", SCRIPTS.get(config["script"], config["script"])]
    for name, x in given.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if x else f"--no-{flag}"] if isinstance(x, bool) else [f"--{flag}", str(x)]
    return shlex.join(words)


# ----------------------------------------------------------------------------------- runs by what they are of
@dataclass
class Cell:
    """The finished runs of a setting, with each seed counted once."""

    setting: Setting
    owner: dict[int, Run] = field(default_factory=dict)  # of each seed

    @property
    def runs(self) -> list[Run]:
        return list(dict.fromkeys(self.owner.values()))

    def scores(self, which: str) -> np.ndarray:
        """The "last" or "best" score of each seed, in their order; empty if nothing was evaluated. The best
        is of the steps at which all seeds were evaluated, so that none has more chances."""
        if which == "best" and self.curves()[0]:
            return self.curves()[1].max(axis=1)
        found = (run.result["seeds"].get(str(seed)) for seed, run in sorted(self.owner.items()))
        return np.array([scores[which] for scores in found if scores])

    def curves(self) -> tuple[list[int], np.ndarray]:
        """The evaluated steps that all seeds with a metrics file have, and the scores there, [seed, step]."""
        curves = [run.curve(seed) for seed, run in sorted(self.owner.items()) if run.lines]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        return steps, np.array([[curve[step] for step in steps] for curve in curves])

    def entropies(self) -> np.ndarray:
        found = (run.entropy.get(str(seed)) for seed, run in sorted(self.owner.items()))
        return np.array([x for x in found if x is not None])

    def reasons(self) -> list[str]:
        """Why its numbers are not comparable to the paper's; empty if they are."""
        setting, found = self.setting, []
        if setting.task.startswith("local/"):
            found.append("local data")
        elif "/" in setting.task or any(run.result["metric"] == "Minari score" for run in self.runs):
            found.append("Minari data")
        if Path(setting.script).name not in SCRIPTS:
            return [*found, "another script"]
        given = dict(zip(setting.flags, setting.flags[1:]))
        usual = experiments.load(setting.script).settings_of(setting.task)
        wanted = experiments.steps(setting)
        del wanted["--eval-every"]
        wanted["--eval-episodes"] = int(given.get("--eval-episodes", usual["eval_episodes"]))
        for flag, n in wanted.items():
            name = flag[2:].replace("-", "_")
            least = min(run.config.get(name, n) for run in self.runs)
            if least < n:
                found.append(f"{least} of {n} {name.replace('_', ' ')}")
        named = (flag[2:].partition("=")[0].removeprefix("no-").replace("-", "_")
                 for flag in (*setting.flags, *wanted))  # fmt: skip
        own = set(named)  # arguments that the setting itself is about, or that were looked at above
        changed = {
            f"{name.replace('_', ' ')} {x}"
            for run in self.runs
            for name, x in differences(run.config).items()
            if name not in own
        }
        return found + sorted(changed)


@dataclass
class Comparison:
    """The runs of one experiment, or all those of none."""

    experiment: Experiment
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)  # by task and label
    unfinished: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.cells))

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(label for _, label in self.cells))

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells.values() for run in cell.runs]

    def scored_tasks(self) -> list[str]:
        """Those with scores under every label."""
        scored = {name for name, cell in self.cells.items() if len(cell.scores("last"))}
        return [task for task in self.tasks if all((task, label) in scored for label in self.labels)]

    def add(self, run: Run, setting: Setting) -> None:
        self.notes += [f"{run.path}: {note}" for note in run.notes]
        if run.result is None:
            self.unfinished.append(run)
            return
        if (run.config["script"], run.config["env_id"]) != (Path(setting.script).name, setting.task):
            of = f"{run.config['script']} on {run.config['env_id']}"
            self.notes.append(
                f"{run.path} is of {of} by its config.json, not what its path says; not counted"
            )
            return
        cell = self.cells.setdefault((setting.task, setting.label), Cell(setting))
        twice = {}
        for seed in run.seeds:
            first = cell.owner.setdefault(seed, run)
            if first is not run:
                twice.setdefault(first.path, []).append(seed)
        for path, seeds in twice.items():
            which = f"{setting.label} on {setting.task}, seed {', '.join(map(str, seeds))}"
            self.notes.append(f"There twice: {which}; counted from {path}, not from {run.path}")

    def note_mixtures(self) -> None:
        """Cells whose runs differ in their arguments, data or commits."""
        for (task, label), cell in self.cells.items():
            kinds = {json.dumps(differences(run.config), sort_keys=True) for run in cell.runs}
            data = {run.config.get("dataset_sha256") for run in cell.runs}
            if len(kinds) > 1:
                kinds = " and ".join(sorted(kinds))
                self.notes.append(f"The runs of {label} on {task} differ in their arguments: {kinds}")
            if len(data) > 1:
                self.notes.append(f"The runs of {label} on {task} differ in their dataset's SHA-256.")
        commits = [run.commit for run in self.runs]
        if len(set(commits)) > 1:
            counts = ", ".join(f"{x} ({commits.count(x)} runs)" for x in dict.fromkeys(commits))
            self.notes.append(f"The runs are of {len(set(commits))} commits: {counts}.")


def place_of(folder: Path) -> tuple[Experiment, Setting | None]:
    """The experiment and setting in a folder's path; None if there is no such setting. What was trained with
    run.py's --budget is an experiment of its own."""
    *_, budget, name, task, label, _ = ("",) * 5 + folder.resolve().parts
    experiment = experiments.EXPERIMENTS.get(name, OTHER)
    if experiment is not OTHER and budget.startswith("budget-"):
        reduced = {"name": f"{name}-{budget}", "title": f"{experiment.title} ({budget} of all steps)"}
        experiment = replace(experiment, **reduced)
    for setting in experiment.settings:
        if (setting.task.replace("/", "_"), experiments.slug(setting.label)) == (task, label):
            return experiment, setting
    return OTHER, None


def setting_of(run: Run) -> Setting:
    """What a run outside of all experiments is of: by its arguments."""
    script, own = SCRIPTS.get(run.config["script"], run.config["script"]), differences(run.config)
    words = [Path(script).stem, *(f"{name} {x}" for name, x in own.items())]
    shortened = {name for name in own if name.endswith("_steps")} | {"eval_episodes"}  # these are marked
    flags = (f"--{name.replace('_', '-')}={own[name]}" for name in own if name not in shortened)
    return Setting(run.config["env_id"], ", ".join(words), script, tuple(flags))


def collect(root: Path) -> list[Comparison]:
    """All runs in a folder: of each experiment that has some, in their order; then the others."""
    comparisons = {x.name: Comparison(x) for x in (*experiments.EXPERIMENTS.values(), OTHER)}
    names = ("config.json", "result.json", "command.txt")
    for folder in sorted({path.parent for name in names for path in root.rglob(name)}):
        experiment, setting = place_of(folder)
        comparison = comparisons.setdefault(experiment.name, Comparison(experiment))
        try:
            run = read_run(folder)
        except FileNotFoundError:
            comparison.notes.append(f"{folder} has no config.json: it never began; not counted")
        except ValueError as error:
            comparison.notes.append(f"{folder}/config.json cannot be read ({error}); not counted")
        else:
            comparison.add(run, setting or setting_of(run))
    for comparison in comparisons.values():
        order = [(x.task, x.label) for x in comparison.experiment.settings] or list(comparison.cells)
        comparison.cells = {name: comparison.cells[name] for name in order if name in comparison.cells}
        comparison.note_mixtures()
    return [x for x in comparisons.values() if x.cells or x.unfinished or x.notes]
