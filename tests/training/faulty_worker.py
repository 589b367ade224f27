"""The trainer's process with faults in it: ``faulty_worker.py RUN FAULT...``.

A fault is ``name:epoch:batch``; one with a ``!`` behind it happens each time, the others once in a run. Every
batch is written to ``trace.jsonl`` in the run.
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

from toolkit.training import trainer, worker

run, faults = Path(sys.argv[1]), sys.argv[2:]
rank = int(os.environ.get("RANK", "0"))


def due(at: str) -> set[str]:
    """Names of the faults that happen at ``epoch:batch``, in the first rank, marked as having happened."""
    names: set[str] = set()
    if rank:
        return names
    for fault in faults:
        name, _, place = fault.removesuffix("!").partition(":")
        marker = run / f"{fault}.done"
        if place in (at, "*") and (fault.endswith("!") or not marker.exists()):
            marker.touch()
            names.add(name)
    return names


class Faulty(trainer.LTDv2Trainer):
    """Falls over where it is told to."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        number = self.train_loader.batch_number
        now = due(f"{self.epoch}:{number}")
        if "kill" in now:
            os.kill(os.getpid(), signal.SIGKILL)
        if "freeze" in now:
            os.kill(os.getpid(), signal.SIGSTOP)
        if "raise" in now:
            raise ValueError("a fault in the program")
        if "slow" in now:
            time.sleep(0.2)
        processed = super().preprocess_batch(batch)
        if "nan" in now:
            processed["img"][:] = torch.nan
        return processed

    def _on_batch_end(self) -> None:
        step = {
            "rank": rank,
            "epoch": self.epoch,
            "batch": self.train_loader.batch_number,
            "images": self._images,
            "losses": [float(v) for v in self.loss_items.values()],
        }
        with (run / "trace.jsonl").open("a") as file:
            file.write(json.dumps(step) + "\n")
        super()._on_batch_end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.LTDv2Trainer = Faulty  # type: ignore[misc]
    sys.exit(worker.main(run))
