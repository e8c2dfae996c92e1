"""Importing this package registers D4RL's environments in Gymnasium."""

from benchmark.envs import d4rl  # noqa: F401
