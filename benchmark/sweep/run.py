"""Train an experiment of benchmark/sweep/experiments.py: a table or figure of the papers, or the local ones.

    pip install -r benchmark/requirements.txt
    python -m benchmark.sweep.run --experiment local --dry-run      # its command lines, ready to be copied
    python -m benchmark.sweep.run --experiment table1 --seeds-per-run 5 --gpus-per-run 0.5
    python -m benchmark.sweep.run --experiment table1 --only walker2d  # runs with this in their path

Ray runs the unmodified scripts side by side, each in a process of its own, on this machine or on a cluster
(--address, which `ray start --head` prints), whose machines see the same files: the repository at one path,
and --runs. A run is done when its result.json exists, so the same command again trains what is missing, and
continues from checkpoints what was cut: bit for bit, as the scripts do, on a CPU with as many threads. A run
that fails is tried again, unless its input is bad (exit code 2) or its loss not finite (3), which would come
again; what failed to the end is shown with its last lines, and makes this program's exit code 1.

A run has --cpus-per-run cores, as threads and as what Ray reserves, and --gpus-per-run of a GPU. One thread
each, as many runs as cores, is the most work of a CPU. On a GPU try how many runs still add up to more steps
per second (log.txt, metrics.jsonl).

Without Ray, --shard i/n runs every n-th run from the i-th on, one after the other, as in a Slurm job array
(docs/sweeps.md).

Directory of a run: {runs}/{task}/{script and flags}/seed-{first}, with the script's own files, command.txt
(its command line) and log.txt (its output). log.txt is also its lock: a run's processes inherit the
descriptor, so that a second attempt waits for the last process of one that was given up for dead.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import Progress

from benchmark.sweep.experiments import EXPERIMENTS, Experiment

ROOT = Path(__file__).resolve().parents[2]
FINAL = {2: "bad input", 3: "a loss is not finite"}  # exit codes of a script that would come again
OURS = {"--env-id", "--seed", "--num-seeds", "--run-dir", "--resume", "--eval-only"}  # say which run it is


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

    def done(self) -> bool:
        return (self.directory / "result.json").exists()

    def command_line(self) -> str:
        return shlex.join(self.command)


def shown_path(path: Path) -> str:
    """Relative to the repository root, if it is in there."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def names_of(flags: Iterable[str]) -> set[str]:
    """Of flags as on a command line, in one spelling: --no_track, --track=x and --track are --track."""
    names = (x[2:].partition("=")[0].replace("_", "-") for x in flags if x.startswith("--"))
    return {f"--{name.removeprefix('no-')}" for name in names}


def runs_of(experiment: Experiment, runs: Path, seeds: int | None = None, seeds_per_run: int = 1,
            flags: Iterable[str] = ()) -> Iterator[Run]:  # fmt: skip
    """All runs of an experiment; seeds: of each setting, None as the experiment says. Exits with code 2 if a
    flag would make another experiment of it."""
    seeds, given = seeds or experiment.seeds, names_of(flags)
    for setting in experiment.settings:
        if fixed := given & (OURS | names_of(setting.flags)):
            fail(f"--flags: {' '.join(sorted(fixed))} is set by {experiment.name} for {setting.label}; leave "
                 "it out, or start the script by hand")  # fmt: skip
        for first in range(1, seeds + 1, seeds_per_run):
            count = min(seeds_per_run, seeds + 1 - first)
            directory = runs / setting.folder / f"seed-{first}"
            command = ["python", setting.script, "--env-id", setting.task, "--seed", str(first)]
            command += ["--num-seeds", str(count)] if count > 1 else []
            command += [*setting.flags, *flags, "--run-dir", shown_path(directory)]
            yield Run(directory, tuple(command))


def check_commands(runs: list[Run]) -> None:
    """Exits with code 2 if a directory holds a run of another command."""
    for run in runs:
        path = run.directory / "command.txt"
        if path.exists() and path.read_text().strip() != run.command_line():
            fail(f"{path} says `{path.read_text().strip()}`, which is another run; choose another --runs, or "
                 "the flags of then")  # fmt: skip


