"""Train an experiment of benchmark/experiments.py: a table or figure of the papers, or the local ones.

    pip install -r benchmark/requirements.txt
    python benchmark/run.py --experiment local --dry-run             # its command lines, ready to be copied
    python benchmark/run.py --experiment local --budget 0.25         # a quarter of all steps
    python benchmark/run.py --experiment table1 --seeds-per-run 5 --runs-per-gpu auto
    python benchmark/run.py --experiment table1 --only walker2d      # the runs with this in their path

Ray runs the unmodified scripts side by side, each in a process of its own, on this machine or on a cluster
(--address, which `ray start --head` prints), whose machines see the same files: the repository at one path,
and --runs. A run is done when its result.json exists, so the same command again trains what is missing, and
continues from checkpoints what was cut: bit for bit, as the scripts do, on a CPU with as many threads. A run
that fails is tried again, unless its input is bad (exit code 2) or its loss not finite (3), which would come
again; what failed to the end is shown with its last lines, and makes this program's exit code 1. Ctrl-C lets
the scripts write checkpoints, and prints the command that goes on.

The runs share the machine's cores: --runs-at-once N without a GPU (default: one per core), --runs-per-gpu N
with one. `auto` measures 1, 2, 4 and 8 copies of the first run, and keeps the number with most steps per
second in total.

Without Ray, --shard i/n runs every n-th run from the i-th on, one after the other. As a Slurm job array, in
which `exec` and B: let a job that runs out of time interrupt this program alone, as Ctrl-C does:

    #SBATCH --array=0-9 --gpus=1 --cpus-per-task=8 --signal=B:INT@120
    exec python benchmark/run.py --experiment table1 --shard $SLURM_ARRAY_TASK_ID/10

Directory of a run: {runs}/{experiment}/{task}/{label}/seed-{first}, with the script's own files, command.txt
(its command line) and log.txt (its output). log.txt is also its lock: every process of a run inherits the
descriptor, so that a second attempt waits for the last process of one that was given up for dead. A run that
several experiments have in common is trained once, and copied from there to the other directories.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PROBED = (1, 2, 4, 8)  # copies that `auto` tries
PROBE_SECONDS = 600  # at most, for each of them
FINAL = {2: "bad input", 3: "a loss is not finite"}  # exit codes of a script that would come again
INTERRUPTED = 130
OURS = {"--env-id", "--seed", "--num-seeds", "--run-dir", "--resume"}  # what says which run it is
STATUS_EVERY = 60  # seconds between lines of status, where there is no live view
# The process that becomes a script: killed with its parent, were it by kill -9 (PR_SET_PDEATHSIG is 1), and
# open to SIGINT, which Ray blocks in all that it starts.
LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent died")
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def fail(message: str) -> typing.NoReturn:
    """Ends with one line on stderr and exit code 2."""
    print(f"run.py: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


# ------------------------------------------------------------------------------------------------------ runs
@dataclass(frozen=True)
class Run:
    """One process of a script, for one setting and one or several seeds."""

    directory: Path
    command: tuple[str, ...]  # as in a shell at the repository root
    then: tuple[str, ...] = ()  # what follows it there, if anything
    products: tuple[str, ...] = ("result.json",)  # of each command: the file that is there once it is done
    same: tuple[Path, ...] = ()  # where any experiment trains this setting

    def done(self) -> bool:
        return self.done_in(self.directory)

    def done_in(self, directory: Path) -> bool:
        return all((directory / name).exists() for name in self.products)

    def command_line(self) -> str:
        return " && ".join(shlex.join(command) for command in (self.command, self.then) if command)


def shown_path(path: Path) -> str:
    """Relative to the repository root, if it is in there."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def names_of(flags: Iterable[str]) -> set[str]:
    """Of flags as on a command line, in one spelling: --no_resume, --resume=x and --resume are --resume."""
    names = (x[2:].partition("=")[0].replace("_", "-") for x in flags if x.startswith("--"))
    return {f"--{name.removeprefix('no-')}" for name in names}


