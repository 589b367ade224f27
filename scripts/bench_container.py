#!/usr/bin/env python3
"""What a container costs: the doctor, and training inside against outside.

    python scripts/bench_container.py [--rounds 3]

Needs the image of the profile cpu (scripts/container-test makes it), whose PyTorch should be the one that
runs this script. Training is 2 epochs of the smoke preset on 160 sample frames, whole commands, in turn; the
fastest of the rounds counts, because other work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLKIT = [sys.executable, "-m", "toolkit"]
TRAIN = ["--preset", "smoke", "--epochs", "2", "--device", "cpu"]


def seconds(*command: str, workspace: Path, status: tuple[int, ...] = (0,)) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_WORKSPACE": str(workspace)}
    start = time.monotonic()
    done = subprocess.run([*TOOLKIT, *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in status:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-1000:]}")
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = str(place / "data")
        counts = ("--train", "160", "--val", "48", "--test", "8")
        seconds("dataset", "sample", data, "--scene", "street", *counts, workspace=place)
        seconds("dataset", "prepare", data, workspace=place)
        found: dict[str, list[float]] = {"doctor": [], "outside": [], "inside": []}
        for number in range(options.rounds):
            name = ["--data", data, "--name"]
            found["doctor"].append(seconds("doctor", workspace=place, status=(0, 1)))
            found["outside"].append(seconds("train", *TRAIN, *name, f"out-{number}", workspace=place))
            inside = ("container", "train", "--profile", "cpu", "--data", data)
            inside += (*TRAIN, "--name", f"in-{number}")
            found["inside"].append(seconds(*inside, workspace=place))
            print(
                f"round {number}:",
                *(f"{key} {values[-1]:.1f} s" for key, values in found.items()),
                flush=True,
            )
    best = {key: min(values) for key, values in found.items()}
    load = os.getloadavg()[1]
    print(f"{os.cpu_count()} processors, load of the last five minutes {load:.1f}")
    ratio = best["inside"] / best["outside"]
    print(f"doctor {best['doctor']:.1f} s")
    print(f"training outside {best['outside']:.1f} s, inside {best['inside']:.1f} s: {ratio:.3f} x")


if __name__ == "__main__":
    main()
