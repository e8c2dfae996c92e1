"""On a GPU: agreement with the CPU, CUDA graphs against eager steps, resuming. Skipped without one."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    DIMS,
    SCRIPTS,
    load_script,
    make_agent,
    make_args,
    make_transitions,
    run_script,
    training_generators,
    write_d4rl,
)
from test_math import FakeEnv

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DEVICE = "cuda"
STEPS = {"pretrain_steps": 8, "train_steps": 20, "critic_steps": 8, "behavior_steps": 8, "policy_steps": 20}


@pytest.fixture(params=SCRIPTS)
def script(request):
    return load_script(request.param)


def agent_on(device: str, script, **changes):
    known = script.Args.__dataclass_fields__
    steps = {name: n for name, n in STEPS.items() if name in known}
    return make_agent(script, device, **({"num_seeds": 2, "batch_size": 64} | steps | changes))


def streams() -> list[torch.Generator]:
    return [torch.Generator(DEVICE).manual_seed(seed) for seed in (1, 2)]


def weights(agent) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(agent.parameters()).double().cpu()


def distance(a, b) -> float:
    """Adam magnifies rounding where a gradient is nearly 0, so single weights say little."""
    return (weights(a) - weights(b)).norm().item()


def choose(compiler: str, monkeypatch, script) -> None:
    """none: CUDA graphs without torch.compile, which keeps the arithmetic that of eager steps."""
    if compiler == "none":
        monkeypatch.setattr(torch, "compile", lambda function: function)
    elif not script.can_compile(torch.device(DEVICE)):
        pytest.skip("torch.compile does not work here")


def test_losses_are_those_of_the_cpu(script):
    assert torch.get_float32_matmul_precision() == "highest"  # no TF32
    cpu, gpu = agent_on("cpu", script), agent_on(DEVICE, script)
    initial = copy.deepcopy(cpu)
    assert torch.equal(weights(cpu), weights(gpu))
    draws = training_generators(script, 1, 2)
    for phase in script.PHASES.values():
        phase.start(cpu)
        phase.start(gpu)
        for step in range(3):
            batch, u, eps = script.draw(make_transitions(), DIMS, draws, cpu.args, phase)
            expected = phase.update(cpu, batch, u, eps)
            losses = phase.update(gpu, tuple(x.to(DEVICE) for x in batch), u.to(DEVICE), eps.to(DEVICE))
            assert losses.keys() == expected.keys()
            for name, loss in losses.items():
                assert loss.device.type == torch.device(DEVICE).type
                assert torch.allclose(loss.cpu(), expected[name], rtol=1e-3, atol=1e-5), (step, name)
    assert distance(cpu, gpu) < 0.01 * distance(cpu, initial)


def test_tf32_changes_the_losses_by_its_rounding_and_ends_with_the_flag(script):
    losses = {}
    for tf32 in (False, True, False):
        script.choose_device(make_args(script, device=DEVICE, tf32=tf32))
        agent, draws = agent_on(DEVICE, script), training_generators(script, 1, 2)
        phase = list(script.PHASES.values())[-1]
        phase.start(agent)
        batch, u, eps = script.draw(make_transitions(), DIMS, draws, agent.args, phase)
        out = phase.update(agent, tuple(x.to(DEVICE) for x in batch), u.to(DEVICE), eps.to(DEVICE))
        losses.setdefault(tf32, []).append(torch.stack(list(out.values())))
    (exact, again), (rounded,) = losses[False], losses[True]
    assert torch.equal(exact, again) and not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("compiler", ["none", "inductor"])
def test_replayed_graphs_train_as_eager_steps_do(script, compiler, monkeypatch):
    """Every phase, one graph each, from the same seeds: weights, sums of losses, learning rates."""
    choose(compiler, monkeypatch, script)
    results = []
    for compiled in (False, True):
        agent, draws, totals, rates = agent_on(DEVICE, script, compile=compiled), streams(), {}, []
        initial = copy.deepcopy(agent)
        for name, phase in script.PHASES.items():
            phase.start(agent)
            sums = totals.setdefault(name, {})
            step = script.make_step(agent, make_transitions().to(DEVICE), DIMS, draws, phase, sums)
            for _ in range(getattr(agent.args, f"{name}_steps")):
                step()
                rates.append([o.param_groups[0]["lr"].item() for o in agent.optimizers.values()])
        results.append((agent, totals, rates))
        assert agent.trained.item() == 20
    (eager, eager_totals, eager_rates), (replayed, totals, rates) = results
    assert np.allclose(rates, eager_rates, atol=1e-9)
    policy = list(eager.optimizers).index("policy")
    learning_rate = eager.args.learning_rate
    assert [rate[policy] for rate in rates][-11::10] == pytest.approx([learning_rate / 2, 0], abs=1e-9)
    for name, sums in totals.items():
        assert sums.keys() == eager_totals[name].keys()
        for loss in sums:
            assert torch.allclose(sums[loss], eager_totals[name][loss], rtol=1e-3, atol=1e-3), loss
    assert distance(replayed, eager) < 0.02 * distance(eager, initial)


def test_replays_draw_what_eager_steps_draw(script, monkeypatch):
    """Generators advance inside a graph: no two steps see the same rows or noise, and all as without it."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    record = lambda agent, batch, u, eps: {"obs": batch[0] + 0, "u": u + 0, "eps": eps + 0}
    history = []
    for compiled in (False, True):
        totals, mine = {}, []
        agent, transitions = agent_on(DEVICE, script, compile=compiled), make_transitions().to(DEVICE)
        step = script.make_step(agent, transitions, DIMS, streams(), script.Phase(record, 2, 3), totals)
        for _ in range(10):  # three eager steps, then the capture and seven replays
            step()
            mine.append({name: total.clone() for name, total in totals.items()})
            for total in totals.values():
                total.zero_()
        history.append(mine)
    for eager, replayed in zip(*history, strict=True):
        assert all(torch.equal(eager[name], replayed[name]) for name in ("obs", "u", "eps"))
    for name in ("obs", "u", "eps"):
        assert len({step[name].sum().item() for step in history[1]}) == 10


