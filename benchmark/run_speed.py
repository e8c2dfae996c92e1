"""What whole runs of the scripts take beside their training steps: start-up, memory, evaluation.

    python benchmark/run_speed.py                # needs the packages of requirements.txt

startup: from the command to the end of its first training step, on a file of a million transitions in D4RL's
layout (random numbers, of walker2d's and of AntMaze's sizes), which is in the page cache: eager; compiled,
with nothing in the compiler's cache and again with all in it. And the memory that loading takes at most.

evaluation: wall time of a training with a few evaluations in place, and in a process beside it, over that of
the same training with none. One thread each, so that two cores are enough.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dtql_gaussian as script
from benchmark.speed import ROOT, SIZES, processor, slug

MILLION = 1_000_000
TRAINING = ["--pretrain-steps", "1", "--train-steps", "6000", "--eval-every", "2000", "--compile"]
WAYS = {  # to evaluate
    "none": ["--eval-episodes", "0"],
    "in place": ["--eval-episodes", "10", "--eval-workers", "0"],
    "beside": ["--eval-episodes", "10", "--eval-workers", "1"],
}
LOAD = """
import sys
from pathlib import Path
import h5py, dtql_gaussian

def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10

Path("/proc/self/clear_refs").write_text("5")  # Linux: forgets the peak
before = peak()
dtql_gaussian.load_dataset(sys.argv[1])
print(peak() - before)
"""


def write_dataset(path: Path, rows: int, obs_dim: int, action_dim: int) -> None:
    """Random transitions in D4RL's layout: float32, gzip, episodes of 1000."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, values in {
            "observations": rng.normal(size=(rows, obs_dim)).astype(np.float32),
            "actions": rng.uniform(-1, 1, size=(rows, action_dim)).astype(np.float32),
            "rewards": rng.normal(size=rows).astype(np.float32),
            "terminals": np.zeros(rows, bool),
            "timeouts": np.arange(1, rows + 1) % 1000 == 0,
        }.items():
            file.create_dataset(name, data=values, compression="gzip")


def run(command: list[str], **env: str) -> tuple[float, str]:
    """Wall seconds of a Python command and its output; ends this program with its errors if it fails."""
    start = time.perf_counter()
    process = subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | env, capture_output=True,
                             text=True)  # fmt: skip
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}:\n{process.stderr}")
    return time.perf_counter() - start, process.stdout


def measure_startup(env_id: str) -> dict:
    """Seconds of a run of one step; and MiB that loading takes at most, beside those of what it returns."""
    obs_dim, action_dim = SIZES[env_id]
    row = {"env_id": env_id, "dataset_mib": MILLION * 4 * (2 * obs_dim + action_dim + 2) / 2**20}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(script.D4RL_FILES[env_id]).name
        env = {"D4RL_DATASET_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}

        def seconds(*flags: str) -> float:
            command = ["dtql_gaussian.py", "--env-id", env_id, "--pretrain-steps", "0", "--train-steps", "1"]
            run_dir = tempfile.mkdtemp(dir=folder)
            return run([*command, "--eval-episodes", "0", *flags, "--run-dir", run_dir], **env)[0]

        for rows in (2000, MILLION):
            write_dataset(file, rows, obs_dim, action_dim)
            seconds()  # from here on, the file is in the page cache
            row[f"s_{rows}"] = seconds()
        row |= {f"s_{MILLION}_compiled_{cache}": seconds("--compile") for cache in ("cold", "warm")}
        row["mib_while_loading"] = float(run(["-c", LOAD, env_id], **env)[1].split()[-1])
    return row


def measure_evaluation(way: str) -> dict:
    """Wall and training seconds of the same training, evaluated in this way."""
    with tempfile.TemporaryDirectory() as run_dir:
        command = ["dtql_gaussian.py", *TRAINING, *WAYS[way], "--run-dir", run_dir]
        seconds, _ = run(command, OMP_NUM_THREADS="1")
        result = json.loads((Path(run_dir) / "result.json").read_text())
    return {"evaluation": way, "command": " ".join(["python", *command[:-2]]), "wall_s": seconds,
            "train_s": result["train_seconds"], "stood_still_s": result["eval_seconds"],
            "seeds": result["seeds"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"startup": (measure_startup, SIZES), "evaluation": (measure_evaluation, WAYS)}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    args = parser.parse_args()
    output = ROOT / "benchmark" / "results" / "speed" / f"{slug(processor())}-runs.json"
    results = json.loads(output.read_text()) if output.exists() else {}
    source = {"device": f"{processor()}, {len(os.sched_getaffinity(0))} cores", "torch": torch.__version__,
              "python": platform.python_version()}  # fmt: skip
    for part in args.parts:
        measure, cases = parts[part]
        results[part] = []
        for case in cases:
            results[part].append(measure(case) | source)
            print(results[part][-1], flush=True)
            output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
