"""benchmark/bandit.py: the numbers of two panels with the exact denoiser of their data, the density of a
diffusion model, and that what docs/bandit.md says is what was measured."""

import json
import math
import re
import sys

import pytest
import torch
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmark"))
import bandit  # noqa: E402

UNIT = bandit.PLANES["grid25"].unit
DOCS = ROOT / "docs/bandit.md"


@pytest.fixture
def exact(monkeypatch):
    """The panels' jobs get the denoiser that training would reach on the 25 Gaussians: E[a | a_σ]."""

    def load(name, seeds, weights, sigma_data=0.5):
        def network(x, c_noise, obs):  # F that makes D(a_σ, σ) = E[a | a_σ]
            sigma = (4 * c_noise).exp()
            total, v = sigma**2 + sigma_data**2, (bandit.GRID_STD / UNIT) ** 2 + sigma**2
            noisy = x * total.sqrt()
            distance = (noisy.unsqueeze(2) - bandit.GRID / UNIT).square().sum(dim=-1)  # [seed, batch, 25]
            mean = (-distance / (2 * v)).softmax(dim=-1) @ (bandit.GRID / UNIT)
            denoised = noisy + sigma**2 / v * (mean - noisy)
            return (denoised - sigma_data**2 / total * noisy) * total.sqrt() / (sigma * sigma_data)

        args = bandit.make_args(bandit.dtql_gaussian, seeds, sigma_data=sigma_data)
        return network, args, torch.full((2,), bandit.PLANES[name].box / UNIT)

    monkeypatch.setattr(bandit, "load_denoiser", load)


def test_theorem_1_panel(exact):
    """Without the Jacobian of D, 91 % of starts end on a mode, at a median distance of 0.56; with σ = 0.5
    throughout 90 %; with the square root of σ 67 %; with σ = 5 all end on one mode."""
    jobs = {"σ_data 2": 0.5, "σ_data 7": 1.77}  # in the papers' units, in the scripts'
    results = {
        name: bandit.end_on_modes({"weights": None}, "grid25", 1, sigma_data, steps=300, starts=300)
        for name, sigma_data in jobs.items()
    }
    (numbers,) = bandit.PANELS["theorem1"].measure(results)
    narrow, wide = numbers.values()
    assert narrow["on_data"] > 0.99 and narrow["modes"] == 25
    assert narrow["median_distance"] < 0.3
    assert wide["modes"] < 25  # noise as wide as the data blurs them


def test_trust_region_map_panel(exact):
    """The loss of the exact denoiser at data, and half-way between means over that. With σ² in place of σ the
    ratio is 3.3, with its square root 1.1, with a constant σ = 0.5 1.4, with σ = 5 0.6."""
    maps = bandit.map_trust_region({"weights": None}, "grid25", 1, cells=5)
    (numbers,) = bandit.measure_map({"exact": maps})
    assert numbers["exact"]["ranked_right"] > 0.9
    assert maps["on"].mean().item() == pytest.approx(2.08, abs=0.1)
    args_of = bandit.load_denoiser("grid25", 1, None)
    between = (bandit.GRID[bandit.GRID.amax(dim=1) < 10] + 2.5) / UNIT
    ratio = bandit.trust_region(*args_of, between.unsqueeze(0)).mean() / maps["on"].mean()
    assert ratio.item() == pytest.approx(2.04, abs=0.2)


