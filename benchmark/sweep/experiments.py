"""The tables and figures of the papers as lists of runs: which script, which flags, which number to compare.

`python -m benchmark.sweep.run --experiment NAME` trains one, `--dry-run` prints its command lines. Tables and
figures are DTQL's (arXiv 2405.19690), with the prefix srpo_ SRPO's (arXiv 2310.07297); local and local_alpha
ask our own questions on the embedded dataset. The papers' numbers are in benchmark/paper/*.csv. What the
project knows of a figure is its question, not which tasks it shows: the tasks of fig5, srpo_fig6 and
srpo_fig10 are our choice.

A flag that a setting does not name takes the script's own value for the task, which is the paper's.
"""

import csv
import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "benchmark" / "paper"
Numbers = dict[tuple[str, str], dict[str, tuple[float, float | None]]]  # (task, label): measure: value, std

GYM = [f"{robot}-{data}-v2" for data in ("medium", "medium-replay", "medium-expert")
       for robot in ("halfcheetah", "hopper", "walker2d")]  # fmt: skip
MEDIUM = GYM[:3]
MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
ANTMAZE_V0, ANTMAZE_V2 = ([f"antmaze-{maze}-{version}" for maze in MAZES] for version in ("v0", "v2"))
OTHERS = ["pen-human-v1", "pen-cloned-v1", "kitchen-complete-v0", "kitchen-partial-v0", "kitchen-mixed-v0"]
TASKS = [*GYM, *ANTMAZE_V0, *ANTMAZE_V2, *OTHERS]
LOCAL = "local/reacher/wander-v0"
DTQL, IMPLICIT, KL, SRPO = "dtql_gaussian.py", "dtql_implicit.py", "kl_distill.py", "srpo.py"
DQL, IDQL = "benchmark/baselines/diffusion_ql.py", "benchmark/baselines/idql.py"
FQL, IQL = "benchmark/baselines/fql.py", "benchmark/baselines/iql.py"


@dataclass(frozen=True)
class Setting:
    """One cell of a table: a task under one label, trained for all seeds."""

    task: str  # --env-id
    label: str  # column of the table
    script: str  # relative to the repository root
    flags: tuple[str, ...] = ()  # further flags of the script, as on a command line

    @property
    def folder(self) -> Path:
        """Of its seeds' runs, below that of all runs. It says what is trained and not for which experiment,
        so that what several have in common is trained once."""
        name = re.sub(r"[^a-z0-9._]+", "-", " ".join([Path(self.script).stem, *self.flags]).lower())
        return Path(self.task.replace("/", "_"), name)


@dataclass(frozen=True)
class Experiment:
    """A table or figure. paper: the papers' numbers, of our labels and of other algorithms."""

    name: str
    title: str
    question: str  # what one learns from it
    settings: tuple[Setting, ...]
    seeds: int = 5
    paper: Callable[[], Numbers] = dict
    source: str = ""  # where the papers' numbers stand


# --------------------------------------------------------------------------------------- the papers' numbers
def read(file: str) -> list[dict[str, str]]:
    with open(PAPER / file, newline="") as lines:
        return list(csv.DictReader(lines))


def number(value: str, std: str = "") -> tuple[float, float | None]:
    return float(value), float(std) if std else None


def by_algorithm(file: str) -> Numbers:
    """A file with a row for each task and algorithm."""
    rows = [row for row in read(file) if row["score"]]
    return {(row["task"], row["algorithm"]): {"score": number(row["score"], row["std"])} for row in rows}


def by_column(file: str, labels: dict[str, str], measure: str = "score") -> Numbers:
    """A file with a row for each task; labels: those of its columns with numbers, column: label."""
    return {(row["task"], label): {measure: number(row[column], row.get(f"{column}_std", ""))}
            for row in read(file) for column, label in labels.items()}  # fmt: skip


def table1() -> Numbers:
    """Table 1, and from Table 6 the AntMaze tasks of -v2, which it has not."""
    return by_algorithm("table1_d4rl.csv") | table6()


