"""What whole runs of the scripts take beside their training steps: start-up, memory, evaluation.

    python benchmark/run_speed.py                # needs the packages of requirements.txt

startup: from the command to the end of its first training step, on a file of a million transitions in D4RL's
layout (random numbers, of walker2d's and of AntMaze's sizes), and the memory that loading takes at most.

evaluation: wall time of a training with a few evaluations in place, and in a process beside it, over that of
the same training with none. One thread each, so that two cores are enough.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark.speed import ROOT, processor

SIZES = {  # observation and action dims, file
    "walker2d-medium-v2": (17, 6, "walker2d_medium-v2.hdf5"),
    "antmaze-umaze-v2": (29, 8, "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"),
}
EVALUATION = ["--pretrain-steps", "1", "--train-steps", "6000", "--eval-every", "2000", "--compile"]


def write_dataset(path: Path, rows: int, obs_dim: int, action_dim: int) -> None:
    """Random transitions in D4RL's layout: float32, gzip, episodes of 1000."""
    rng = np.random.default_rng(0)
    timeouts = np.arange(1, rows + 1) % 1000 == 0
    with h5py.File(path, "w") as file:
        for name, values in {
            "observations": rng.normal(size=(rows, obs_dim)).astype(np.float32),
            "actions": rng.uniform(-1, 1, size=(rows, action_dim)).astype(np.float32),
            "rewards": rng.normal(size=rows).astype(np.float32),
            "terminals": np.zeros(rows, bool),
            "timeouts": timeouts,
        }.items():
            file.create_dataset(name, data=values, compression="gzip")


def run(folder: Path, *flags: str) -> tuple[float, dict]:
    """Wall seconds of one command of dtql_gaussian.py, and its result.json; datasets lie in folder."""
    with tempfile.TemporaryDirectory() as run_dir:
        command = [sys.executable, str(ROOT / "dtql_gaussian.py"), *flags, "--run-dir", run_dir]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | {"D4RL_DATASET_DIR": str(folder)},
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        return time.perf_counter() - start, json.loads((Path(run_dir) / "result.json").read_text())


LOAD = """
import sys, dtql_gaussian, h5py
from benchmark.speed import PeakMemory
import torch
with PeakMemory(torch.device("cpu")) as before:
    pass
with PeakMemory(torch.device("cpu")) as loading:
    dtql_gaussian.load_dataset(sys.argv[1])
print(loading.mib - before.mib)
"""


def measure_startup(env_id: str) -> dict:
    """Seconds of a run of one step; and MiB that loading takes at most, beside those of what it returns."""
    obs_dim, action_dim, name = SIZES[env_id]
    one_step = ["--env-id", env_id, "--pretrain-steps", "0", "--train-steps", "1", "--eval-episodes", "0"]
    row = {"env_id": env_id, "dataset_mib": 1_000_000 * 4 * (2 * obs_dim + action_dim + 2) / 2**20}
    with tempfile.TemporaryDirectory() as folder:
        for rows in (2000, 1_000_000):
            write_dataset(Path(folder) / name, rows, obs_dim, action_dim)
            run(Path(folder), *one_step)  # from here on, the file is in the page cache
            row[f"s_{rows}"] = run(Path(folder), *one_step)[0]
        command = [sys.executable, "-c", LOAD, env_id]
        env = os.environ | {"D4RL_DATASET_DIR": folder}
        output = subprocess.run(command, cwd=ROOT, check=True, env=env, capture_output=True, text=True).stdout
        row["mib_while_loading"] = float(output.split()[-1])
    return row


def measure_evaluation(episodes: int) -> list[dict]:
    """Wall and training seconds of the same training, evaluated in different ways."""
    ways = {
        "none": ["--eval-episodes", "0"],
        "in place": ["--eval-workers", "0"],
        "beside": ["--eval-workers", "1"],
    }
    rows = []
    for name, flags in ways.items():
        flags = flags if name == "none" else [*flags, "--eval-episodes", str(episodes)]
        seconds, result = run(Path(), *EVALUATION, *flags)
        rows.append({"evaluation": name, "wall_s": seconds, "train_s": result["train_seconds"],
                     "stood_still_s": result["eval_seconds"], "seeds": result["seeds"]})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["startup", "evaluation"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--episodes", type=int, default=2, help="of each evaluation")
    args = parser.parse_args()
    slug = "-".join("".join(c if c.isalnum() else " " for c in processor().lower()).split())
    output = ROOT / "benchmark" / "results" / "speed" / f"{slug}-runs.json"
    results = json.loads(output.read_text()) if output.exists() else {}
    cores = len(os.sched_getaffinity(0))
    results |= {"device": f"{processor()}, {cores} cores", "torch": str(torch.__version__)}
    if "startup" in args.parts:
        results["startup"] = [measure_startup(env_id) for env_id in SIZES]
        print(*results["startup"], sep="\n", flush=True)
    if "evaluation" in args.parts:
        os.environ["OMP_NUM_THREADS"] = "1"
        results["evaluation"] = measure_evaluation(args.episodes)
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
