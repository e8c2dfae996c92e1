"""Tests run in parallel processes (pytest-xdist), each on one thread."""

import os
import sys

import pytest
import torch
from helpers import ROOT, script_env

sys.path.insert(0, str(ROOT))  # where benchmark/ is
torch.set_num_threads(1)  # threads of several processes wait for each other, at many times the cost


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder that is HOME and the working directory, and an environment as run_script gives one."""
    env = script_env(tmp_path)
    for name in {*os.environ} - {*env}:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path