def runs_of(experiment, runs: Path, seeds: int | None, seeds_per_run: int, budget: float, flags: list[str]):
    """All runs of an Experiment, as Run; seeds: of each setting, None as the experiment says. Exits with code
    2 if a flag would make another experiment of it."""
    from benchmark import experiments

    seeds, given = seeds or experiment.seeds, names_of(flags)
    for setting in experiment.settings:
        fixed = given & (OURS | names_of(setting.flags))
        if fixed:
            fail(f"--flags: {' '.join(sorted(fixed))} is set by {experiment.name} for {setting.label}; leave "
                 "it out, or start the script by hand")  # fmt: skip
        same = [(other.name, x) for other in experiments.EXPERIMENTS.values() for x in other.settings
                if replace(x, label=setting.label) == setting]  # fmt: skip
        setting = experiments.scaled(setting, budget, but=given)
        for first in range(1, seeds + 1, seeds_per_run):
            count = min(seeds_per_run, seeds + 1 - first)
            directory = experiments.run_dir(runs, experiment.name, setting, first)
            command = ["python", setting.script, "--env-id", setting.task, "--seed", str(first)]
            command += ["--num-seeds", str(count)] if count > 1 else []
            command += [*setting.flags, *flags, "--run-dir", shown_path(directory)]
            then, products = (), ("result.json",)
            if "policy_entropy" in experiment.measures:
                then = ("python", "benchmark/entropy.py", shown_path(directory))
                products += ("entropy.json",)
            others = tuple(experiments.run_dir(runs, name, x, first) for name, x in same)
            yield Run(directory, tuple(command), then, products, others)


def without_run_dir(command_line: str) -> list[str]:
    words = shlex.split(command_line.partition(" && ")[0])
    i = words.index("--run-dir") if "--run-dir" in words else len(words)
    return words[:i] + words[i + 2 :]


def is_of(run: Run, path: Path) -> bool:
    """Whether this command.txt is the run's, but for the directory."""
    return path.exists() and without_run_dir(path.read_text()) == without_run_dir(run.command_line())


def check_commands(runs: list[Run]) -> None:
    """Exits with code 2 if a directory holds a run of another command."""
    for run in runs:
        path = run.directory / "command.txt"
        if path.exists() and not is_of(run, path):
            fail(f"{path} says `{path.read_text().strip()}`, which is another run; choose another --runs, or "
                 "the flags of then")  # fmt: skip


# --------------------------------------------------------------------------- one attempt, where a worker runs
def launch(command: Iterable[str], log, threads: int | None) -> subprocess.Popen:
    """Starts `python ...` at the repository root, with all output to log."""
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    _, *arguments = command
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(os.getpid()), *arguments], cwd=ROOT, env=env,
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


def wait(process: subprocess.Popen, watch: Callable[[], None]) -> int:
    """The exit code, or INTERRUPTED however it ended. An interrupt is passed on, and the process given the
    time to end by it: at a checkpoint, or at once where it has not begun. watch() is called meanwhile."""
    interrupted = False
    while True:
        try:
            while process.poll() is None:
                watch()
                time.sleep(0.1)
            return INTERRUPTED if interrupted else process.returncode
        except KeyboardInterrupt:
            interrupted = True
            process.send_signal(signal.SIGINT)


def heed_interrupts() -> None:
    """SIGINT raises KeyboardInterrupt, also where it was ignored, as in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def lock(log) -> None:
    """Returns once no other process holds the run of this log.txt, and holds it then."""
    waited = False
    while True:
        try:
            return fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                note(log, "waiting for the process of an earlier attempt to end")
            waited = True
            time.sleep(0.5)


def note(log, text: str) -> None:
    log.write(f"\n--- {time.strftime('%F %T')} {socket.gethostname()}: {text}\n".encode())
    log.flush()


def copied(run: Run, log) -> bool:
    """Whether another experiment has trained this run: then it is copied to the run's own directory."""
    for other in run.same:
        if run.done_in(other) and is_of(run, other / "command.txt"):
            note(log, f"copied from {other}")
            left = shutil.ignore_patterns("log.txt", "checkpoint.pt", *run.products)
            shutil.copytree(other, run.directory, ignore=left, dirs_exist_ok=True)
            for name in run.products:  # last, and each at once, for they say that it is done
                shutil.copy(other / name, run.directory / f"{name}.part")
                os.replace(run.directory / f"{name}.part", run.directory / name)
            return True
    return False


def attempt(run: Run, threads: int | None = None, watch: Callable[[], None] = lambda: None) -> int:
    """Trains a run from its last checkpoint on, if it has one; the exit code, 0 if it is done."""
    heed_interrupts()
    run.directory.mkdir(parents=True, exist_ok=True)
    with open(run.directory / "log.txt", "ab") as log:
        try:
            lock(log)
        except KeyboardInterrupt:
            return INTERRUPTED
        if run.done() or copied(run, log):
            return 0
        (run.directory / "command.txt").write_text(run.command_line() + "\n")
        for command, product in zip(((*run.command, "--resume"), run.then), run.products):
            if not (run.directory / product).exists():
                process = launch(command, log, threads)
                note(log, f"process {process.pid}, {threads or 'all'} threads: {shlex.join(command)}")
                code = wait(process, watch)
                if code:
                    note(log, f"exit code {code}")
                    return code
    return 0 if run.done() else 1


