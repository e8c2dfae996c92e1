"""Fetches and checks D4RL's data files ahead of time, for machines without a network.

    python -m benchmark.data.prefetch hopper-medium-v2 antmaze-umaze-v0
    python -m benchmark.data.prefetch --table1    # the 26 tasks of the sweep table1, AntMaze-v2 too
    python -m benchmark.data.prefetch --all

Files lie in $D4RL_DATASET_DIR (default ~/.d4rl/datasets), where the scripts look for them; those that are
there already are only checked. benchmark/paper/d4rl_sha256.csv has the size and the SHA-256 of D4RL's own
files, as far as they are known; the exit status is 1 if a file is another one or cannot be fetched.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import dtql_gaussian as script  # its dataset section is that of all four scripts
from benchmark.sweep.experiments import TASKS, read

CHECKSUMS = {row["path"]: (int(row["bytes"]), row["sha256"]) for row in read("d4rl_sha256.csv")}


def check(path: str, file: Path) -> str:
    """What is known of the file of this path below a mirror; ValueError if it is not D4RL's."""
    if path not in CHECKSUMS:
        return "no checksum known"
    size, sha256 = CHECKSUMS[path]
    if file.stat().st_size != size:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, D4RL's has {size:,}")
    with open(file, "rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
            raise ValueError(f"{file} has the size of D4RL's, but another SHA-256")
    return "D4RL's own"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("names", nargs="*", metavar="NAME", help="D4RL's, e.g. hopper-medium-v2")
    parser.add_argument("--all", action="store_true", help="every D4RL name that the scripts know")
    parser.add_argument("--table1", action="store_true", help="the tasks of the sweep table1")
    args = parser.parse_args()
    names = list(script.D4RL_FILES) if args.all else args.names + TASKS * args.table1
    unknown = [name for name in names if name not in script.D4RL_FILES]
    if not names or unknown:
        parser.error(f"unknown: {' '.join(unknown)}" if unknown else "give a NAME, --table1 or --all")
    failed = 0
    for name in dict.fromkeys(names):
        try:
            file, *_ = script.load_d4rl(name)
            print(f"{name}: {check(script.D4RL_FILES[name], file)}")
        except (script.InputError, OSError, ValueError) as error:  # the next file may be had
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
