"""benchmark/bandit: the numbers of two panels with the exact denoiser of their data, the density of a
diffusion model, and that what docs/bandit.md says is what was measured."""

import json
import math
import re

import pytest
import torch
from helpers import ROOT

from benchmark.bandit import dtql_panels, srpo_panels, toy
from benchmark.bandit.run import PANELS, table, verdict

DOCS = ROOT / "docs/bandit.md"


@pytest.fixture
def exact(monkeypatch):
    """The panels get the denoiser that training would reach on the 25 Gaussians: E[a | a_σ]."""

    def load(name, seeds, sigma_data=2.0):
        def denoiser(noisy, sigma, obs):
            v = toy.GRID_STD**2 + sigma**2
            distance = (noisy.unsqueeze(2) - toy.GRID).square().sum(dim=-1)  # [seed, batch, 25]
            mean = (-distance / (2 * v)).softmax(dim=-1) @ toy.GRID
            return noisy + sigma**2 / v * (mean - noisy)

        return denoiser, toy.make_args(toy.dtql_gaussian, seeds, sigma_data)

    monkeypatch.setattr(toy, "load_denoiser", load)
    return load


def test_theorem_1_panel(exact):
    """Without the Jacobian of D 91 % of starts end on a mode, at a median distance of 0.56; with σ = 0.5
    throughout 90 %; with the square root of σ 67 %; with σ = 5 all end on one mode."""
    results = {s: dtql_panels.end_on_modes("grid25", 1, s, steps=300, starts=300) for s in (2.0, 7.0)}
    narrow, wide = dtql_panels.measure_theorem(results, 0).values()
    assert narrow["on_data"] > 0.99 and narrow["modes"] == 25
    assert narrow["median_distance"] < 0.3
    assert wide["modes"] < 25  # noise as wide as the data blurs them


def test_trust_region_map_panel(exact):
    """The loss of the exact denoiser at data, and half-way between means over that. With σ² in place of σ the
    ratio is 3.3, with its square root 1.1, with a constant σ = 0.5 1.4, with σ = 5 0.6."""
    maps = dtql_panels.map_trust_region("grid25", 1, cells=5)
    assert dtql_panels.measure_map({"exact": maps}, 0)["exact"]["ranked_right"] > 0.9
    assert maps["on"].mean().item() == pytest.approx(2.08, abs=0.1)
    between = toy.GRID[toy.GRID.amax(dim=1) < 10] + 2.5
    ratio = dtql_panels.trust_region(*exact("grid25", 1), between.unsqueeze(0)).mean() / maps["on"].mean()
    assert ratio.item() == pytest.approx(2.04, abs=0.2)


