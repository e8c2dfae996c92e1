"""How fast the scripts train and act, and how that grows; on one device, with torch and the scripts alone.

    python -m benchmark.speed.speed                    # one CPU thread, or the GPU if there is one
    python -m benchmark.speed.speed --threads 2 --num-seeds 1 3 --parts train
    python -m benchmark.speed.speed --against ../other # is any step slower than that of another checkout?

train: each script's training step, eager and compiled (on a GPU: captured in a CUDA graph, and that with
--tf32 too), beside its matrix products alone. These are recorded from one eager step by their shapes and
layouts, then run bare, on fresh operands, in turn with the steps: a drift of the machine's speed cancels in
the ratio of a round. SRPO is timed in each of its phases, the others in the one that trains all models.

act: milliseconds for the actions of 1 and of 100 states, by a plain sample and as the script evaluates.

paper: what stands in DTQL's Table 2 and Fig. 4 (time on antmaze-umaze-v0): seconds of training per 1000 steps
of each phase, hours for all of them, and seconds that a trajectory of 700 steps spends on actions.

scaling: DTQL's training step at other batch sizes, widths and numbers of seeds.

Sizes but for part paper are walker2d's: 17 observation and 6 action dims; batch 256, 2048 for IDQL and
SRPO's behaviour model. --scripts times some alone and leaves the others' rows in the output file as they are.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {  # the phases that are timed
    "dtql_gaussian.py": ["train"], "dtql_implicit.py": ["train"], "kl_distill.py": ["train"],
    "srpo.py": ["critic", "behavior", "policy"], "benchmark/baselines/fql.py": ["train"],
    "benchmark/baselines/diffusion_ql.py": ["train"], "benchmark/baselines/idql.py": ["train"],
    "benchmark/baselines/iql.py": ["train"],
}  # fmt: skip
WALKER, ANTMAZE = "walker2d-medium-v2", "antmaze-umaze-v0"
SIZES = {WALKER: (17, 6), ANTMAZE: (29, 8)}  # observation and action dims
ATEN = torch.ops.aten  # operator: position of its first factor
PRODUCTS = {ATEN.mm.default: 0, ATEN.bmm.default: 0, ATEN.addmm.default: 1, ATEN.baddbmm.default: 1}
SCALING = {
    "batch_size": (64, 256, 1024, 4096),
    "width": (64, 128, 256, 512, 1024),
    "num_seeds": (1, 2, 4, 8, 16),
}
PARTS = ("train", "act", "paper", "scaling")


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


def load(path: Path):
    """A script as a module of its own, also where another checkout has one of the same name."""
    spec = importlib.util.spec_from_file_location(f"timed_{path.stem}_{abs(hash(path))}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_agent(script, device: torch.device, env_id=WALKER, compiled=False, width=256, **settings):
    """An untrained agent, its networks `width` wide, and its arguments; settings: of Args."""
    args = script.Args(env_id=env_id, device=str(device), compile=compiled, **settings)
    script.resolve(args)
    usual, script.HIDDEN = script.HIDDEN, tuple(width if x == 256 else x for x in script.HIDDEN)
    torch.manual_seed(0)
    agent = script.Agent(*SIZES[env_id], args, device)
    script.HIDDEN = usual
    return agent, args


def training_step(script, phase: str, device: torch.device, totals: dict | None = None, **settings):
    """The script's own training step on random data, as a function that adds its losses to totals; and its
    batch size."""
    agent, args = make_agent(script, device, **settings)
    script.STARTS.get(phase, lambda agent: None)(agent)
    obs_dim, action_dim = SIZES[args.env_id]
    n = 100_000
    obs, action, next_obs = (torch.randn(n, x, device=device) for x in (obs_dim, action_dim, obs_dim))
    data = [obs, action.tanh(), torch.randn(n, device=device), next_obs, torch.zeros(n, device=device)]
    steps = script.gradient_steps(agent, data, phase, {} if totals is None else totals, args)
    return steps.__next__, getattr(args, f"{phase}_batch_size", args.batch_size)


def bare_products(step: Callable, device: torch.device) -> tuple[Callable, int]:
    """The products of one step as a function, and their floating-point operations."""
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


def seconds_per_call(function: Callable, device: torch.device, calls: int) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return (time.perf_counter() - start) / calls


def in_turn(a: Callable, b: Callable, device: torch.device, rounds: int) -> dict:
    """Medians over rounds of a quarter of a second each, in which one of the two goes first by turns: of both
    times, and of their ratio within a round, with its range."""
    for _ in range(5):  # compiles, captures, warms caches
        a(), b()
    calls = 1 + int(0.25 / seconds_per_call(a, device, 3))
    pairs = []
    for i in range(rounds):
        first = [seconds_per_call(x, device, calls) for x in ((a, b), (b, a))[i % 2]]
        pairs.append(first[:: 1 - 2 * (i % 2)])
    ratios = [x / y for x, y in pairs]
    ms_a, ms_b = (1e3 * statistics.median(x) for x in zip(*pairs))
    row = {"ms": ms_a, "ms_other": ms_b, "ratio": statistics.median(ratios)}
    return row | {"ratio_range": [min(ratios), max(ratios)]}


def row_of(name: str, phase: str, device: torch.device, **settings) -> dict:
    """What a row is of, by names that stand in it."""
    kind = {True: "graph" if device.type == "cuda" else "compiled", False: "eager"}[settings["compiled"]]
    return {"script": name, "phase": phase, "mode": kind + " tf32" * settings.get("tf32", False),
            "num_seeds": settings.get("num_seeds", 1), "width": settings.get("width", 256)}  # fmt: skip


def measure_step(name: str, phase: str, device: torch.device, rounds: int, **settings) -> dict:
    """A training step against its bare products."""
    torch._dynamo.reset()
    step, batch_size = training_step(load(ROOT / name), phase, device, **settings)
    eager, _ = training_step(load(ROOT / name), phase, device, **settings | {"compiled": False})
    bare, flops = bare_products(eager, device)
    row = row_of(name, phase, device, **settings) | {"batch_size": batch_size, "gflop": flops / 1e9}
    return row | in_turn(step, bare, device, rounds)


def measure_against(name: str, phase: str, device: torch.device, rounds: int, other: Path, **settings):
    """A training step against that of another checkout."""
    torch._dynamo.reset()
    ours, theirs = (training_step(load(x / name), phase, device, **settings)[0] for x in (ROOT, other))
    return row_of(name, phase, device, **settings) | in_turn(ours, theirs, device, rounds)


def measure_acting(name: str, device: torch.device, rounds: int, states: int, candidates: int | None, **of):
    """Median time of the script's own act(); candidates None: as it evaluates; of: settings."""
    script = load(ROOT / name)
    agent, args = make_agent(script, device, **of)
    own = getattr(args, "eval_candidates", 1)
    args.eval_candidates = own if candidates is None else candidates
    obs = torch.randn(1, states, SIZES[args.env_id][0], device=device)
    act = lambda: script.act(agent, obs, args)
    act()
    calls = 1 + int(0.25 / seconds_per_call(act, device, 2))
    seconds = statistics.median(seconds_per_call(act, device, calls) for _ in range(rounds))
    return {"script": name, "states": states, "candidates": args.eval_candidates, "ms": 1e3 * seconds}


