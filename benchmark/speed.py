"""How fast the scripts train and act, and how that grows; on one device, with torch and the scripts alone.

    python benchmark/speed.py                    # one CPU thread, or the GPU if there is one
    python benchmark/speed.py --threads 2 --num-seeds 1 3 --parts train

train: each script's training step, eager and compiled (on a GPU: captured in a CUDA graph), against its
matrix products alone. These are recorded from one eager step by their shapes and layouts, then run bare, on
fresh operands, in turn with the steps: each round times both, so that a drift of the machine's speed cancels
in their ratio. On a GPU also with --tf32. SRPO is timed in each of its phases, the others in the one that
trains all models.

act: milliseconds for the actions of 1 and of 100 states, by one sample and by the choice among 1024 by Q, and
the seconds that a trajectory of 1000 steps spends on them, its environment not counted.

tf32 (on a GPU): what --tf32 changes in the losses, as means over 500 steps from the same random draws.

paper: Table 2 and Fig. 4 of DTQL (time on antmaze-umaze-v0) beside ours: seconds of training per 1000 steps
of each phase, its hours for all steps, and seconds that a trajectory of 700 steps spends on actions.

scaling: DTQL's training step at other batch sizes, widths and numbers of seeds. picture: draws what the
output file has of the last two (`--parts picture --output FILE` elsewhere, if matplotlib is missing here).

Sizes but for part paper are walker2d's: 17 observation and 6 action dims; batch 256, SRPO's behaviour model
2048. --scripts times some scripts alone, and leaves the others' rows in the output file as they are.
"""

import argparse
import contextlib
import csv
import gc
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STEPS = [("dtql_gaussian", "train"), ("dtql_implicit", "train"), ("kl_distill", "train"),
         ("srpo", "critic"), ("srpo", "behavior"), ("srpo", "policy"),
         ("benchmark.baselines.diffusion_ql", "train"),
         ("benchmark.baselines.idql", "train")]  # script, phase  # fmt: skip
SIZES = {"walker2d-medium-v2": (17, 6), "antmaze-umaze-v0": (29, 8)}  # observation and action dims
PAPER = {  # algorithm: column of the paper's Table 2, if it is in there
    "dtql_gaussian": "DTQL", "srpo": "SRPO",
    "benchmark.baselines.diffusion_ql": "DQL", "benchmark.baselines.idql": "IDQL",
}  # fmt: skip
PRODUCTS = {  # operator: position of its first factor
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
}
SCALING = {
    "batch_size": (64, 256, 1024, 4096),
    "width": (64, 128, 256, 512, 1024),
    "num_seeds": (1, 2, 4, 8, 16),
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


def load_script(name: str):
    """The script as a module; of a baseline, its copy of a script."""
    module = importlib.import_module(name)
    return getattr(module, "script", module)


def make_agent(
    script, device: torch.device, compiled=False, width=256, env_id="walker2d-medium-v2", **settings
):
    """An untrained agent, its networks `width` wide; settings: of its Args."""
    args = script.Args(env_id=env_id, device=str(device), compile=compiled, **settings)
    with contextlib.redirect_stdout(None):  # "not in the paper; settings: ..."
        script.resolve(args)
    usual, script.HIDDEN_DIM = script.HIDDEN_DIM, width
    obs_dim, action_dim = SIZES[env_id]
    agent = script.Agent(obs_dim, [1.0] * action_dim, args, device)
    script.HIDDEN_DIM = usual
    return agent


def training_step(script, phase_name: str, device: torch.device, totals=None, **settings):
    """The script's own training step on random data, as a function without arguments that adds its losses to
    totals; and its batch size."""
    torch.manual_seed(0)
    agent = make_agent(script, device, **settings)
    obs_dim, action_dim = SIZES[agent.args.env_id]
    dims = [obs_dim, action_dim, 1, obs_dim, 1]
    transitions = torch.randn(100_000, sum(dims), device=device)
    transitions[:, obs_dim : obs_dim + action_dim].tanh_()
    transitions[:, -1] = 0
    generators = [torch.Generator(device).manual_seed(seed) for seed in script.seeds_of(agent.args)]
    phase = script.PHASES[phase_name]
    phase.start(agent)
    step = script.make_step(agent, transitions, dims, generators, phase, {} if totals is None else totals)
    return step, getattr(agent.args, phase.batch_size)


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


class PeakMemory:
    """MiB that torch allocated on a GPU at most inside `with`, beyond those of before; None on a CPU, where a
    process's peak also has what was measured before (a run's result.json has its own)."""

    def __init__(self, device: torch.device):
        self.device, self.mib = device, None

    def __enter__(self):
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *error):
        if self.device.type == "cuda":
            self.mib = (torch.cuda.max_memory_allocated(self.device) - self.before) / 2**20