def probe(run: Run, copies: int, threads: int) -> float:
    """Training steps per second of that many copies of a run together, without evaluation; 0 if one fails.

    Each trains until it has three lines of losses, of which the last counts: the first holds its warm-up. In
    general all are of the script's first phase.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes, directories = [], [Path(folder, str(i)) for i in range(copies)]
        with open(Path(folder, "log.txt"), "ab") as log:
            for directory in directories:
                end = ("--eval-episodes", "0", "--run-dir", str(directory))
                processes.append(launch((*run.command[:-2], *end), log, threads))
            deadline = time.monotonic() + PROBE_SECONDS
            while time.monotonic() < deadline:
                speeds = [speeds_of(directory) for directory in directories]
                ended = [process.poll() is not None for process in processes]
                if all(len(x) >= 3 or end for x, end in zip(speeds, ended)):
                    break
                time.sleep(0.2)
            for process in processes:
                process.kill()
                process.wait()
        return sum(x[-1] for x in speeds) if all(speeds) else 0.0


def speeds_of(directory: Path) -> list[float]:
    """Steps per second in each line of losses so far, of the run's first seed."""
    lines = [line for line in metrics(directory) if "steps_per_second" in line]
    return [line["steps_per_second"] for line in lines if line["seed"] == lines[0]["seed"]]


def metrics(directory: Path, tail: int = 2**20) -> list[dict]:
    """The last lines of a run's metrics.jsonl, as far as they are whole; none if it has none yet."""
    try:
        with open(directory / "metrics.jsonl", "rb") as file:
            file.seek(0, os.SEEK_END)
            start = max(0, file.tell() - tail)
            file.seek(start)
            whole = file.read().rpartition(b"\n")[0].splitlines()
    except OSError:
        return []
    lines = []
    for line in whole[start > 0 :]:
        with contextlib.suppress(ValueError):  # one that a crash of the machine left broken
            lines.append(json.loads(line))
    return lines


# -------------------------------------------------------------------------------------------- what one sees
@dataclass
class Progress:
    """What the driver knows of a run."""

    run: Run
    state: str = "waiting"  # running, done, failed
    attempts: int = 0
    log_bytes: int = 0  # when the latest attempt was submitted: it runs once the log has grown
    fraction: float = 0.0  # of its steps
    score: float | None = None  # last, mean over seeds

    def submitted(self) -> None:
        self.state, self.attempts, self.log_bytes = "waiting", self.attempts + 1, self.log_size()

    def log_size(self) -> int:
        log = self.run.directory / "log.txt"
        return log.stat().st_size if log.exists() else 0

    def refresh(self) -> None:
        if self.state == "waiting" and self.log_size() > self.log_bytes:
            self.state = "running"
        if self.state in ("running", "done"):
            self.read()

    def read(self) -> None:
        """fraction and score from the run's files."""
        lines = metrics(self.run.directory)
        if self.state == "done":
            self.fraction = 1.0
        elif lines:
            with contextlib.suppress(OSError, ValueError):  # broken likewise
                config = json.loads((self.run.directory / "config.json").read_text())
                steps = sum(value for name, value in config.items() if name.endswith("_steps"))
                self.fraction = lines[-1]["step"] / steps
        for kind in ("eval/normalized_score", "eval/return"):  # the latter where there is no score
            evaluated = [line["step"] for line in lines if kind in line]
            if evaluated:
                of_last = [line[kind] for line in lines if kind in line and line["step"] == evaluated[-1]]
                self.score = sum(of_last) / len(of_last)
                break

    def __str__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.1f}"
        return f"{shown_path(self.run.directory)} ({self.fraction:.0%}{score})"