def measure_as_paper(name: str, device: torch.device, rounds: int) -> dict:
    """A column of the paper's Table 2."""
    script = load(ROOT / name)
    own, trajectory = script.settings_of(ANTMAZE), 700
    times = {phase: measure_step(name, phase, device, rounds, env_id=ANTMAZE, compiled=True)["ms"]
             for phase in script.PHASES}  # ms for one step are seconds for 1000  # fmt: skip
    plain, chosen = (measure_acting(name, device, rounds, 1, n, env_id=ANTMAZE) for n in (1, None))
    return {
        "script": name, "train_s_per_1k_steps": times,
        "training_hours": sum(s * own[f"{phase}_steps"] / 1000 for phase, s in times.items()) / 3600,
        "acting_s_per_trajectory": trajectory * chosen["ms"] / 1e3, "candidates": chosen["candidates"],
        "acting_s_one_candidate": trajectory * plain["ms"] / 1e3,
    }  # fmt: skip


def measure(part: str, device: torch.device, options: argparse.Namespace) -> Iterator[dict]:
    """The rows of one part; each as soon as it is there."""
    rounds, modes = options.rounds, [{"compiled": False}, {"compiled": True}]
    steps = [(name, phase) for name in options.scripts for phase in SCRIPTS[name]]
    if part == "against":
        for (name, phase), n, mode in itertools.product(steps, options.num_seeds, modes):
            yield measure_against(name, phase, device, rounds, options.against, num_seeds=n, **mode)
    elif part == "train":
        modes += [{"compiled": True, "tf32": True}] if device.type == "cuda" else []
        for (name, phase), n, mode in itertools.product(steps, options.num_seeds, modes):
            yield measure_step(name, phase, device, rounds, num_seeds=n, **mode)
    elif part == "act":
        for name, states, n in itertools.product(options.scripts, (1, 100), (1, None)):
            yield measure_acting(name, device, rounds, states, n)
    elif part == "paper":
        for name in options.scripts:
            yield measure_as_paper(name, device, rounds)
    else:
        for of in ({name: x, "compiled": True} for name, values in SCALING.items() for x in values):
            yield {"varied": [*of][0]} | measure_step("dtql_gaussian.py", "train", device, rounds, **of)


def key(row: dict) -> tuple:
    """What a row is of."""
    of = "device against varied script phase mode num_seeds batch_size width states candidates"
    return tuple(row.get(name) for name in of.split())


def describe(device: torch.device) -> str:
    """The GPU's name, or the CPU's, where Linux tells it, with the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [platform.machine()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")] or names
    return f"{names[0]}, threads: {torch.get_num_threads()}"


def commit(checkout: Path) -> str:
    return subprocess.getoutput(f"git -C '{checkout}' describe --always --dirty")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--against", type=Path, metavar="DIR", help="compare with this checkout's steps, and measure no part")
    add("--scripts", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--num-seeds", type=int, nargs="+", default=[1], help="of parts train and against")
    add("--rounds", type=int, default=15)
    add("--output", type=Path, help="JSON file (default: benchmark/results/speed/{device}.json)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    source = {"device": describe(device), "torch": str(torch.__version__), "commit": commit(ROOT)}
    source |= {"against": commit(options.against)} if options.against else {}
    name = "-".join("".join(c if c.isalnum() else " " for c in source["device"].lower()).split())
    output = options.output or ROOT / f"benchmark/results/speed/{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(output.read_text()) if output.exists() else {}
    print(source)
    for part in ["against"] if options.against else options.parts:
        rows = []
        for row in measure(part, device, options):
            print(part, *(f"{x:.3g}" if isinstance(x, float) else x for x in row.values()), flush=True)
            rows.append(source | row)
            new = {key(row) for row in rows}
            results[part] = [row for row in results.get(part, []) if key(row) not in new] + rows
            output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