def measure_step(
    name: str, phase: str, device: torch.device, rounds: int, compiled: bool, **settings
) -> dict:
    """Medians over rounds, of half a second or a bit more, of step time, bare time and their ratio."""
    script = load_script(name)
    torch._dynamo.reset()
    with PeakMemory(device) as peak:
        step, batch_size = training_step(script, phase, device, compiled=compiled, **settings)
        for _ in range(5):  # compiles, captures, warms caches
            step()
    bare, flops = bare_products(training_step(script, phase, device, **settings)[0], device)
    for _ in range(5):
        bare()
    calls = 1 + int(0.25 / seconds_per_call(step, device, 3))
    pairs = [
        (seconds_per_call(step, device, calls), seconds_per_call(bare, device, calls)) for _ in range(rounds)
    ]
    ratios = sorted(a / b for a, b in pairs)
    step_seconds = statistics.median(a for a, _ in pairs)
    kind = ("graph" if device.type == "cuda" else "compiled") if compiled else "eager"
    return {
        "script": name,
        "phase": phase,
        "mode": " ".join([kind] + ["tf32"] * settings.get("tf32", False)),
        "num_seeds": settings.get("num_seeds", 1),
        "batch_size": batch_size,
        "width": settings.get("width", 256),
        "ms_per_step": 1e3 * step_seconds,
        "steps_per_second": 1 / step_seconds,
        "ms_bare_products": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "gflop_per_step": flops / 1e9,
        "peak_mib": peak.mib,
    }


def measure_acting(
    name: str, device: torch.device, rounds: int, states: int, candidates: int, **settings
) -> dict:
    """Median time of the script's own act() for this many episodes' states."""
    script = load_script(name)
    agent = make_agent(script, device, **settings)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(states, SIZES[agent.args.env_id][0]))
    episodes = [script.Episode(i, None, x, torch.Generator(device).manual_seed(i)) for i, x in enumerate(obs)]
    act = lambda: script.act(agent, [episodes], candidates)
    act()
    calls = 1 + int(0.25 / seconds_per_call(act, device, 2))
    seconds = statistics.median(seconds_per_call(act, device, calls) for _ in range(rounds))
    return {"script": name, "states": states, "candidates": candidates, "ms": 1e3 * seconds,
            "seconds_per_trajectory": 1e3 * seconds / states}  # fmt: skip


def steps_as_paper(name: str) -> dict[str, int]:
    """Steps of each phase on antmaze-umaze-v0: the script's own, but for the baselines the paper's epochs."""
    script = load_script(name)
    paper = {"DQL": {"train": 1_000_000}, "IDQL": {"train": 3_000_000}}.get(PAPER.get(name), {})
    own = script.settings_of("antmaze-umaze-v0")
    return {phase: paper.get(phase, own[f"{phase}_steps"]) for phase in script.PHASES}