def attempt(run: Run, threads: int) -> int:
    """Trains a run from its last checkpoint on, if it has one; the exit code, 0 if it is done."""
    run.directory.mkdir(parents=True, exist_ok=True)
    with open(run.directory / "log.txt", "ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # waits until no process of an earlier attempt is left
        if run.done():
            return 0
        (run.directory / "command.txt").write_text(run.command_line() + "\n")
        arguments = run.command[1:]
        if (run.directory / "config.json").exists():
            arguments = (run.command[1], "--resume", run.command[-1])
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        libc, death = ctypes.CDLL(None), 1  # PR_SET_PDEATHSIG: it dies with this process, were it by kill -9
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            preexec_fn=lambda: libc.prctl(death, signal.SIGKILL),
        )  # fmt: skip
        try:
            return process.wait() or int(not run.done())
        finally:
            process.kill()  # where it was interrupted: the last checkpoint is kept


def train(run: Run, threads: int, attempts: int) -> str:
    """What went wrong in the last of several attempts; "" if the run is done."""
    for i in range(1, attempts + 1):
        try:
            code = attempt(run, threads)
        except OSError as error:  # a full disk, no permission
            problem = f"attempt {i}: {error}"
            continue
        if code == 0:
            return ""
        problem = f"attempt {i}: exit code {code}" + f" ({FINAL.get(code)})" * (code in FINAL)
        if code in FINAL:
            break
    return problem


# -------------------------------------------------------------------------------------------- what one sees
def fraction(run: Run) -> float:
    """The share of a run's steps that it has done."""
    if run.done():
        return 1.0
    with contextlib.suppress(OSError, ValueError, IndexError):  # none yet, or a line that is being written
        config = json.loads((run.directory / "config.json").read_text())
        steps = sum(value for name, value in config.items() if name.endswith("_steps"))
        lines = (run.directory / "metrics.jsonl").read_text().rpartition("\n")[0]
        return json.loads(lines.splitlines()[-1])["step"] / steps
    return 0.0


def last_score(run: Run) -> str:
    """Of a run that is done, mean over its seeds."""
    result = json.loads((run.directory / "result.json").read_text())
    scores = [seed["last"] for seed in result["seeds"].values()]
    return f"{result['metric']} {sum(scores) / len(scores):.1f}" if scores else "no score"


def last_lines(run: Run, count: int) -> str:
    """The end of a script's output; of a progress bar's redrawn line only the last state."""
    log = run.directory / "log.txt"
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    return "".join(f"\n    {line}" for line in [line for line in lines if line.strip()][-count:])


class View(Progress):
    """In a terminal bars of the sweep and of each run that is training, below the lines that are printed."""

    def __init__(self, runs: list[Run]):
        console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
        super().__init__(console=console, disable=not console.is_terminal, refresh_per_second=0.2,
                         speed_estimate_period=3600)  # fmt: skip
        done = sum(map(fraction, runs))
        self.add_task(f"{len(runs)} runs", total=len(runs), completed=done, runs=runs)
        for run in runs:
            self.add_task(shown_path(run.directory), total=1, visible=False, runs=[run])

    def get_renderables(self) -> Iterable[RenderableType]:
        """Called at every refresh."""
        for task in self.tasks:
            done = sum(map(fraction, task.fields["runs"]))
            self.update(task.id, completed=done, visible=task.id == 0 or 0 < done < 1)
        return super().get_renderables()


# --------------------------------------------------------------------------------------------------- engines
def train_here(runs: list[Run], args: argparse.Namespace) -> Iterator[tuple[Run, str]]:
    """One run after the other; each when it has ended, with what went wrong."""
    for run in runs:
        yield run, train(run, args.cpus_per_run, args.attempts)


def train_with_ray(runs: list[Run], args: argparse.Namespace) -> Iterator[tuple[Run, str]]:
    """All runs on the machines of a Ray cluster, as many at once as these have room for."""
    import ray

    gpus = args.gpus_per_run
    if gpus is None:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
    needed = {"CPU": args.cpus_per_run, "GPU": gpus}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(x, 0) >= n for x, n in needed.items()) for machine in machines):
        fail(f"no machine of the Ray cluster has --cpus-per-run {args.cpus_per_run} and --gpus-per-run "
             f"{gpus:g}; `ray status` shows them")  # fmt: skip
    remote = ray.remote(max_retries=args.attempts - 1, num_cpus=args.cpus_per_run, num_gpus=gpus)(train)
    pending = {remote.remote(run, args.cpus_per_run, args.attempts): run for run in runs}
    while pending:
        for task in ray.wait(list(pending), timeout=1)[0]:
            try:
                problem = ray.get(task)
            except ray.exceptions.RayError as error:  # its process, or its machine, is gone
                problem = f"its worker died ({type(error).__name__})"
            yield pending.pop(task), problem