def test_density_by_the_probability_flow_ode_is_a_gaussians_own():
    mean, std = torch.tensor([0.6, -0.3]), torch.tensor([0.2, 0.7])
    args = toy.make_args(toy.dtql_gaussian, 1, 0.5)
    assert (args.sigma_min, args.sigma_max) == (0.002, 80)

    def denoiser(a, sigma, obs):
        return (std**2 * a + sigma**2 * mean) / (std**2 + sigma**2)

    action = mean + std * torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(0))
    z = (action - mean) / std
    expected = (-(z**2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum(dim=-1)
    for steps, error in ((24, 0.05), (60, 0.03)):  # the panels take 24
        log_density = srpo_panels.log_density(denoiser, args, action, steps)
        torch.testing.assert_close(log_density, expected, atol=error, rtol=0)


def test_a_path_leads_from_its_target_to_the_data(monkeypatch):
    """With the exact denoiser of one mode at the origin Eq. 15's balance is known: the score pulls inwards,
    Q to a_tar, and 1/β sets which wins."""
    std = 0.3
    args = toy.make_args(toy.dtql_gaussian, 1, 0.25)
    normal = lambda noisy, sigma, obs: std**2 / (std**2 + sigma**2) * noisy
    monkeypatch.setattr(toy, "load_denoiser", lambda *_: (normal, args))
    monkeypatch.setattr(srpo_panels, "LEVELS", [0.1, 3.0])
    monkeypatch.setattr(srpo_panels, "AT", {"0": 0, "10": -1})
    x = srpo_panels.follow_beta.__wrapped__("rings", 1, "sigma_squared", draws=64, steps=60)
    start, weak, strong = (x["path"][0, i].norm(dim=1) for i in range(3))
    assert torch.allclose(start, srpo_panels.TARGETS.norm(dim=1))
    assert (weak <= start + 0.05).all() and (strong < weak).all()
    assert torch.cosine_similarity(x["path"][0, 2], srpo_panels.TARGETS).min() > 0.95
    assert (x["log"]["10"] > x["log"]["0"]).all()


@pytest.mark.parametrize("name", toy.PLANES)
def test_data_lies_on_itself_inside_box_and_picture(name):
    plane, fresh = toy.PLANES[name], toy.make_data(name, 2000, seed=2)
    assert 0.98 < toy.share_on_data(name, fresh) < 1
    assert fresh.abs().max() < plane.box
    assert (fresh.abs().amax(dim=1) < plane.extent).float().mean() > 0.999
    assert not toy.on_data(name, torch.full((1, 2), plane.box)).any()


def test_every_mode_is_covered_by_data_and_one_by_a_point():
    for name in ("grid25", "swissroll"):
        data = toy.make_data(name, 2000, seed=1)
        assert toy.modes_covered(name, data) == 25
        assert toy.modes_covered(name, data[:1].expand(100, 2)) == 1
        assert toy.modes_covered(name, torch.zeros(100, 2) + 2.5) == 0


def test_rewards_are_the_papers():
    a = torch.tensor([[3.0, 4.0], [-8.0, 8.0], [-8.0, 7.0]])
    norm = a.norm(dim=1)
    torch.testing.assert_close(toy.reward_of("far", "grid25", a), norm)
    torch.testing.assert_close(toy.reward_of("hard", "grid25", a), norm * torch.tensor([1.0, 2.0, 1.0]))
    near = toy.reward_of("near", "grid25", a)
    torch.testing.assert_close(near + norm, toy.make_data("grid25").norm(dim=1).max().expand(3))


def test_models_descend_their_losses_and_policies_are_their_scripts(monkeypatch):
    """A few steps: the critic ranks actions by reward, and each script's policy follows it."""
    monkeypatch.setattr(toy, "CRITIC_BATCH", 64)
    monkeypatch.setattr(toy, "train_denoiser", lambda *_: toy.make_agent(script, args).denoiser.state_dict())
    script = toy.dtql_gaussian
    args = toy.make_args(script, 2, 2.0)
    critic = toy.train_critic("grid25", "far", 2, steps=200)
    monkeypatch.setattr(toy, "train_critic", lambda *_: critic)
    agent = toy.make_agent(script, args)
    agent.q.load_state_dict(critic)
    action, state = toy.make_data("grid25", 500, seed=1), torch.ones(2, 500, 1)
    q = agent.q(state, (action / 20).expand(2, -1, -1)).detach()
    assert torch.corrcoef(torch.stack([action.norm(dim=1), *q.flatten(0, 1)]))[0, 1:].min() > 0.8
    before = {name: vars(script).copy() for name, script in toy.SCRIPTS.items()}
    for name, flags in dtql_panels.POLICIES.values():
        flags = (*flags, ("alpha", 1e-3))
        early, late = (toy.train_policy(name, "grid25", "far", 2, flags, steps=n) for n in (1, 30))
        assert early.shape == late.shape == (2, toy.SAMPLES, 2) and late.abs().max() <= 20
        assert (late.norm(dim=2).mean(dim=1) > early.norm(dim=2).mean(dim=1)).all(), name
        assert not torch.equal(late[0], late[1])
    assert before == {name: vars(script) for name, script in toy.SCRIPTS.items()}


# ----------------------------------------------------------------------------------- what docs/bandit.md says
@pytest.fixture
def panels() -> dict:
    return json.loads((ROOT / "benchmark/results/bandit/bandit.json").read_text())


def test_every_panel_is_in_the_results_with_three_seeds_and_in_the_docs_with_its_picture(panels):
    assert list(panels) == list(PANELS)
    for name, panel in panels.items():
        assert [row["seed"] for row in panel["seeds"]] == [1, 2, 3]
        assert re.fullmatch("[0-9a-f]{7,}", panel["commit"])
        assert f"results/bandit/{name}.png" in DOCS.read_text()


def test_docs_show_the_table_that_the_results_make(panels):
    assert table(panels) in DOCS.read_text()


def test_claims_follow_from_the_numbers(panels):
    for name, panel in panels.items():
        for (claim, test), entry in zip(PANELS[name].claims, panel["claims"], strict=True):
            assert entry == {"claim": claim, "seen": verdict([test(row) for row in panel["seeds"]])}


def test_pictures_are_small_and_exist():
    for page in (DOCS, ROOT / "README.md"):
        for link in re.findall(r"\]\(([^)]*bandit/\w+\.png)\)", page.read_text()):
            assert (page.parent / link).stat().st_size < 200_000
