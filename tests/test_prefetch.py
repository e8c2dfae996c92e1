"""benchmark/data/prefetch.py: fetching ahead from a server on this machine, the check of size and SHA-256."""

import hashlib
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import write_d4rl

from benchmark.data import prefetch

NAMES = ["hopper-medium-v2", "walker2d-medium-v2", "pen-human-v1"]
FILES = prefetch.script.D4RL_FILES


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror with small files of NAMES, whose checksums are the known ones; no file is here yet."""
    checksums = {}
    for seed, name in enumerate(NAMES):
        file = tmp_path / "mirror" / FILES[name]
        write_d4rl(file, seed=seed)
        checksums[FILES[name]] = (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    )
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("D4RL_MIRRORS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setattr(prefetch, "CHECKSUMS", checksums)
    yield tmp_path / "mirror"
    server.shutdown()
    server.server_close()


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """(exit status, what was printed)."""
    monkeypatch.setattr(sys, "argv", ["prefetch", *arguments])
    with pytest.raises(SystemExit) as end:
        prefetch.main()
    return int(end.value.code), "".join(capsys.readouterr())


def test_files_are_fetched_once_and_checked(mirror, tmp_path, monkeypatch, capsys):
    status, printed = run(monkeypatch, capsys, *NAMES)
    assert status == 0 and printed.count("D4RL's own") == 3
    fetched = {file.name for file in (tmp_path / "d4rl").iterdir()}
    assert fetched == {FILES[name].rpartition("/")[2] for name in NAMES}
    monkeypatch.setenv("D4RL_MIRRORS", "http://127.0.0.1:9")  # nothing listens there
    assert run(monkeypatch, capsys, *NAMES)[0] == 0


def test_another_file_of_the_same_size_and_one_of_another_size_are_noticed(
    mirror, tmp_path, monkeypatch, capsys
):
    for name, change in ((NAMES[0], lambda b: b[:-1] + bytes([b[-1] ^ 1])), (NAMES[1], lambda b: b + b"\0")):
        file = tmp_path / "d4rl" / FILES[name].rpartition("/")[2]
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(change((mirror / FILES[name]).read_bytes()))
    status, printed = run(monkeypatch, capsys, *NAMES)
    assert status == 1
    assert (
        "another SHA-256" in printed and "bytes, D4RL's has" in printed and printed.count("D4RL's own") == 1
    )


def test_a_file_that_cannot_be_had_does_not_keep_the_others(mirror, monkeypatch, capsys):
    (mirror / FILES[NAMES[0]]).unlink()
    status, printed = run(monkeypatch, capsys, *NAMES)
    assert status == 1 and printed.count("D4RL's own") == 2


def test_names_are_known_ones_and_some_are_needed(monkeypatch, capsys):
    for arguments, message in (((), "give a NAME"), (("hopper-medium-v9",), "unknown: hopper-medium-v9")):
        status, printed = run(monkeypatch, capsys, *arguments)
        assert status == 2 and message in printed


def test_table1_and_all(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(prefetch, "CHECKSUMS", {})
    monkeypatch.setattr(prefetch.script, "load_d4rl", lambda name: asked.append(name) or (tmp_path,))
    assert run(monkeypatch, capsys, "--table1")[0] == 0 and len(asked) == len(set(asked)) == 26
    asked.clear()
    assert run(monkeypatch, capsys, "--all")[0] == 0 and asked == list(FILES)


def test_the_checksums_are_of_files_that_the_scripts_know():
    known = prefetch.CHECKSUMS
    assert all(len(sha256) == 64 and size > 1e6 for size, sha256 in known.values())
    tasks = {row["task"] for row in prefetch.read("table4_hyperparameters.csv")}
    missing = {name for name in tasks if FILES[name] not in known}
    assert missing == {"antmaze-medium-play-v2", *(name for name in tasks if name.startswith("kitchen"))}
