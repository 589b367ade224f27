"""Stands in for the trainer where only the supervisor is tested: ``fake_trainer.py RUN``.

Each line of ``script.jsonl`` in the run is one life: the heartbeat to show, for how long, how long to be
silent then, and how to end. The instructions that each life was given are appended to ``lives.jsonl``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from toolkit.runs import heartbeat
from toolkit.runs.folder import Batch, RunFiles
from toolkit.training.worker import SPARE

run = Path(sys.argv[1])
files = RunFiles(run)
lives = run / "lives.jsonl"
spare = SPARE in os.environ
if spare:
    (run / "spare").touch()
    if not sys.stdin.buffer.read(1):
        sys.exit(1)
number = len(lives.read_text().splitlines()) if lives.exists() else 0
with lives.open("a") as file:
    file.write(json.dumps(json.loads(files.instructions.read_text()) | {"spare": spare}) + "\n")
scenes = (run / "script.jsonl").read_text().splitlines()
scene = json.loads(scenes[min(number, len(scenes) - 1)])

if "place" in scene:
    heartbeat.Cursor(files).set(Batch(*scene["place"]))


def stop(*_: object) -> None:
    if "lingers" not in scene:
        os._exit(75)
    files.exit_status.write_text("75")  # a first rank has saved, and torchrun waits for one that is stuck
    time.sleep(scene["lingers"])
    (run / "lingered").touch()
    os._exit(1)


(run / "pid").write_text(str(os.getpid()))
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in scene else stop)
if "leaves" in scene:  # torchrun's ranks have sessions of their own
    left = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (run / "left").write_text(str(left.pid))
end = time.monotonic() + scene.get("seconds", 0.0)
count = 0
while True:
    count += 1
    values = {"pid": os.getpid(), "count": count, "phase": "training", **scene.get("beat", {})}
    heartbeat.write(files, msgspec.convert(values, heartbeat.Beat))
    if time.monotonic() >= end:
        break
    time.sleep(0.05)
time.sleep(scene.get("silent", 0.0))
if "error" in scene:
    files.refusal.write_text(scene["error"])
if "written" in scene:
    files.exit_status.write_text(str(scene["written"]))
if scene["exit"] < 0:
    os.kill(os.getpid(), -scene["exit"])
files.exit_status.write_text(str(scene["exit"]))
sys.exit(scene["exit"])