def test_density_by_the_probability_flow_ode_is_a_gaussians_own():
    mean, std = torch.tensor([0.6, -0.3]), torch.tensor([0.2, 0.7])

    def denoised(a, sigma):
        return (std**2 * a + sigma**2 * mean) / (std**2 + sigma**2)

    action = mean + std * torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(0))
    z = (action - mean) / std
    expected = (-(z**2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum(dim=-1)
    for steps, error in ((24, 0.05), (60, 0.03)):  # the panels take 24
        log_density = bandit.log_density(denoised, action, 0.002, 80.0, steps)
        torch.testing.assert_close(log_density, expected, atol=error, rtol=0)


@pytest.mark.parametrize("name", bandit.PLANES)
def test_data_lies_on_itself_inside_box_and_picture(name):
    plane, fresh = bandit.PLANES[name], bandit.make_data(name, 2000, seed=2)
    assert 0.98 < bandit.on_data(name, fresh).float().mean() < 1
    assert fresh.abs().max() < plane.box
    assert (fresh.abs().amax(dim=1) < plane.extent).float().mean() > 0.999
    far_off = torch.full((1, 2), plane.box)
    assert not bandit.on_data(name, far_off).any()


def test_every_mode_is_covered_by_data_and_one_by_a_point():
    for name in ("grid25", "swissroll"):
        data = bandit.make_data(name, 2000, seed=1)
        assert bandit.modes_covered(name, data) == 25
        assert bandit.modes_covered(name, data[:1].expand(100, 2)) == 1
        assert bandit.modes_covered(name, torch.zeros(100, 2) + 2.5) == 0


def test_rewards_are_the_papers():
    a = torch.tensor([[3.0, 4.0], [-8.0, 8.0], [-8.0, 7.0]])
    norm = a.norm(dim=1)
    torch.testing.assert_close(bandit.reward_of("far", "grid25", a), norm)
    torch.testing.assert_close(bandit.reward_of("hard", "grid25", a), norm * torch.tensor([1.0, 2.0, 1.0]))
    near = bandit.reward_of("near", "grid25", a)
    torch.testing.assert_close(near + norm, bandit.make_data("grid25").norm(dim=1).max().expand(3))


def test_a_policy_is_trained_by_its_script_and_leaves_the_script_as_it_was():
    """Few steps of a few actions: that jobs fit together, not what they reach."""
    scripts = bandit.SCRIPTS.values()
    before = [
        (script.HIDDEN_DIM, script.TIME_DIM, getattr(script, "pretrain_update", 0)) for script in scripts
    ]
    denoiser = bandit.train_denoiser("grid25", 2, steps=2)
    critic = bandit.train_critic("grid25", "far", 2, steps=2)
    for script, flags in bandit.POLICIES.values():
        result = bandit.train_policy(denoiser, critic, script, "grid25", 2, flags, steps=2)
        assert result["samples"].shape == (2, bandit.SAMPLES, 2)
        assert result["samples"].abs().max() <= bandit.PLANES["grid25"].box
    after = [
        (script.HIDDEN_DIM, script.TIME_DIM, getattr(script, "pretrain_update", 0)) for script in scripts
    ]
    assert after == before


# ----------------------------------------------------------------------------------- what docs/bandit.md says
@pytest.fixture
def content() -> dict:
    return json.loads((ROOT / "benchmark/results/bandit.json").read_text())


def test_every_panel_is_in_the_results_with_three_seeds_and_in_the_docs_with_its_picture(content):
    assert list(content["panels"]) == list(bandit.PANELS)
    for name, panel in content["panels"].items():
        assert [row["seed"] for row in panel["seeds"]] == [1, 2, 3]
        assert panel["seconds"] > 0
        assert f"results/bandit/{name}.png" in DOCS.read_text()


def test_docs_show_the_table_that_the_results_make(content):
    assert bandit.table(content) in DOCS.read_text()


def test_claims_follow_from_the_numbers(content):
    for name, panel in content["panels"].items():
        for (claim, test), entry in zip(bandit.PANELS[name].claims, panel["claims"], strict=True):
            assert entry == {"claim": claim, "seen": bandit.verdict([test(row) for row in panel["seeds"]])}


def test_pictures_are_small_and_exist():
    for page in (DOCS, ROOT / "README.md"):
        for link in re.findall(r"\]\(([^)]*bandit/\w+\.png)\)", page.read_text()):
            assert (page.parent / link).stat().st_size < 200_000
