"""What it costs that threads spin while they wait for each other (libgomp's GOMP_SPINCOUNT), alone and busy.

    python -m benchmark.speed.waiting        # four minutes on an otherwise idle machine

Eager training steps of dtql_gaussian.py with all cores, in a process for each setting: alone, and beside
three processes that compute all the time. Settings take turns, three rounds. `own` is what libgomp does where
nothing is set. Written to benchmark/results/speed/waiting.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack

import torch

from benchmark.speed.speed import ROOT, commit, describe

SETTINGS = {
    "own": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY, SECONDS = 3, 7
TIMED = f"""
import time
from benchmark.speed.speed import ROOT, load, torch, training_step
step, _ = training_step(load(ROOT / "dtql_gaussian.py"), "train", torch.device("cpu"))
for _ in range(5): step()
start, steps = time.perf_counter(), 0
while time.perf_counter() - start < {SECONDS}:
    step()
    steps += 1
print(steps / (time.perf_counter() - start))
"""


def steps_per_second(setting: dict[str, str]) -> float:
    env = {name: x for name, x in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))} | setting
    return float(subprocess.check_output([sys.executable, "-c", TIMED], cwd=ROOT, env=env))


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    source = {
        "device": describe(torch.device("cpu")),
        "torch": str(torch.__version__),
        "commit": commit(ROOT),
    }
    rows = []
    for busy in (0, BUSY):
        with ExitStack() as stack:
            for _ in range(busy):
                process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                stack.callback(process.kill)
            rounds = [{name: steps_per_second(x) for name, x in SETTINGS.items()} for _ in range(3)]
        for name in SETTINGS:
            speeds = [speeds[name] for speeds in rounds]
            row = {"setting": name, "busy_processes": busy, "steps_per_second": statistics.median(speeds)}
            rows.append(row | {"range": [min(speeds), max(speeds)]} | source)
            print(row, flush=True)
    path = ROOT / "benchmark/results/speed/waiting.json"
    path.write_text(json.dumps({"waiting": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