@dataclass
class View:
    """Lines about a sweep: its events, and from time to time how it stands."""

    progress: list[Progress]
    every: float = STATUS_EVERY  # seconds
    started: float = field(default_factory=time.monotonic)
    begun_with: float = 0.0
    shown: float = 0.0

    def __enter__(self):
        for x in self.progress:
            x.read()
        self.begun_with = sum(x.fraction for x in self.progress)
        return self

    def __exit__(self, *error) -> None:
        pass

    def status(self) -> str:
        count = {
            state: sum(x.state == state for x in self.progress) for state in ("done", "running", "failed")
        }
        fraction, seconds = sum(x.fraction for x in self.progress), time.monotonic() - self.started
        left = sum(1 - x.fraction for x in self.progress if x.state != "failed")
        eta = "?"
        if fraction > self.begun_with:
            minutes = seconds * left / (fraction - self.begun_with) / 60
            eta = f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
        states = ", ".join(f"{n} {state}" for state, n in count.items())
        return f"{len(self.progress)} runs: {states}; left: {eta}"

    def event(self, text: str) -> None:
        print(text, flush=True)

    def update(self) -> None:
        """To be called often; reads and shows how the runs stand when it is time to."""
        if time.monotonic() - self.shown >= self.every:
            self.shown = time.monotonic()
            for x in self.progress:
                if x.state in ("waiting", "running"):
                    x.refresh()
            self.show()

    def show(self) -> None:
        running = [f"\n  {x}" for x in self.progress if x.state == "running"]
        self.event(self.status() + "".join(running))


class LiveView(View):
    """The same in a terminal: the runs in progress as a table that stays at the bottom."""

    def __enter__(self):
        from rich.live import Live

        self.live = Live(auto_refresh=False)
        self.live.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        self.live.__exit__(*error)

    def event(self, text: str) -> None:
        self.live.console.print(text, markup=False, highlight=False)

    def show(self) -> None:
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None)
        for name in ("running", "done", "last score", "attempt"):
            table.add_column(name, justify="left" if name == "running" else "right")
        for x in self.progress:
            if x.state == "running":
                score = "" if x.score is None else f"{x.score:.1f}"
                table.add_row(shown_path(x.run.directory), f"{x.fraction:.0%}", score, str(x.attempts))
        self.live.update(Group(self.status(), table), refresh=True)


def last_lines(run: Run, count: int) -> str:
    """The end of a script's output; of a progress bar's redrawn line only the last state."""
    log = run.directory / "log.txt"
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    own = [line for line in lines if line.strip() and not line.startswith("--- ")]  # without our notes
    return "".join(f"\n    {line}" for line in own[-count:])


def ended(x: Progress, problem: str | None, final: bool, attempts: int, view: View) -> bool:
    """Notes how an attempt ended, with None for the better; whether to try again."""
    if problem is None:
        x.state = "done"
        x.refresh()
        view.event(f"done: {x}")
        return False
    again = not final and x.attempts < attempts
    x.state = "waiting" if again else "failed"
    view.event(f"{'again' if again else 'failed'}: {shown_path(x.run.directory)}, attempt {x.attempts}: "
               f"{problem}{last_lines(x.run, 3)}")  # fmt: skip
    return again


def problem_of(code: int) -> str | None:
    return f"exit code {code}" + (f" ({FINAL[code]})" if code in FINAL else "") if code else None


# --------------------------------------------------------------------------------------------------- engines
def train_here(progress: list[Progress], attempts: int, view: View) -> None:
    """One run after the other; raises KeyboardInterrupt when one was interrupted."""
    for x in progress:
        again = True
        while again:
            x.submitted()
            try:
                code = attempt(x.run, watch=view.update)
                problem, final = problem_of(code), code in FINAL
            except OSError as error:  # a full disk, no permission
                code, problem, final = None, str(error), False
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            again = ended(x, problem, final, attempts, view)


def train_with_ray(progress: list[Progress], args: argparse.Namespace, view: View) -> None:
    """All runs on the machines of a Ray cluster; on Ctrl-C they write checkpoints, then KeyboardInterrupt."""
    import ray

    options, threads = share(ray, args, progress[0].run, view)
    train = ray.remote(max_retries=0, **options)(attempt)  # each retry is one of ours, counted and shown
    pending = {}

    def submit(x: Progress) -> None:
        x.submitted()
        pending[train.remote(x.run, threads)] = x

    try:
        for x in progress:
            submit(x)
        while pending:
            ready, _ = ray.wait(list(pending), timeout=1)
            for task in ready:
                x = pending.pop(task)
                try:
                    code = ray.get(task)
                    problem, final = problem_of(code), code in FINAL
                except ray.exceptions.RayTaskError as error:  # attempt() itself: a full disk, no permission
                    problem, final = str(error.cause), False
                except ray.exceptions.RayError as error:  # its process, or its machine, is gone
                    problem, final = f"its worker died ({type(error).__name__})", False
                if ended(x, problem, final, args.attempts, view):
                    submit(x)
            view.update()
    except KeyboardInterrupt:
        view.event("interrupted: the scripts write their checkpoints")
        for task in pending:
            ray.cancel(task)  # raises KeyboardInterrupt in attempt()
        if pending:
            ray.wait(list(pending), num_returns=len(pending))
        raise


