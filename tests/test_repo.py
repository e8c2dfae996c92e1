"""What pages and the scripts' headers say against the files that they speak of."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SCRIPTS, load_script, make_args, write_d4rl

from benchmark.speed import tables
from benchmark.sweep import report


def test_the_readmes_reports_are_those_of_the_files():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"(?s)<!-- report:(\w+) -->\n(.*?)<!-- /report -->", readme)
    assert [name for name, _ in blocks] == ["local"]
    for name, shown in blocks:
        section = next(
            x for x in report.collect(ROOT / "benchmark/results/local") if x.experiment.name == name
        )
        command = f"python -m benchmark.sweep.report benchmark/results/local --readme {name}"
        assert shown.strip() == report.readme_block(section, command)


def test_the_tables_of_speed_are_those_of_the_files():
    text = (ROOT / "docs/speed.md").read_text()
    assert tables.page(text) == text


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_trained_policy_acts_by_the_program_of_the_docs(name, tmp_path, monkeypatch):
    """From model.pt alone, as the agent in the run's last checkpoint does."""
    script, stem = load_script(name), Path(name).stem
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5")
    settings = {"num_seeds": 2, "eval_episodes": 0, "eval_candidates": 0}  # 0: the mean action, no chance
    known = {x: value for x, value in settings.items() if x in script.Args.__dataclass_fields__}
    args = make_args(script, env_id="hopper-medium-v2", run_dir=str(tmp_path / "run"), **known)
    script.train(args)
    page = (ROOT / "docs/files.md").read_text()
    (program,) = (x for x in re.findall(r"(?ms)^```python\n(.*?)^```", page) if "load_state_dict" in x)
    monkeypatch.syspath_prepend(ROOT)
    names = {"run_dir": tmp_path / "run", "obs": torch.linspace(-1, 1, 11)}
    exec(program.replace("dtql_gaussian", stem), names)

    agent = script.Agent(11, 3, args, torch.device("cpu"))
    agent.load_state_dict(torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["agent"])
    expected = script.act(agent, names["obs"].expand(2, 1, -1), args)[0, 0]  # of D4RL's box, [-1, 1]
    assert torch.allclose(names["action"].float(), expected, atol=1e-6)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_pep_723_header_names_every_package_that_the_script_imports(script):
    text = (ROOT / script).read_text()
    (block,) = re.findall(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", text)
    header = tomllib.loads("".join(line[2:] + "\n" for line in block.splitlines()))
    declared = {re.match(r"[\w-]+", package)[0] for package in header["dependencies"]}
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    imported -= set(sys.stdlib_module_names)
    assert imported - {"h5py"} <= declared  # h5py comes with minari[hdf5]
    assert any(package.startswith("minari[hdf5") for package in header["dependencies"])
    pinned = (ROOT / "requirements.txt").read_text()
    assert all(package in pinned for package in header["dependencies"])