def measure_as_paper(name: str, device: torch.device, rounds: int) -> dict:
    """One column of the paper's Table 2, timed here; its own numbers as paper_..."""
    env_id, trajectory = "antmaze-umaze-v0", 700
    script = load_script(name)
    own = script.settings_of(env_id)["eval_candidates"]
    phases = {}  # ms for one step are seconds for 1000
    for phase in script.PHASES:
        phases[phase] = measure_step(name, phase, device, rounds, True, env_id=env_id)["ms_per_step"]
    seconds = sum(phases[phase] * steps / 1000 for phase, steps in steps_as_paper(name).items())
    ms = {n: measure_acting(name, device, rounds, 1, n, env_id=env_id)["ms"] for n in (1, own)}
    with open(ROOT / "benchmark/paper/table2_time_antmaze_umaze_v0.csv") as file:
        paper = {row["quantity"]: row.get(PAPER.get(name)) for row in csv.DictReader(file)}
    return {
        "script": name,
        "train_s_per_1k_steps": phases[phase],  # of the last phase
        "of_each_phase": list(phases.items()),
        "training_hours": seconds / 3600,
        "inference_s_per_trajectory": trajectory * ms[own] / 1e3,
        "candidates": own,
        "inference_s_one_candidate": trajectory * ms[1] / 1e3,
        "paper_train_s_per_1k_steps": paper["training s per 1k steps"],
        "paper_training_hours": paper["total training hours"],
        "paper_inference_s_per_trajectory": paper["inference s per trajectory"],
    }


def measure(part: str, device: torch.device, rounds: int, num_seeds: list[int], names: list[str]):
    """The rows of one part, for these scripts; each as soon as it is there."""
    steps = [(name, phase) for name, phase in STEPS if name in names]
    if part == "train":
        modes = [{"compiled": False}, {"compiled": True}]
        modes += [{"compiled": True, "tf32": True}] if device.type == "cuda" else []
        for (name, phase), n, mode in itertools.product(steps, num_seeds, modes):
            yield measure_step(name, phase, device, rounds, **mode, num_seeds=n)
    elif part == "tf32":
        for name, phase in steps if device.type == "cuda" else []:
            script, means = load_script(name), []
            for tf32 in (False, True):
                totals: dict[str, torch.Tensor] = {}
                step, _ = training_step(script, phase, device, totals, tf32=tf32)
                for _ in range(500):
                    step()
                means.append({loss: total.item() / 500 for loss, total in totals.items()})
            for loss in means[0]:
                yield {
                    "script": name,
                    "phase": phase,
                    "loss": loss,
                    "fp32": means[0][loss],
                    "tf32": means[1][loss],
                }
    elif part == "act":
        for name, states in itertools.product(dict(steps), (1, 100)):
            own = load_script(name).settings_of("walker2d-medium-v2")["eval_candidates"]
            for candidates in sorted({1, own}):
                yield measure_acting(name, device, rounds, states, candidates)
    elif part == "paper":
        for name in dict(steps):
            yield measure_as_paper(name, device, rounds)
    else:
        for name, values in SCALING.items():
            for x in values:
                row = measure_step("dtql_gaussian", "train", device, rounds, True, **{name: x})
                yield {"varied": name} | row


def key(row: dict) -> tuple:
    """What a row is of."""
    of = "device varied script phase mode num_seeds batch_size width states candidates loss"
    return tuple(row.get(name) for name in of.split())


def print_row(row: dict) -> None:
    values = (f"{x:.3g}" if isinstance(x, float) else x for x in row.values() if not isinstance(x, list))
    print("| " + " | ".join(map(str, values)) + " |", flush=True)


def draw(results: dict, output: Path) -> None:
    """Pictures of what there is, beside the output file."""
    if not importlib.util.find_spec("matplotlib"):
        print(f"no matplotlib here; elsewhere: benchmark/speed.py --parts picture --output {output.name}")
        return
    if "scaling" in results:
        draw_scaling(results["scaling"], output.with_name(f"{output.stem}-scaling.png"))
    if set(PAPER) <= {row["script"] for row in results.get("paper", [])}:
        draw_paper(results["paper"], output.with_name(f"{output.stem}-paper.png"))