def share(ray, args: argparse.Namespace, first: Run, view: View) -> tuple[dict[str, float], int]:
    """What each run reserves, as options of a Ray task, and its number of threads."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    on_gpu = not args.runs_at_once and any(machine.get("GPU") for machine in machines)
    if args.runs_per_gpu and not on_gpu:
        fail("--runs-per-gpu: Ray sees no GPU; give --runs-at-once instead")
    kind, asked = ("GPU", args.runs_per_gpu) if on_gpu else ("CPU", args.runs_at_once)
    machines = [machine for machine in machines if machine.get(kind) and machine.get("CPU")]
    if not machines:
        fail("no machine of the Ray cluster has CPUs for a run; `ray status` shows them")
    # cores of one GPU, or of one machine: of the smallest, so that every one has room for as many runs
    cores = min(machine["CPU"] / (machine["GPU"] if on_gpu else 1) for machine in machines)

    def options(n: int) -> dict[str, float]:
        part = lambda x: int(1e4 * x / n) / 1e4  # Ray counts in units of 1e-4
        return {"num_cpus": part(cores)} | ({"num_gpus": part(1)} if on_gpu else {})

    def threads(n: int) -> int:
        return max(1, int(cores / n))

    if asked == "auto":
        measure = ray.remote(max_retries=0, **options(1))(probe)
        speed = {}
        for n in PROBED if on_gpu else [n for n in PROBED if n <= cores]:
            speed[n] = ray.get(measure.remote(first, n, threads(n)))
            view.event(f"auto: {n} at once with {threads(n)} threads each: {speed[n]:.1f} steps per second")
            if not speed[n]:
                break
        n = max(speed, key=speed.get)
        view.event(f"auto: {n} runs per {'GPU' if on_gpu else 'machine'}")
    else:
        n = int(asked or (1 if on_gpu else cores))
    return options(n), threads(n)


def start_ray(address: str | None):
    """Ray, connected to the cluster at the address, or to one of its own on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # no GPU asked for: none visible
    os.environ.setdefault("RAY_worker_niceness", "0")  # as a script that is started by hand
    try:
        import ray
    except ImportError:
        fail("ray is not installed: pip install -r benchmark/requirements.txt; or use --shard, without Ray")
    own = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False, "object_store_memory": 2**27}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR",
                 **({} if address else own))  # fmt: skip
    except (ConnectionError, ValueError) as error:
        fail(f"no Ray cluster at --address {address} ({str(error)[:200]}); `ray status` shows one")
    return ray


# ------------------------------------------------------------------------------------------------------ main
def show_table4() -> int:
    """The settings of Table 4, and which of the script's differ; exit code 1 if any does."""
    from benchmark import experiments

    cells = experiments.settings_of_table4()
    by_task: dict[str, list[str]] = {}
    for task, column, paper, ours in cells:
        value = f"{paper:g}" if paper == ours else f"{paper:g} (dtql_gaussian.py: {ours:g})"
        by_task.setdefault(task, []).append(f"{column} {value}")
    for task, values in by_task.items():
        print(f"{task}: {', '.join(values)}")
    differ = sum(paper != ours for _, _, paper, ours in cells)
    print(f"{len(cells)} settings of {len(by_task)} tasks, {differ} differ")
    return int(differ > 0)


