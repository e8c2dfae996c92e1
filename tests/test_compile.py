"""The compiled step against the eager one, on the CPU; tests/test_cuda.py has the GPU's."""

import pytest
import torch
from helpers import DIMS, SCRIPTS, generators, load_script, make_agent, make_transitions

PHASES = [(script, "train") for script in SCRIPTS[:3]]  # which does all that "pretrain" does, too
PHASES += [("srpo.py", name) for name in ("critic", "behavior", "policy")]


@pytest.mark.parametrize("script, name", PHASES)
def test_compiled_and_eager_steps_give_the_same_losses_and_weights(script, name):
    module = load_script(script)
    torch._dynamo.reset()

    def run(compiled: bool):
        agent = make_agent(module, num_seeds=2, compile=compiled, **{f"{name}_steps": 8})
        totals: dict = {}
        phase = module.PHASES[name]
        phase.start(agent)
        step = module.make_step(agent, make_transitions(), DIMS, generators(3, 4), phase, totals)
        for _ in range(8):
            step()
        return agent, totals

    (eager, eager_totals), (compiled, compiled_totals) = run(False), run(True)
    for loss, total in eager_totals.items():
        torch.testing.assert_close(compiled_totals[loss], total, rtol=1e-3, atol=1e-3)
    vector = lambda agent: torch.nn.utils.parameters_to_vector(agent.parameters())
    initial = make_agent(module, num_seeds=2)
    module.PHASES[name].start(initial)
    # not weight by weight: Adam divides by the root of tiny second moments, which amplifies rounding
    assert (vector(compiled) - vector(eager)).norm() < 0.01 * (vector(eager) - vector(initial)).norm()
    rates = [optimizer.param_groups[0]["lr"].item() for optimizer in compiled.optimizers.values()]
    assert rates == pytest.approx(
        [o.param_groups[0]["lr"].item() for o in eager.optimizers.values()], abs=1e-9
    )
    assert name in ("critic", "behavior") or 0 in rates  # decayed
