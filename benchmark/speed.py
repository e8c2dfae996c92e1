"""Time of one training step of each script, and of the matrix products in it alone.

    python benchmark/speed.py                    # one CPU thread, or the GPU if there is one
    python benchmark/speed.py --threads 2 --num-seeds 1 3

The products are recorded from one eager step by their shapes and layouts, then run bare, on fresh operands,
in turn with the steps: each round times both, so that a drift of the machine's speed cancels in their ratio.
The sizes are walker2d's: 17 observation and 6 action dims; batch 256, but 2048 for SRPO's behaviour model.
SRPO is timed in each of its phases, the others in the one that trains all models.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STEPS = [("dtql_gaussian", "train"), ("dtql_implicit", "train"), ("kl_distill", "train"),
         ("srpo", "critic"), ("srpo", "behavior"), ("srpo", "policy")]  # script, phase  # fmt: skip
OBS_DIM, ACTION_DIM = 17, 6
PRODUCTS = {  # operator: position of its first factor
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
}


class RecordProducts(TorchDispatchMode):
    """Collects the operands' sizes and strides of every matrix product that runs inside it."""

    def __init__(self):
        super().__init__()
        self.operands = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            first = PRODUCTS[func]
            self.operands.append([(x.shape, x.stride()) for x in args[first : first + 2]])
        return func(*args, **(kwargs or {}))


def training_step(script, phase_name: str, num_seeds: int, compiled: bool, device: torch.device):
    """The script's own training step on random data, as a function without arguments; and its batch size."""
    args = script.Args(env_id="walker2d-medium-v2", num_seeds=num_seeds, device=str(device), compile=compiled)
    script.resolve(args)
    agent = script.Agent(OBS_DIM, [1.0] * ACTION_DIM, args, device)
    dims = [OBS_DIM, ACTION_DIM, 1, OBS_DIM, 1]
    transitions = torch.randn(100_000, sum(dims), device=device)
    transitions[:, OBS_DIM : OBS_DIM + ACTION_DIM].tanh_()
    transitions[:, -1] = 0
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(num_seeds)]
    phase = script.PHASES[phase_name]
    phase.start(agent)
    batch_size = getattr(args, phase.batch_size)
    return script.make_step(agent, transitions, dims, generators, phase, {}), batch_size


def bare_products(step, device: torch.device):
    """The products of one step as a function without arguments, and their floating-point operations."""
    with RecordProducts() as recorded:
        step()
    calls, flops = [], 0
    for shapes in recorded.operands:
        a, b = (torch.empty_strided(*shape, device=device).normal_() for shape in shapes)
        product = torch.bmm if a.dim() == 3 else torch.mm
        calls.append((product, a, b, product(a, b)))
        flops += 2 * a.numel() * b.shape[-1]

    def run() -> None:
        for product, a, b, out in calls:
            product(a, b, out=out)

    return run, flops


def seconds_per_call(function, device: torch.device, calls: int) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return (time.perf_counter() - start) / calls


def measure(name: str, phase: str, num_seeds: int, compiled: bool, device: torch.device, rounds: int) -> dict:
    """Medians over rounds, of half a second or a bit more, of step time, bare time and their ratio."""
    script = importlib.import_module(name)
    torch._dynamo.reset()
    bare, flops = bare_products(training_step(script, phase, num_seeds, False, device)[0], device)
    step, batch_size = training_step(script, phase, num_seeds, compiled, device)
    for _ in range(5):  # compiles, captures, warms caches
        step()
        bare()
    calls = 1 + int(0.25 / seconds_per_call(step, device, 3))
    pairs = [
        (seconds_per_call(step, device, calls), seconds_per_call(bare, device, calls)) for _ in range(rounds)
    ]
    ratios = sorted(a / b for a, b in pairs)
    step_seconds = statistics.median(a for a, _ in pairs)
    return {
        "script": name,
        "phase": phase,
        "mode": ("graph" if device.type == "cuda" else "compiled") if compiled else "eager",
        "num_seeds": num_seeds,
        "batch_size": batch_size,
        "ms_per_step": 1e3 * step_seconds,
        "steps_per_second": 1 / step_seconds,
        "ms_bare_products": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "gflop_per_step": flops / 1e9,
    }


def processor() -> str:
    """The CPU's own name, where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        x.partition(":")[2].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--num-seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmark/results/speed/...)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor()} {args.threads} threads"
    )
    rows = []
    print(f"{where}, torch {torch.__version__}")
    print("| script | phase | mode | seeds | ms/step | steps/s | bare products, ms | ratio (range) | GFLOP |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, phase in STEPS:
        for num_seeds in args.num_seeds:
            for compiled in (False, True):
                row = measure(name, phase, num_seeds, compiled, device, args.rounds)
                rows.append(row)
                low, high = row["ratio_range"]
                print(
                    f"| {name} | {phase} | {row['mode']} | {num_seeds} | {row['ms_per_step']:.2f} "
                    f"| {row['steps_per_second']:.1f} | {row['ms_bare_products']:.2f} "
                    f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['gflop_per_step']:.2f} |",
                    flush=True,
                )
    slug = "".join(c if c.isalnum() else "-" for c in where.lower())
    output = args.output or ROOT / "benchmark" / "results" / "speed" / f"{slug}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    versions = {"device": where, "torch": str(torch.__version__), "python": platform.python_version()}
    command = "python " + " ".join([os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    output.write_text(json.dumps({**versions, "command": command, "rows": rows}, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
