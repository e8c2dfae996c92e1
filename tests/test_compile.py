"""The compiled step against the eager one, on the CPU; tests/test_cuda.py has the GPU's."""

import pytest
import torch
from helpers import SCRIPTS, load_script


@pytest.mark.parametrize("script", SCRIPTS)
def test_compiled_and_eager_steps_give_the_same_losses_and_weights(script):
    module = load_script(script)
    transitions = torch.randn(512, 5 + 2 + 1 + 5 + 1, generator=torch.Generator().manual_seed(0))
    transitions[:, 5:7].tanh_()
    transitions[:, -1] = 0

    def run(compiled: bool):
        args = module.Args(seed=3, num_seeds=2, compile=compiled, batch_size=32, lr_decay=True, train_steps=8)
        module.resolve(args)
        agent = module.Agent(5, [1.0, 1.0], args, torch.device("cpu"))
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        totals: dict = {}
        update = list(module.PHASES.values())[-1]
        step = module.make_step(agent, transitions, [5, 2, 1, 5, 1], generators, update, totals)
        for _ in range(8):
            step()
        return agent, totals

    (eager, eager_totals), (compiled, compiled_totals) = run(False), run(True)
    for name, total in eager_totals.items():
        torch.testing.assert_close(compiled_totals[name], total, rtol=1e-4, atol=1e-4)
    for name, value in eager.state_dict().items():
        # Adam divides by the root of tiny second moments, which amplifies rounding to a share of a step
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-3, atol=3e-4, msg=name)
    assert all(optimizer.param_groups[0]["lr"] == 0 for optimizer in compiled.optimizers.values())
