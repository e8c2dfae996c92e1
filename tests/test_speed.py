"""What benchmark/ times is the scripts' own computation. Nothing here is timed."""

import pytest
import torch

from benchmark import measures, speed
from benchmark.baselines.common import copy_of

CPU = torch.device("cpu")


def losses(script, phase: str, steps: int = 2, **settings) -> dict[str, torch.Tensor]:
    totals: dict[str, torch.Tensor] = {}
    step, _ = speed.training_step(script, phase, CPU, totals, **settings)
    for _ in range(steps):
        step()
    return totals


@pytest.mark.parametrize("name, phase", speed.STEPS)
def test_every_timed_step_trains(name, phase):
    first, second = (losses(speed.load_script(name), phase, steps) for steps in (1, 2))
    assert first and all(torch.isfinite(x).all() for x in second.values())
    assert any(
        not torch.equal(second[loss], 2 * first[loss]) for loss in first
    )  # the second step's is another


def test_the_products_of_a_step_are_those_of_its_layers():
    """A product of a hidden layer at batch n costs 2 * n * 256^2 operations; the other layers are narrow."""
    step, batch = speed.training_step(speed.load_script("dtql_gaussian"), "pretrain", CPU)
    _, flops = speed.bare_products(step, CPU)
    q, v, denoiser = 2 * 2, 2, 3  # hidden-to-hidden layers
    # forward, and twice that backward, to weights and inputs; V of the next state forward alone
    hidden = 2 * batch * 256 * 256 * (3 * (q + v + denoiser) + v)
    assert hidden < flops < 1.35 * hidden


SAME = [x for x in measures.MEASURES if x.change not in (measures.two_passes, measures.bfloat16)]


@pytest.mark.parametrize("measure", SAME, ids=lambda x: x.change.__name__)
def test_without_a_measure_the_losses_are_the_same(measure):
    """But for two: Q networks drawn one by one have other weights, and bfloat16 other products."""
    changed = copy_of(measure.script, f"tested_{measure.script}")
    measure.change(changed)
    own = losses(copy_of(measure.script, f"own_{measure.script}"), measure.phase)
    others = losses(changed, measure.phase)
    assert own.keys() == others.keys()
    for name in own:
        torch.testing.assert_close(others[name], own[name], rtol=1e-4, atol=1e-5)


def test_without_batched_q_networks_there_are_still_two():
    changed = copy_of("dtql_gaussian", "tested_dtql_gaussian")
    usual = changed.QNetworks
    measures.two_passes(changed)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    obs, action = torch.randn(3, 5, 17), torch.randn(3, 5, 6)
    apart, together = changed.QNetworks(generators, 17, 6), usual(generators, 17, 6)
    weights = together.state_dict()  # Q1 and Q2 of a seed stand side by side
    apart.load_state_dict(
        {f"nets.{i}.{name.removeprefix('net.')}": x[i::2] for i in range(2) for name, x in weights.items()}
    )
    torch.testing.assert_close(apart(obs, action), together(obs, action))
