"""On a GPU: agreement with the CPU, CUDA graphs against eager steps, resuming. Skipped without one."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import load_script, write_d4rl
from test_math import DIMS, MAX_ACTION, OBS_DIM, FakeEnv, make_args, make_transitions, training_generators

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
dtql = load_script("dtql_gaussian.py")
DEVICE = "cuda"


def make_agent(device: str, **changes):
    settings = {"num_seeds": 2, "batch_size": 64, "train_steps": 20} | changes
    return dtql.Agent(OBS_DIM, MAX_ACTION, make_args(**settings), torch.device(device))


def streams() -> list[torch.Generator]:
    return [torch.Generator(DEVICE).manual_seed(seed) for seed in (1, 2)]


def distance(a: dict, b: dict) -> float:
    """Between two lots of weights. Adam magnifies rounding where a gradient is nearly 0, so the largest
    difference of single weights says little."""
    names = a.keys() - {"trained"}  # a count
    return (
        sum((a[name].double().cpu() - b[name].double().cpu()).square().sum().item() for name in names) ** 0.5
    )


def choose(compiler: str, monkeypatch) -> None:
    """none: CUDA graphs without torch.compile, which keeps the arithmetic that of eager steps."""
    if compiler == "none":
        monkeypatch.setattr(torch, "compile", lambda function: function)
    elif not dtql.can_compile(torch.device(DEVICE)):
        pytest.skip("torch.compile does not work here")


def test_losses_are_those_of_the_cpu():
    assert torch.get_float32_matmul_precision() == "highest"  # no TF32
    cpu, gpu = make_agent("cpu"), make_agent(DEVICE)
    initial = copy.deepcopy(cpu.state_dict())
    assert all(torch.equal(x.cpu(), initial[name]) for name, x in gpu.state_dict().items())
    generators = training_generators(1, 2)
    for step in range(5):
        batch, u, eps = dtql.draw(make_transitions(), DIMS, generators, cpu.args)
        update = dtql.PHASES["pretrain" if step == 0 else "train"]
        expected = update(cpu, batch, u, eps)
        losses = update(gpu, tuple(x.to(DEVICE) for x in batch), u.to(DEVICE), eps.to(DEVICE))
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            assert loss.device.type == torch.device(DEVICE).type
            assert torch.allclose(loss.cpu(), expected[name], rtol=1e-4, atol=1e-5), (step, name)
    moved = distance(cpu.state_dict(), initial)
    assert distance(cpu.state_dict(), gpu.state_dict()) < 0.01 * moved


@pytest.mark.parametrize("compiler", ["none", "inductor"])
def test_replayed_graphs_train_as_eager_steps_do(compiler, monkeypatch):
    """Both phases, one graph each, from the same seeds: weights, sums of losses, learning rates."""
    choose(compiler, monkeypatch)
    results = []
    for compile in (False, True):
        agent, generators, totals, rates = make_agent(DEVICE, compile=compile), streams(), {}, []
        initial = copy.deepcopy(agent.state_dict())
        for name, n in (("pretrain", 8), ("train", 20)):
            transitions = make_transitions().to(DEVICE)
            step = dtql.make_step(agent, transitions, DIMS, generators, dtql.PHASES[name], totals)
            for _ in range(n):
                step()
                rates.append([o.param_groups[0]["lr"].item() for o in agent.optimizers.values()])
        results.append((agent.state_dict(), totals, rates))
        assert agent.trained.item() == 20
    (eager, eager_totals, eager_rates), (replayed, totals, rates) = results
    assert np.allclose(rates, eager_rates, atol=1e-9)
    base = np.array([3e-4, 1e-3, 1e-3])
    for step, share in ((7, 1), (17, 0.5), (27, 0)):
        assert np.allclose(rates[step], share * base, atol=1e-9)
    assert totals.keys() == eager_totals.keys()
    for name in totals:
        assert torch.allclose(totals[name], eager_totals[name], rtol=1e-3, atol=1e-3), name
    assert distance(replayed, eager) < 0.01 * distance(eager, initial)


def test_replays_draw_what_eager_steps_draw(monkeypatch):
    """Generators advance inside a graph: no two steps see the same rows or noise, and all as without it."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    record = lambda agent, batch, u, eps: {"obs": batch[0] + 0, "u": u + 0, "eps": eps + 0}
    history = []
    for compile in (False, True):
        totals, mine = {}, []
        agent, transitions = make_agent(DEVICE, compile=compile), make_transitions().to(DEVICE)
        step = dtql.make_step(agent, transitions, DIMS, streams(), record, totals)
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
def test_an_interrupted_run_resumes_to_the_uninterrupted_one(compiler, tmp_path, monkeypatch):
    choose(compiler, monkeypatch)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr(dtql.signal, "signal", lambda *_: None)
    write_d4rl(tmp_path / Path(dtql.D4RL_FILES["hopper-medium-v2"]).name, n=500)
    settings = {"env_id": "hopper-medium-v2", "num_seeds": 2, "device": DEVICE, "batch_size": 64,
                "pretrain_steps": 10, "train_steps": 20, "eval_episodes": 0, "checkpoint_every": 18,
                "compile": True}  # fmt: skip

    def run(name, **changes):
        dtql.train(dtql.Args(**settings, run_dir=str(tmp_path / name), **changes))

    def weights(name):
        return torch.load(tmp_path / name, map_location="cpu", weights_only=True)["agent"]

    run("whole")
    save = dtql.save_model

    def save_and_die(path, *args, **state):
        save(path, *args, **state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dtql, "save_model", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    half = weights("cut/checkpoint.pt")
    assert half["trained"].item() == 8
    run("cut", resume=True)
    whole, resumed = weights("whole/model.pt"), weights("cut/model.pt")
    assert whole["trained"].item() == resumed["trained"].item() == 20
    assert distance(resumed, whole) < 1e-2 * distance(half, whole)


def test_evaluation_repeats_and_draws_from_its_own_generators():
    agent = make_agent(DEVICE, eval_candidates=32)
    states = torch.get_rng_state(), torch.cuda.get_rng_state(), random.getstate()
    results = [dtql.evaluate(agent, lambda seed: FakeEnv([]), 7, num_envs=n) for n in (3, 3, 1)]
    assert torch.equal(states[0], torch.get_rng_state()) and states[2] == random.getstate()
    assert torch.equal(states[1], torch.cuda.get_rng_state())
    for returns, lengths in results[1:]:
        assert np.array_equal(lengths, results[0][1]) and np.allclose(returns, results[0][0], rtol=1e-4)