def parse(argv: list[str] | None) -> argparse.Namespace:
    from benchmark.experiments import EXPERIMENTS

    def count_or_auto(text: str) -> int | str:
        return text if text == "auto" else positive(text)

    def positive(text: str, kind: Callable = int):
        if not kind(text) > 0:
            raise ValueError
        return kind(text)

    def shard(text: str) -> tuple[int, int]:
        i, n = map(int, text.split("/"))
        if not 0 <= i < n:
            raise ValueError
        return i, n

    names = "".join(f"\n  {name:15} {x.title}. {x.question}" for name, x in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nexperiments:{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = fail
    add = parser.add_argument
    add("--experiment", nargs="+", required=True, choices=EXPERIMENTS, metavar="NAME", help="see above")
    add("--dry-run", action="store_true", help="print the command lines, run nothing")
    add("--runs", type=Path, help="directory of the runs (default: runs, reduced ones runs/budget-N)")
    add("--budget", type=lambda x: positive(x, float), default=1.0, help="factor of all step counts")
    add("--seeds", type=positive, help="training seeds of each setting (default: the experiment's, mostly 5)")
    add("--seeds-per-run", type=positive, default=1, help="seeds that train together in one process")
    add("--only", nargs="+", default=[], metavar="TEXT", help="runs with one of these in their path")
    add("--flags", type=shlex.split, default=[], help='for every run, with "=": --flags="--no-compile"')
    add("--attempts", type=positive, default=3, help="of each run")
    add("--runs-per-gpu", type=count_or_auto, help="a number (default: 1), or auto: as measured")
    add("--runs-at-once", type=count_or_auto, metavar="N",
        help="without GPU, on each machine (default: one per core), or auto")  # fmt: skip
    add("--address", help="of a Ray cluster (default: this machine alone)")
    add("--shard", type=shard, metavar="I/N", help="without Ray: runs I, I + N, ... one by one; I from 0")
    args = parser.parse_args(argv)
    if args.runs_per_gpu and args.runs_at_once:
        fail("give --runs-per-gpu or, without GPU, --runs-at-once")
    if args.shard and (args.runs_per_gpu or args.runs_at_once or args.address):
        fail("--shard runs one by one without Ray: not with --runs-per-gpu, --runs-at-once or --address")
    return args


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 1 if runs failed, 130 if interrupted."""
    args = parse(argv)
    from benchmark.experiments import EXPERIMENTS

    default = ROOT / "runs" if args.budget == 1 else ROOT / "runs" / f"budget-{args.budget:g}"
    directory = (args.runs or default).resolve()
    chosen = [EXPERIMENTS[name] for name in args.experiment]
    tables = [experiment for experiment in chosen if not experiment.settings]
    if tables and show_table4():
        return 1
    runs = [
        run
        for experiment in chosen
        for run in runs_of(experiment, directory, args.seeds, args.seeds_per_run, args.budget, args.flags)
    ]
    if args.only:
        runs = [x for x in runs if any(text in str(x.directory.relative_to(directory)) for text in args.only)]
    alike: dict[tuple, list[Run]] = {}  # the first of each list is trained, the others are copies of it
    for run in runs:
        alike.setdefault((run.command[:-2], run.products), []).append(run)
    groups = list(alike.values())
    if args.shard:
        i, n = args.shard
        groups = groups[i::n]
    if args.dry_run:
        for run, *_ in groups:
            print(run.command_line())
        return 0
    if not groups and tables:
        return 0
    if not groups and not args.shard:
        fail(f"no run of {' '.join(args.experiment)} has {' or '.join(args.only)} in its path; see --dry-run")
    check_commands([run for group in groups for run in group])

    progress, copies = [], []
    for group in groups:
        first, *others = (Progress(run, "done" if run.done() else "waiting") for run in group)
        progress.append(first)
        copies += [(x, first) for x in others]
    missing = [x for x in progress if x.state != "done"]
    view = LiveView(progress, every=1) if sys.stdout.isatty() and not args.shard else View(progress)
    print(f"{len(progress) + len(copies)} runs in {shown_path(directory)}, {len(missing)} to train"
          f"{f', {len(copies)} copies' if copies else ''}", flush=True)  # fmt: skip
    ray = None
    heed_interrupts()
    try:
        if missing and not args.shard:
            ray = start_ray(args.address)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a batch system sends first
        with view:
            if ray:
                train_with_ray(missing, args, view)
            else:
                train_here(missing, args.attempts, view)
            of_done = [x for x, first in copies if first.state == "done" and x.state != "done"]
            train_here(of_done, args.attempts, view)  # which only copies
    except KeyboardInterrupt:
        command = shlex.join(["python", "benchmark/run.py", *(sys.argv[1:] if argv is None else argv)])
        print(f"interrupted; to go on: {command}", file=sys.stderr)
        return INTERRUPTED
    finally:
        if ray:
            ray.shutdown()
    progress += [x for x, _ in copies]
    failed = [x for x in progress if x.state == "failed"]
    done = sum(x.state == "done" for x in progress)
    print(f"{done} of {len(progress)} runs are done", flush=True)
    for x in failed:
        print(f"failed: {shown_path(x.run.directory)}{last_lines(x.run, 10)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
