"""On a GPU: agreement with the CPU, CUDA graphs against eager steps, resuming. Skipped without one."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    SCRIPTS,
    FakeEnv,
    load_script,
    make_agent,
    make_args,
    make_data,
    recorded_draws,
    write_d4rl,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DEVICE = "cuda"
STEPS = {"pretrain_steps": 8, "train_steps": 20, "critic_steps": 8, "behavior_steps": 8, "policy_steps": 20}
ROWS = {"batch_size": 64, "behavior_batch_size": 64}


@pytest.fixture(params=SCRIPTS)
def script(request):
    return load_script(request.param)


def args_of(script, **changes):
    known = script.Args.__dataclass_fields__
    settings = {name: x for name, x in (STEPS | ROWS).items() if name in known}
    return make_args(script, **({"num_seeds": 2, "device": DEVICE} | settings | changes))


def data_on(device: str) -> list[torch.Tensor]:
    return [x.to(device) for x in make_data()]


def weights(agent) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(agent.parameters()).detach().double().cpu()


def start(script, phase: str, agent) -> None:
    script.STARTS.get(phase, lambda agent: None)(agent)


def choose(compiler: str, monkeypatch) -> None:
    """none: CUDA graphs without torch.compile, which keeps the arithmetic that of eager steps."""
    if compiler == "none":
        monkeypatch.setattr(torch, "compile", lambda function, **options: function)


compilers = pytest.mark.parametrize("compiler", ["none", "inductor"])


def test_losses_are_those_of_the_cpu(script, monkeypatch):
    """From the CPU's random numbers; weights as a whole, since Adam magnifies rounding of tiny gradients."""
    assert torch.get_float32_matmul_precision() == "highest"  # no TF32
    args, data = args_of(script), make_data()
    cpu, gpu = make_agent(script, args), make_agent(script, args, DEVICE)
    initial = weights(cpu)
    assert torch.equal(initial, weights(gpu))
    for phase, update in script.PHASES.items():
        start(script, phase, cpu)
        start(script, phase, gpu)
        for step in range(3):
            rows = torch.randint(200, (2, 64))
            with recorded_draws() as draws:
                expected = update(cpu, [x[rows] for x in data], args)
            given = {kind: iter([x.to(DEVICE) for x in xs]) for kind, xs in draws.items()}
            with monkeypatch.context() as patch:
                patch.setattr(torch, "rand_like", lambda x: next(given["uniform"]))
                patch.setattr(torch, "randn_like", lambda x: next(given["normal"]))
                normal = torch.distributions.normal
                patch.setattr(normal, "_standard_normal", lambda *_, **__: next(given["normal"]))
                patch.setattr(torch, "dropout", lambda x, p, train: x * next(given["kept"]) if train else x)
                losses = update(gpu, [x[rows].to(DEVICE) for x in data], args)
            assert losses.keys() == expected.keys()
            for name, loss in losses.items():
                assert loss.device.type == DEVICE
                assert torch.allclose(loss.cpu(), expected[name], rtol=1e-3, atol=1e-5), (step, name)
    assert (weights(cpu) - weights(gpu)).norm() < 0.01 * (weights(cpu) - initial).norm()


def test_tf32_changes_the_losses_by_its_rounding_and_ends_with_the_flag(script):
    losses, phase = {}, [*script.PHASES][-1]
    for tf32 in (False, True, False):
        args = args_of(script, tf32=tf32, eval_every=1, eval_episodes=0)
        script.resolve(args)
        agent = make_agent(script, args, DEVICE)
        start(script, phase, agent)
        next(script.gradient_steps(agent, data_on(DEVICE), phase, totals := {}, args))
        losses.setdefault(tf32, []).append(torch.stack(list(totals.values())))
    (exact, again), (rounded,) = losses[False], losses[True]
    assert torch.equal(exact, again) and not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, rtol=2e-2, atol=2e-2)


@compilers
def test_replayed_graphs_train_as_eager_steps_do(script, compiler, monkeypatch):
    """Every phase, one graph each, from the same seed: weights, sums of losses, learning rates."""
    choose(compiler, monkeypatch)
    results = []
    for compiled in (False, True):
        args = args_of(script, compile=compiled)
        agent, sums, rates = make_agent(script, args, DEVICE), {}, []
        initial = weights(agent)
        for phase in script.PHASES:
            start(script, phase, agent)
            steps = script.gradient_steps(agent, data_on(DEVICE), phase, sums.setdefault(phase, {}), args)
            for _ in range(getattr(args, f"{phase}_steps")):
                next(steps)
                rates.append([o.param_groups[0]["lr"].item() for o in agent.optimizers.values()])
        results.append((weights(agent), sums, rates))
        assert agent.trained.item() == 20
    (eager, eager_sums, eager_rates), (replayed, sums, rates) = results
    assert np.allclose(rates, eager_rates, atol=1e-9)
    policy = list(agent.optimizers).index("policy")
    assert [rate[policy] for rate in rates][-11::10] == pytest.approx([args.learning_rate / 2, 0], abs=1e-9)
    for phase, totals in sums.items():
        assert totals.keys() == eager_sums[phase].keys()
        for loss, total in totals.items():
            assert torch.allclose(total, eager_sums[phase][loss], rtol=1e-3, atol=1e-3), loss
    assert (replayed - eager).norm() < 0.02 * (eager - initial).norm()


