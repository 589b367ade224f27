"""The trainer's process with faults in it: ``faulty_worker.py RUN FAULT...``, or, as one of the ranks that
torchrun starts, ``faulty_worker.py train ...`` with the words of ``toolkit train`` and faults in ``FAULTS``.

A fault is ``name:epoch:batch``, of another rank than the first ``name:epoch:batch@rank``; one with a ``!``
behind it happens each time, the others once in a run. Every batch is written to ``trace.jsonl`` in the run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from toolkit import cli
from toolkit.dataset import pixels
from toolkit.dataset.archive import ZipFrames
from toolkit.training import trainer, worker

rank = int(os.environ.get("RANK", "0"))
faults = sys.argv[2:] if sys.argv[1] != "train" else os.environ.get("FAULTS", "").split()


def due(run: Path, at: str) -> set[str]:
    """Names of the faults that happen to this rank at ``epoch:batch``, marked as having happened."""
    names: set[str] = set()
    for fault in faults:
        name, _, place = fault.removesuffix("!").partition(":")
        place, _, whose = place.partition("@")
        marker = run / f"{fault}.done"
        if rank == int(whose or 0) and place in (at, "*") and (fault.endswith("!") or not marker.exists()):
            marker.touch()
            names.add(name)
    return names


class Faulty(trainer.LTDv2Trainer):
    """Falls over where it is told to."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        number = self.train_loader.batch_number
        now = due(self.files.run, f"{self.epoch}:{number}")
        if "lose_node" in now:
            os.kill(os.getppid(), signal.SIGKILL)
        if "kill" in now or "lose_node" in now:
            os.kill(os.getpid(), signal.SIGKILL)
        if "stop" in now:
            os.kill(os.getpid(), signal.SIGTERM)
        if "stuck" in now:
            time.sleep(3600)
        if "freeze" in now:
            os.kill(os.getpid(), signal.SIGSTOP)
        if "raise" in now:
            raise ValueError("a fault in the program")
        if "slow" in now:
            time.sleep(0.2)
        if "wait" in now and self.train_loader.order.ranks == 1:  # for another machine to join
            time.sleep(3)
        processed = super().preprocess_batch(batch)
        if "nan" in now:
            processed["img"][:] = torch.nan
        return processed

    def _on_batch_end(self, trainer: object) -> None:
        step = {
            "rank": rank,
            "ranks": self.train_loader.order.ranks,
            "epoch": self.epoch,
            "batch": self.train_loader.batch_number,
            "images": self._images,
            "losses": [float(v) for v in self.loss_items.values()],
        }
        with (self.files.run / "trace.jsonl").open("a") as file:
            file.write(json.dumps(step) + "\n")
        super()._on_batch_end(trainer)


read_at_once = ZipFrames.read


def read_slowly(frames: ZipFrames, row: int) -> bytes:
    """What a disk does that answers late."""
    time.sleep(0.08)
    return read_at_once(frames, row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "slow_disk" in faults:
        ZipFrames.read = read_slowly  # type: ignore[method-assign]
        pixels.store_for = lambda *_: (None, "")  # more frames than memory keeps
    trainer.LTDv2Trainer = Faulty  # type: ignore[misc]
    if sys.argv[1] == "train":
        cli.main()
    sys.exit(worker.main(Path(sys.argv[1])))