def start_ray(address: str | None) -> None:
    """Connects to the cluster at the address, or to one of its own on this machine."""
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
                        "RAY_worker_niceness": "0"}.items():  # fmt: skip
        os.environ.setdefault(name, value)  # no GPU asked for: none visible; as a script started by hand
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


# ------------------------------------------------------------------------------------------------------ main
def parse(argv: list[str] | None) -> argparse.Namespace:
    def positive(text: str) -> int:
        if not int(text) > 0:
            raise ValueError
        return int(text)

    def shard(text: str) -> tuple[int, int]:
        i, n = map(int, text.split("/"))
        if not 0 <= i < n:
            raise ValueError
        return i, n

    names = "".join(f"\n  {name:15} {x.title}. {x.question}" for name, x in EXPERIMENTS.items())
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=f"{__doc__}\nexperiments:{names}", formatter_class=raw)
    parser.error = fail
    add = parser.add_argument
    add("--experiment", nargs="+", required=True, choices=EXPERIMENTS, metavar="NAME", help="see above")
    add("--dry-run", action="store_true", help="print the command lines, run nothing")
    add("--runs", type=Path, default=ROOT / "runs", help="directory of the runs (default: runs)")
    add("--seeds", type=positive, help="training seeds of each setting (default: the experiment's, mostly 5)")
    add("--seeds-per-run", type=positive, default=1, help="seeds that train together in one process")
    add("--only", nargs="+", default=[], metavar="TEXT", help="runs with one of these in their path")
    add("--flags", type=shlex.split, default=[], help='for every run, with "=": --flags="--compile"')
    add("--attempts", type=positive, default=3, help="of each run")
    add("--cpus-per-run", type=positive, default=1, help="cores of a run, and its threads")
    add("--gpus-per-run", type=float, help="share of a GPU (default: 1 where Ray sees one, else 0)")
    add("--address", help="of a Ray cluster (default: this machine alone)")
    add("--shard", type=shard, metavar="I/N", help="without Ray: runs I, I + N, ... one by one; I from 0")
    args = parser.parse_args(argv)
    if args.shard and (args.gpus_per_run is not None or args.address):
        fail("--shard runs one by one without Ray: not with --gpus-per-run or --address")
    return args


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 1 if runs failed, 130 if interrupted."""
    args = parse(argv)
    directory, settings = args.runs.resolve(), (args.seeds, args.seeds_per_run, args.flags)
    planned = [run for name in args.experiment for run in runs_of(EXPERIMENTS[name], directory, *settings)]
    by_path = {str(run.directory.relative_to(directory)): run for run in planned}  # those in common once
    chosen = [x for path, x in by_path.items() if not args.only or any(text in path for text in args.only)]
    if not chosen:
        fail(f"no run of {' '.join(args.experiment)} has {' or '.join(args.only)} in its path; see --dry-run")
    if args.shard:
        i, n = args.shard
        chosen = chosen[i::n]
    if args.dry_run:
        print(*(run.command_line() for run in chosen), sep="\n")
        return 0
    check_commands(chosen)
    missing = [run for run in chosen if not run.done()]
    print(f"{len(chosen)} runs in {shown_path(directory)}, {len(missing)} to train", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background of a shell, and from Slurm
        signal.signal(number, signal.default_int_handler)
    failed = []
    try:
        if missing and not args.shard:
            start_ray(args.address)
        with View(chosen) as view:
            ended = (train_here if args.shard else train_with_ray)(missing, args) if missing else ()
            for run, problem in ended:
                if problem:
                    failed.append(run)
                how = problem + last_lines(run, 3) if problem else last_score(run)
                view.console.print(f"{'failed' if problem else 'done'}: {shown_path(run.directory)}, {how}")
    except KeyboardInterrupt:
        words = ["python", "-m", "benchmark.sweep.run", *(sys.argv[1:] if argv is None else argv)]
        print(f"interrupted; to go on from the last checkpoints: {shlex.join(words)}", file=sys.stderr)
        return 130
    finally:
        if ray := sys.modules.get("ray"):
            ray.shutdown()
    print(f"{sum(run.done() for run in chosen)} of {len(chosen)} runs are done", flush=True)
    for run in failed:
        print(f"failed: {shown_path(run.directory)}{last_lines(run, 10)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
