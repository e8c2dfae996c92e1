"""The four scripts are siblings: the same sections, line for line, but for what the algorithm changes."""

import difflib
import inspect
import re

import pytest
from helpers import ROOT, SCRIPTS, load_script

FIRST = SCRIPTS[0]
IN_ALL = ["imports", "flags' values", "dataset", "layers", "EDM schedule", "optimisation", "evaluation",
          "checkpoint", "main"]  # fmt: skip
IN_DTQL = ["denoiser network", "critics"]  # and in kl_distill.py, whose networks and critics are DTQL's
ALGORITHM = ["arguments", "settings of the paper, per task", "denoiser network", "critics",
             "policy and losses", "update"]  # fmt: skip


def sections(script: str) -> dict[str, str]:
    """By the names in the rulers; before the first one `docstring` (with PEP 723's header) and `imports`."""
    text = (ROOT / script).read_text()
    head, *parts = re.split(r"(?m)^# -{20,} (.+)\n", text)
    docstring, imports = re.split(r"(?m)^(?=import contextlib$)", head)
    return {"docstring": docstring, "imports": imports} | dict(zip(parts[::2], parts[1::2]))


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_common_sections_are_equal_to_the_byte(script):
    first, mine = sections(FIRST), sections(script)
    assert list(first) == list(mine)
    assert set(first) == {"docstring", *IN_ALL, *ALGORITHM}
    for name in IN_ALL + (IN_DTQL if script != "srpo.py" else []):
        assert mine[name] == first[name], f"section {name!r} of {script} is not that of {FIRST}"


@pytest.mark.parametrize(
    "script, least", [("dtql_implicit.py", 0.85), ("kl_distill.py", 0.80), ("srpo.py", 0.65)]
)
def test_scripts_share_most_lines(script, least):
    a, b = ((ROOT / name).read_text().splitlines() for name in (FIRST, script))
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    shared = 2 * sum(block.size for block in blocks) / (len(a) + len(b))
    assert shared >= least


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_what_differs_is_the_algorithm(script):
    first, mine = sections(FIRST), sections(script)
    differing = {}
    for name in first:
        diff = difflib.ndiff(first[name].splitlines(), mine[name].splitlines())
        differing[name] = sum(line[:2] in ("- ", "+ ") for line in diff)
    assert sum(differing[name] for name in ALGORITHM) >= 0.75 * sum(differing.values()), differing


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_tells_its_own_name(script):
    """In the docstring's commands, and in no other script's."""
    docstring = sections(script)["docstring"]
    assert re.findall(r"python (\w+\.py)", docstring) == [script, script]


def test_the_implicit_policy_is_one_and_the_same():
    sources = [
        inspect.getsource(load_script(name).ImplicitPolicy) for name in ("dtql_implicit.py", "kl_distill.py")
    ]
    assert sources[0] == sources[1]
