"""The compiled step against the eager one, on the CPU; tests/test_cuda.py has the GPU's."""

import pytest
import torch
from helpers import SCRIPTS, load_script, make_agent, make_args, make_data

# "train" does all that "pretrain" does, which is the same in three scripts (tests/test_siblings.py)
PHASES = [
    (script, phase) for script in SCRIPTS for phase in load_script(script).PHASES if phase != "pretrain"
]
BY_INDUCTOR = [("kl_distill.py", "train"), ("srpo.py", "behavior")]  # every draw is in these, and dropout


@pytest.mark.parametrize("script, phase", PHASES)
def test_compiled_and_eager_steps_give_the_same_losses_and_weights(script, phase, monkeypatch):
    """From the same random numbers. Inductor takes half a minute for a step, of shallow networks too: most
    steps are compiled without its last stage, code in C++."""
    if (script, phase) not in BY_INDUCTOR:
        compile = torch.compile
        monkeypatch.setattr(
            torch,
            "compile",
            lambda update, options: compile(update, backend="aot_eager"),
        )
    script = load_script(script)
    monkeypatch.setattr(script, "HIDDEN", (32,))
    monkeypatch.setattr(script, "BLOCKS", 1, raising=False)
    torch._dynamo.reset()
    weights, losses = [], []
    for compiled in (False, True):
        args = make_args(script, num_seeds=2, compile=compiled)
        agent = make_agent(script, args)
        weights.append(torch.nn.utils.parameters_to_vector(agent.parameters()))
        steps = script.gradient_steps(agent, make_data(), phase, totals := {}, args)
        torch.manual_seed(3)
        for _ in range(3):
            next(steps)
        losses.append(totals | {"next": torch.rand(1)})  # as many draws, too
        weights.append(torch.nn.utils.parameters_to_vector(agent.parameters()))
        rates = [optimizer.param_groups[0]["lr"].item() for optimizer in agent.optimizers.values()]
        assert phase not in ("train", "policy") or min(rates) == pytest.approx(0, abs=1e-9)  # decayed
    for loss, total in losses[0].items():
        torch.testing.assert_close(losses[1][loss], total, rtol=1e-4, atol=1e-5)
    initial, eager, _, compiled = weights
    # not weight by weight: Adam divides by the root of tiny second moments, which amplifies rounding
    assert (compiled - eager).norm() < 0.01 * (eager - initial).norm()