def draws_of_steps(script, monkeypatch, compiled: bool, between=lambda step: None) -> list[tuple]:
    """What each of ten steps draws: sums of obs, uniform and normal numbers. Compiled, three are eager, then
    the graph is captured and replayed; between(step): called before each step."""

    def record(agent, batch, args):
        noise = {"uniform": torch.rand_like(batch[1]), "normal": torch.randn_like(batch[1])}
        return {name: x.sum(dim=(1, 2)) for name, x in ({"obs": batch[0]} | noise).items()}

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setitem(script.PHASES, "draw", record)
    args = args_of(script, compile=compiled)
    steps = script.gradient_steps(SimpleNamespace(), data_on(DEVICE), "draw", totals := {}, args)
    torch.manual_seed(5)
    drawn = []
    for step in range(10):
        between(step)
        next(steps)
        drawn.append(tuple(x for total in totals.values() for x in total.tolist()))
        for total in totals.values():
            total.zero_()
    return drawn


def test_replays_draw_what_eager_steps_draw_and_never_twice_the_same(script, monkeypatch):
    replayed = draws_of_steps(script, monkeypatch, compiled=True)
    assert replayed == draws_of_steps(script, monkeypatch, compiled=False)
    for numbers in zip(*replayed):
        assert len(set(numbers)) == 10


def test_the_state_of_random_numbers_between_replays_can_be_saved_and_restored(script, monkeypatch):
    states = {}

    def between(step):
        states[step] = torch.cuda.get_rng_state()
        if step == 8:
            torch.cuda.set_rng_state(states[5])

    drawn = draws_of_steps(script, monkeypatch, compiled=True, between=between)
    assert drawn[8:] == drawn[5:7] and len(set(drawn[:8])) == 8


def task() -> SimpleNamespace:
    return SimpleNamespace(make_env=lambda: FakeEnv([]), low=0.0, high=100.0, metric="score", physics="none")


def test_an_evaluation_between_replays_does_not_disturb_them(script, monkeypatch):
    """And repeats itself, with as many episodes as run side by side or more."""
    changes = {} if script.__name__ == "srpo" else {"eval_candidates": 32}
    args, results = args_of(script, eval_episodes=13, **changes), []
    agent = make_agent(script, args, DEVICE)
    before = weights(agent)

    def between(step):
        if step in (1, 5, 8):
            results.append(script.evaluate(agent, task(), args)["eval/returns"])

    disturbed = draws_of_steps(script, monkeypatch, compiled=True, between=between)
    assert disturbed == draws_of_steps(script, monkeypatch, compiled=True)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    assert torch.equal(weights(agent), before)


@compilers
def test_an_interrupted_run_resumes_to_the_uninterrupted_one(script, compiler, tmp_path, monkeypatch):
    choose(compiler, monkeypatch)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    write_d4rl(tmp_path / Path(script.D4RL_FILES["hopper-medium-v2"]).name, n=500)
    settings = {"env_id": "hopper-medium-v2", "num_seeds": 2, "device": DEVICE, "batch_size": 64,
                "eval_episodes": 0, "checkpoint_every": 18, "compile": True}  # fmt: skip
    settings |= {name: n for name, n in STEPS.items() if name in script.Args.__dataclass_fields__}

    def run(name: str, **changes):
        script.train(script.Args(**settings, run_dir=str(tmp_path / name), **changes))

    def saved(name: str) -> torch.Tensor:
        state = torch.load(tmp_path / name, map_location="cpu", weights_only=True)["agent"]
        return torch.cat([x.double().flatten() for name, x in state.items() if name != "trained"])

    run("whole")
    write = script.write

    def write_and_die(path, content):
        write(path, content)
        if path.name == "checkpoint.pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    half = saved("cut/checkpoint.pt")
    run("cut", resume=str(tmp_path / "cut"))
    whole, resumed = saved("whole/model.pt"), saved("cut/model.pt")
    assert (resumed - whole).norm() < 1e-2 * (half - whole).norm()