def table2() -> Numbers:
    """Table 2: a row for each quantity, all on antmaze-umaze-v0."""
    rows = {row["quantity"]: row for row in read("table2_time_antmaze_umaze_v0.csv")}
    return {("antmaze-umaze-v0", label): {
        "seconds_per_1k_steps": number(rows["training s per 1k steps"][label]),
        "hours": number(rows["total training hours"][label])} for label in TIME_TABLE}  # fmt: skip


def table3() -> Numbers:
    labels = {"pretrain": "pretraining", "no_pretrain": "no pretraining"}
    return by_column("table3_pretrain.csv", labels)


def table5() -> Numbers:
    return by_column("table5_kl_vs_tr.csv", {"TR": "DTQL", "KL": "KL"})


def table6() -> Numbers:
    return by_column("table6_antmaze_v2.csv", {"SRPO": "SRPO", "DTQL": "DTQL"})


def table7() -> Numbers:
    return by_column("table7_wall_time.csv", {"hours": "DTQL"}, "hours")


def fig5() -> Numbers:
    """Table 1's AntMaze scores are those with the entropy term."""
    scores = by_algorithm("table1_d4rl.csv")
    return {(task, "entropy 1"): scores[task, "DTQL"] for task in ANTMAZE_V0}


def srpo_table1() -> Numbers:
    return by_algorithm("srpo_table1_d4rl.csv")


def srpo_fig10() -> Numbers:
    """SRPO's Table 1 has the score at one β of each task, the one in its Table 2."""
    betas = {row["task"]: f"β = {row['beta']}" for row in read("srpo_table2_beta.csv")}
    return {(task, beta): srpo_table1()[task, "SRPO"] for task, beta in betas.items()}


# ------------------------------------------------------------------------------------------------- arguments
@functools.cache
def load(script: str):
    """A script as a module, for its settings and phases."""
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


@functools.cache
def args_of(setting: Setting) -> dict:
    """All arguments that a setting's script would run with."""
    script = load(setting.script)
    args = script.parse_args(["--env-id", setting.task, *setting.flags])
    script.resolve(args)
    return vars(args)


# ------------------------------------------------------------------------------------------------ experiments
def grid(tasks: list[str], columns: dict[str, tuple[str, ...]]) -> tuple[Setting, ...]:
    """All tasks under all labels; columns: label: script and flags."""
    return tuple(Setting(task, label, script, tuple(flags))
                 for task in tasks for label, (script, *flags) in columns.items())  # fmt: skip


PRETRAINING = {"pretraining": (DTQL,), "no pretraining": (DTQL, "--pretrain-steps", "0")}
OMEGAS = {
    "ω = σ²": (SRPO,),
    "ω = 1": (SRPO, "--omega", "one"),
    "ω = α/σ": (SRPO, "--omega", "alpha_over_sigma"),
    "no baseline": (SRPO, "--no-baseline"),
}
# Without evaluation, as we read the hours of Table 2: DTQL's 550 epochs of 21.83 s are its 3.33 h. (SRPO's
# 1000 of 24.71 s are 6.86 h, though, and the table says 9.42.)
TIMED = ("--eval-episodes", "0")
TIME_TABLE = {
    "DQL": (DQL, *TIMED),
    "IDQL": (IDQL, *TIMED),
    "SRPO": (SRPO, *TIMED),
    "DTQL": (DTQL, *TIMED),
}

WITHOUT_Q = DTQL, "--alpha", "1000000", "--eval-candidates", "1"  # Q has no part, in training or in acting


def entropies(*coefs: str) -> dict[str, tuple[str, ...]]:
    return {f"entropy {coef}": (DTQL, "--entropy-coef", coef) for coef in coefs}