@pytest.mark.parametrize("compiler", ["none", "inductor"])
def test_an_interrupted_run_resumes_to_the_uninterrupted_one(script, compiler, tmp_path, monkeypatch):
    choose(compiler, monkeypatch, script)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr(script.signal, "signal", lambda *_: None)
    write_d4rl(tmp_path / Path(script.D4RL_FILES["hopper-medium-v2"]).name, n=500)
    settings = {"env_id": "hopper-medium-v2", "num_seeds": 2, "device": DEVICE, "batch_size": 64,
                "eval_episodes": 0, "checkpoint_every": 18, "compile": True}  # fmt: skip
    settings |= {name: n for name, n in STEPS.items() if name in script.Args.__dataclass_fields__}

    def run(name, **changes):
        script.train(script.Args(**settings, run_dir=str(tmp_path / name), **changes))

    def saved(name):
        state = torch.load(tmp_path / name, map_location="cpu", weights_only=True)["agent"]
        return torch.cat([x.double().flatten() for name, x in state.items() if name != "trained"])

    run("whole")
    save = script.save_model

    def save_and_die(path, *args, **state):
        save(path, *args, **state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "save_model", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    half = saved("cut/checkpoint.pt")
    run("cut", resume=True)
    whole, resumed = saved("whole/model.pt"), saved("cut/model.pt")
    assert (resumed - whole).norm() < 1e-2 * (half - whole).norm()


def test_evaluation_repeats_and_draws_from_its_own_generators(script):
    agent = agent_on(DEVICE, script, eval_candidates=1 if script.__name__ == "srpo" else 32)
    states = torch.get_rng_state(), torch.cuda.get_rng_state(), random.getstate()
    results = [script.evaluate(agent, lambda: FakeEnv([]), range(7), num_envs=n) for n in (3, 3, 1)]
    assert torch.equal(states[0], torch.get_rng_state()) and states[2] == random.getstate()
    assert torch.equal(states[1], torch.cuda.get_rng_state())
    for returns, lengths in results[1:]:
        assert np.array_equal(lengths, results[0][1]) and np.allclose(returns, results[0][0], rtol=1e-4)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_evaluates_beside_its_training(name, tmp_path):
    """Worker processes with CUDA contexts of their own, beside a replayed graph: the training is the same."""
    phases = [flag for phase in load_script(name).PHASES for flag in (f"--{phase}-steps", "60")]
    flags = [
        "--device",
        DEVICE,
        "--compile",
        "--batch-size",
        "32",
        "--eval-every",
        "20",
        "--eval-episodes",
        "3",
    ]
    runs = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        done = run_script(
            name, *flags, *phases, "--eval-workers", workers, "--run-dir", folder, cwd=tmp_path, timeout=600
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        evaluated = sorted(line["step"] for line in lines if "eval/returns" in line)
        saved = torch.load(folder / "model.pt", weights_only=True, map_location="cpu")["agent"]
        runs.append((evaluated, torch.cat([x.flatten() for x in saved.values()])))
    (steps, in_place), (beside_steps, beside) = runs
    assert len(steps) == 3 and beside_steps == steps
    assert torch.allclose(in_place, beside, rtol=1e-3, atol=1e-3)
