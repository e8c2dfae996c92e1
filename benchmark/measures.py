"""What each measure for speed buys: a training step with it, in turn with the same step without it.

    python benchmark/measures.py                 # one CPU thread, or the GPU if there is one

Every measure is taken out of a private copy of a script (or put in, for those that were tried and not kept),
and both copies train in turn: each round times both, so that a drift of the machine's speed cancels in their
ratio. Times are of the sizes of speed.py. docs/speed.md has the result beside what we predicted.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark.baselines.common import copy_of
from benchmark.speed import ROOT, seconds_per_call, slug, training_step, versions


# ---------------------------------------------------------------- without a measure that the scripts have
def torch_mish(script) -> None:
    script.Mish = nn.Mish


def default_adam(script) -> None:
    def adam(params, learning_rate, kind=torch.optim.Adam):
        params = list(params)
        on_gpu = params[0].device.type == "cuda"
        optimizer = kind(params, torch.tensor(learning_rate, device=params[0].device), capturable=on_gpu)
        optimizer.param_groups[0]["initial_lr"] = learning_rate
        return optimizer

    script.adam = adam


def two_passes(script) -> None:
    class QNetworks(nn.Module):
        def __init__(self, generators, obs_dim, action_dim):
            super().__init__()
            self.nets = nn.ModuleList(
                script.mlp(generators, obs_dim + action_dim, 1, script.Mish, layer_norm=True)
                for _ in range(2)
            )

        def forward(self, obs, action):
            x = torch.cat([obs, action], dim=-1)
            return torch.stack([net(x).squeeze(-1) for net in self.nets], dim=1)

    script.QNetworks = QNetworks


def separate_bias(script) -> None:
    script.Linear.forward = lambda self, x: x @ self.weight + self.bias


def not_frozen(script) -> None:
    script.frozen = lambda network: network


def five_gathers(script) -> None:
    parts = []

    def draw(transitions, dims, generators, args, phase):
        n, on = getattr(args, phase.batch_size), {"device": transitions.device}
        rows = torch.stack([torch.randint(len(transitions), (n,), generator=g, **on) for g in generators])
        u = torch.stack([torch.rand(phase.uniform, n, 1, generator=g, **on) for g in generators], dim=1)
        eps = [torch.randn(phase.normal, n, dims[1], generator=g, **on) for g in generators]
        if not parts:
            parts.extend(x.contiguous() for x in transitions.split(dims, dim=1))
        return [x[rows] for x in parts], u, torch.stack(eps, dim=1)

    script.draw = draw


def autograd_q_gradient(script) -> None:
    def q_gradient(q, obs, action, normalize):
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            mean_q = q(obs, action).mean(dim=1)
            gradient = torch.autograd.grad(mean_q.sum(), action)[0]
        return gradient, mean_q.detach()  # walker2d does not normalize

    script.q_gradient = q_gradient


# ------------------------------------------------------------------- with one that was tried and not kept
def foreach_average(script) -> None:
    @torch.no_grad()
    def update_target(target, network, tau):
        torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), tau)

    script.update_target = update_target


def bfloat16(script) -> None:
    make_step = script.make_step

    def make_rounding_step(*args):
        step = make_step(*args)

        def rounding_step():
            with torch.autocast(args[1].device.type, torch.bfloat16):
                step()

        return rounding_step

    script.make_step = make_rounding_step


def autotuned(script) -> None:
    make_step = script.make_step

    def make_tuned_step(*args):
        compile_ = torch.compile
        with mock.patch.object(torch, "compile", lambda f: compile_(f, mode="max-autotune-no-cudagraphs")):
            return make_step(*args)

    script.make_step = make_tuned_step


@dataclass(frozen=True)
class Measure:
    name: str
    change: Callable  # of a copy of the script: takes the measure out, or puts one in that was not kept
    predicted: str  # before the first measurement: time without it over time with it
    kept: bool = True
    script: str = "dtql_gaussian"
    phase: str = "train"
    modes: tuple[bool, ...] = (False, True)  # compiled?


MEASURES = [
    Measure("nothing: how far the ratio strays by itself", lambda script: None, "1.0"),
    Measure("Mish by one exponential", torch_mish, "1.1 eager, 1.0 compiled"),
    Measure("Adam in one fused kernel", default_adam, "1.1 eager, 1.1 compiled; 1.5 eager on a GPU"),
    Measure("Q1 and Q2 in one batched product", two_passes, "1.0; 1.2 eager on a GPU"),
    Measure("bias inside the product (baddbmm)", separate_bias, "1.05 eager, 1.0 compiled"),
    Measure("frozen networks without gradients of weights", not_frozen, "1.0: autograd leaves them out"),
    Measure("a transition as one row: one gather", five_gathers, "1.02"),
    Measure("gradient of Q by torch.func.grad", autograd_q_gradient, "1.0 eager, 1.3 compiled",
            script="srpo", phase="policy"),
    Measure("moving average as one foreach operation", foreach_average, "0.98", kept=False),
    Measure("bfloat16 autocast", bfloat16, "1.0 on a CPU without bfloat16 units", kept=False, modes=(False,)),
    Measure("max-autotune", autotuned, "0.95", kept=False, modes=(True,)),
]  # fmt: skip


def measure(m: Measure, compiled: bool, device: torch.device, rounds: int) -> dict:
    """The change's time over the script's own, as median over rounds of a quarter second each."""
    torch._dynamo.reset()
    changed = copy_of(m.script, f"changed_{m.script}")
    m.change(changed)
    steps = []
    for script in (copy_of(m.script, f"own_{m.script}"), changed):
        step, _ = training_step(script, m.phase, device, compiled=compiled)
        for _ in range(5):
            step()
        steps.append(step)
    calls = 1 + int(0.25 / seconds_per_call(steps[0], device, 3))
    pairs = []
    for i in range(rounds):  # in turn, which comes first
        order = 1 if i % 2 == 0 else -1
        pairs.append([seconds_per_call(step, device, calls) for step in steps[::order]][::order])
    ratios = sorted(new / own for own, new in pairs)
    return {
        "measure": m.name,
        "kept": m.kept,
        "script": m.script,
        "phase": m.phase,
        "mode": ("graph" if device.type == "cuda" else "compiled") if compiled else "eager",
        "ms_own": 1e3 * statistics.median(own for own, _ in pairs),
        "ms_changed": 1e3 * statistics.median(new for _, new in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "predicted": m.predicted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="measures with this in their name; other rows are kept")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmark/results/speed/...)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    source = versions(device)
    name = f"{slug(source['device'])}-measures.json"
    output = args.output or ROOT / "benchmark" / "results" / "speed" / name
    rows = json.loads(output.read_text())["measures"] if output.exists() else []
    print(f"{source['device']}, torch {torch.__version__}\n")
    print("| measure | mode | ms own | ms changed | ratio | quartiles |")
    print("|---|---|---|---|---|---|")
    for m in MEASURES:
        for compiled in m.modes if args.only in m.name else ():
            row = measure(m, compiled, device, args.rounds) | source
            of = lambda x: (x["measure"], x["mode"])
            rows = [x for x in rows if of(x) != of(row)] + [row]
            low, high = row["ratio_quartiles"]
            print(f"| {m.name}{'' if m.kept else ' (not kept)'} | {row['mode']} | {row['ms_own']:.2f} "
                  f"| {row['ms_changed']:.2f} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} |",
                  flush=True)  # fmt: skip
            output.write_text(json.dumps({"measures": rows}, indent=1) + "\n")
    print(f"\nwrote {output}")


if __name__ == "__main__":
    main()
