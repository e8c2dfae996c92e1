"""benchmark/sweep/controls.py: states put back to the letter, samples of a known model, rank correlations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import load_script

from benchmark.sweep import controls


def test_a_state_that_was_put_back_leads_where_the_dataset_went():
    script = load_script("dtql_gaussian.py")
    (obs, action, reward, next_obs, _), _ = script.load_dataset("local/reacher/wander-v0")
    env = script.open_minari("local/reacher/wander-v0").recover_environment(eval_env=True)
    for i in (0, 7, 48, 12_345):
        controls.put(env, obs[i])
        after, r, *_ = env.unwrapped.step(action[i].numpy())
        np.testing.assert_allclose(after, next_obs[i], atol=1e-4)
        assert r == pytest.approx(reward[i].item(), abs=1e-4)


def test_samples_of_a_gaussian_behaviour_model_are_that_gaussian():
    """For data N(m, s²) the denoiser is known: (s² x + σ² m) / (s² + σ²)."""
    m, s = 0.3, 0.2

    class Exact(torch.nn.Module):
        body = SimpleNamespace(biases=[torch.zeros(1, 1, 2)])

        def forward(self, x, sigma, obs):
            return (s**2 * x + sigma**2 * m) / (s**2 + sigma**2)

    torch.manual_seed(0)
    args = SimpleNamespace(sigma_min=0.002, sigma_max=80.0)
    sample = controls.sample_behavior(SimpleNamespace(denoiser=Exact()), torch.zeros(1, 20_000, 3), args)
    assert sample.shape == (1, 20_000, 2)
    assert sample.mean().item() == pytest.approx(m, abs=0.005)
    assert sample.std().item() == pytest.approx(s, rel=0.1)  # 40 Euler steps: 8 % too narrow


def test_rank_correlations():
    x = np.array([[0.1, 5.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    y = np.array([[1.0, 1e6, 2.0, 2.5], [4.0, 3.0, 2.0, 1.0], [2.0, 1.0, 4.0, 3.0]])
    np.testing.assert_allclose(controls.rank_correlation(x, y), [1, -1, 0.6])