def draw_scaling(scaling: list[dict], path: Path) -> None:
    """Time per step against batch size, width and number of seeds, beside what its products alone take."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SCALING), figsize=(9, 2.8), sharey=True, layout="constrained")
    for ax, (name, values) in zip(axes, SCALING.items()):
        of_name = [row for row in scaling if row["varied"] == name]
        ax.plot(values, [row["ms_per_step"] for row in of_name], "o-", color="#1f5fa8", label="training step")
        ax.plot(values, [row["ms_bare_products"] for row in of_name], "o--", color="#999999",
                label="its matrix products alone")  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel=name.replace("_", " ").replace("num ", ""))
        ax.set_xticks(values, labels=values)
        ax.minorticks_off()
        ax.grid(color="#eeeeee")
    axes[0].set_ylabel("ms per step")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"dtql_gaussian.py, compiled, on {scaling[0]['device']}", fontsize=9)
    figure.savefig(path, dpi=110)


def draw_paper(paper: list[dict], path: Path) -> None:
    """Fig. 4: the algorithms' times for training and for acting, as multiples of DTQL's, theirs and ours."""
    import matplotlib.pyplot as plt

    rows = {PAPER[row["script"]]: row for row in paper if row["script"] in PAPER}
    panels = {
        "train_s_per_1k_steps": "training, s per 1000 steps\n(SRPO: of its policy alone)",
        "training_hours": "hours of all training",
        "inference_s_per_trajectory": "inference, s per trajectory",
    }
    series = {  # label, colour, where its numbers stand
        "": (f"here, on {paper[0]['device']}", "#1f5fa8", 5),
        "paper_": ("paper, on an A5000", "#777777", -11),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 2.8), layout="constrained")
    for ax, (name, title) in zip(axes, panels.items()):
        for prefix, (label, color, above) in series.items():
            values = [float(row[prefix + name]) for row in rows.values()]
            multiples = [value / float(rows["DTQL"][prefix + name]) for value in values]
            ax.plot(multiples, list(rows), "o", color=color, label=label)
            for x, y, value in zip(multiples, rows, values):
                ax.annotate(f"{value:.3g}", (x, y), (0, above), textcoords="offset points", ha="center",
                            fontsize=7, color=color)  # fmt: skip
        ax.set(xscale="log", title=title)
        ax.minorticks_off()
        ax.set_xticks([0.01, 0.1, 1, 10], ["1/100", "1/10", "1", "10"])
        ax.title.set_fontsize(9)
        ax.axvline(1, color="#333333", linewidth=0.6)
        ax.margins(x=0.15, y=0.2)
    axes[1].set_xlabel("multiple of DTQL's")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=2, frameon=False)
    figure.savefig(path, dpi=110)


def processor() -> str:
    """The CPU's own name, where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        x.partition(":")[2].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def slug(text: str) -> str:
    """As part of a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def describe(device: torch.device) -> str:
    """What this is measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, threads: {torch.get_num_threads()}"


def versions(device: torch.device) -> dict[str, str]:
    """Where a number comes from: device, versions and command."""
    command = " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    return {"device": describe(device), "torch": str(torch.__version__),
            "python": platform.python_version(), "command": command}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["train", "tf32", "act", "paper", "scaling", "picture"]
    scripts = [name.rpartition(".")[2] for name in dict(STEPS)]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--scripts", nargs="+", choices=scripts, default=scripts)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--num-seeds", type=int, nargs="+", default=[1], help="of part train")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmark/results/speed/...)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    source = versions(device)
    output = args.output or ROOT / "benchmark" / "results" / "speed" / f"{slug(source['device'])}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(output.read_text()) if output.exists() else {}

    print(f"{source['device']}, torch {torch.__version__}")
    for part in args.parts:
        if part == "picture":
            draw(results, output)
            continue
        rows = []
        names = [name for name in dict(STEPS) if name.rpartition(".")[2] in args.scripts]
        for row in measure(part, device, args.rounds, args.num_seeds, names):
            if not rows:
                columns = [name for name, x in row.items() if not isinstance(x, list)]
                print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
            rows.append(row | source)
            print_row(row)
            new = {key(row) for row in rows}
            results[part] = [row for row in results.get(part, []) if key(row) not in new] + rows
            output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwrote {output}")


if __name__ == "__main__":
    main()