def betas(*values: str) -> dict[str, tuple[str, ...]]:
    return {f"β = {value}": (SRPO, "--beta", value) for value in values}


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("table1", "DTQL, Table 1: scores on D4RL, and on AntMaze-v2 (Table 6)",
                   "Does DTQL reach its scores on the 26 tasks of Table 4?",
                   grid(TASKS, {"DTQL": (DTQL,)}), paper=table1,
                   source="DTQL, Table 1; AntMaze-v2: Table 6"),
        Experiment("table2", "DTQL, Table 2: time on antmaze-umaze-v0",
                   "How long do DTQL, SRPO, Diffusion-QL and IDQL train?",
                   grid(["antmaze-umaze-v0"], TIME_TABLE), seeds=1, paper=table2,
                   source="DTQL, Table 2"),
        Experiment("table3", "DTQL, Table 3: pretraining",
                   "What does pretraining of critics and behaviour model add?",
                   grid(MEDIUM, PRETRAINING), paper=table3, source="DTQL, Table 3"),
        Experiment("table5", "DTQL, Table 5 and Figure 7: KL against trust region",
                   "Does a KL by score distillation do in place of the trust region?",
                   grid(MEDIUM, {"KL": (KL,), "DTQL": (DTQL,)}), paper=table5,
                   source="DTQL, Table 5"),
        Experiment("table6", "DTQL, Table 6: AntMaze-v2, DTQL against SRPO",
                   "Which of the two is better where both papers report?",
                   grid(ANTMAZE_V2, {"SRPO": (SRPO,), "DTQL": (DTQL,)}), paper=table6,
                   source="DTQL, Table 6"),
        Experiment("table7", "DTQL, Table 7: training time of each task",
                   "How many hours does each task train?",
                   grid(TASKS, {"DTQL": (DTQL, *TIMED)}), seeds=1, paper=table7,
                   source="DTQL, Table 7"),
        Experiment("fig5", "DTQL, Figure 5: the entropy term",
                   "Does AntMaze need the entropy term?",
                   grid(ANTMAZE_V0, entropies("0", "1")), paper=fig5,
                   source="DTQL, Table 1"),
        Experiment("srpo_table1", "SRPO, Table 1: scores on D4RL",
                   "Does SRPO reach its scores on the 15 tasks of its Table 2?",
                   grid([*GYM, *ANTMAZE_V2], {"SRPO": (SRPO,)}), paper=srpo_table1,
                   source="SRPO, Table 1"),
        Experiment("srpo_fig6", "SRPO, Figure 6: ω(t) and the baseline",
                   "What do the weighting ω(t) and the baseline -ε of Eq. 15 change?",
                   grid(MEDIUM, OMEGAS)),
        Experiment("srpo_fig10", "SRPO, Figure 10: the temperature β",
                   "How much does the score depend on β? (the values of Table 2 for locomotion)",
                   grid(MEDIUM, betas("0.01", "0.05", "0.1", "0.2", "0.5")), paper=srpo_fig10,
                   source="SRPO, Table 1"),
        Experiment("local", "All algorithms on the embedded dataset",
                   "What does Q add to cloning, and which algorithm makes the most of it?",
                   grid([LOCAL], {"DTQL": (DTQL,), "DTQL implicit": (IMPLICIT,), "KL": (KL,),
                                  "SRPO": (SRPO,), "FQL": (FQL,), "IDQL": (IDQL,), "DQL": (DQL,),
                                  "IQL": (IQL,), "DTQL without Q": WITHOUT_Q,
                                  "BC, squared error": (IQL, "--beta", "0", "--fixed-std"),
                                  "BC, sampled": (IQL, "--beta", "0", "--eval-candidates", "1")})),
        Experiment("local_alpha", "DTQL's α on the embedded dataset",
                   "How much trust region does the policy need?",
                   grid([LOCAL], {"α = 1": (DTQL, "--alpha", "1"), "α = 5": (DTQL,),
                                  "α = 25": (DTQL, "--alpha", "25"), "without Q": WITHOUT_Q})),
    )
}  # fmt: skip
