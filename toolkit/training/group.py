"""Ultralytics' detection trainer as one of several processes that share each batch, on CPUs too.

Ultralytics starts its own group, one process a GPU of one machine. Here torchrun has started the processes,
on as many machines as it was told, and each of them reads its part of every batch.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import RANK, WORLD_SIZE

from toolkit.dataset.loader import use_server
from toolkit.errors import ToolkitError
from toolkit.training.sampling import EpochSampler, ResumableLoader
from toolkit.training.telemetry import Telemetry

T = TypeVar("T")


def of_the_first(value: T) -> T:
    """What the first rank has, on all ranks; for ranks that would decide by clocks of their own."""
    if RANK == -1:
        return value
    first: list[Any] = [value if RANK == 0 else None]
    distributed.broadcast_object_list(first, 0)
    return cast(T, first[0])


class GroupTrainer(DetectionTrainer):
    """Ultralytics' trainer with a loader that can enter an epoch anywhere, alone or in a group.

    Args:
        overrides: Ultralytics' training arguments.
        telemetry: what is told about the run.
    """

    model: Any

    def __init__(self, overrides: dict[str, Any], telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.loader_workers = int(overrides.get("workers", 8))
        super().__init__(overrides=overrides)
        if RANK != -1:
            self.world_size = WORLD_SIZE  # over all machines, and on a CPU too

    def get_dataloader(
        self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        """A loader that can enter an epoch anywhere for training, Ultralytics' own for validation."""
        if mode != "train":
            loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
            use_server(loader)
            return loader
        if self.batch_size % WORLD_SIZE:
            raise ToolkitError(
                f"a batch of {self.batch_size} cannot be shared by {WORLD_SIZE} ranks",
                expected=f"a --batch that is a multiple of {WORLD_SIZE}",
            )
        dataset = self.build_dataset(dataset_path, mode, self.batch_size)
        order = EpochSampler(
            len(dataset), self.batch_size, self.args.seed, max(RANK, 0), WORLD_SIZE, dataset.order
        )
        return ResumableLoader(
            dataset,
            order,
            workers=min(self.loader_workers, os.cpu_count() or 1),
            pin_memory=self.device.type == "cuda",
            on_worker_death=partial(self.telemetry.record, "worker died", "loader workers restarted"),
        )

    def close(self) -> None:
        """Stop the loaders' processes."""
        for loader in (getattr(self, "train_loader", None), getattr(self, "test_loader", None)):
            if loader is not None:
                loader.close()

    def _setup_ddp(self) -> None:
        if self.device.type == "cpu":
            # As long as Ultralytics gives NCCL: the first rank scores alone.
            distributed.init_process_group("gloo", timeout=timedelta(hours=3))
        else:
            super()._setup_ddp()

    def _setup_train(self) -> None:
        if self.device.type != "cpu" or RANK == -1:
            super()._setup_train()
            return
        # Ultralytics would give DDP the index of a GPU: it sets up as if alone, and the model is shared here.
        self.world_size = 1
        super()._setup_train()
        self.world_size = WORLD_SIZE
        self.model = DistributedDataParallel(self.model, broadcast_buffers=False)

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Validate on all ranks; on the CPU the loss is that of the first rank's part."""
        if self.device.type != "cpu" or RANK == -1:
            validated: tuple[dict[str, float] | None, float | None] = super().validate()
            return validated
        for buffer in self.ema.ema.buffers():
            distributed.broadcast(buffer, src=0)
        self.world_size = 1  # gloo has no mean, which Ultralytics takes of the losses
        try:
            validated = super().validate()
        finally:
            self.world_size = WORLD_SIZE
        return validated


def agree_on(cursor: tuple[int, int]) -> None:
    """All ranks go on from the same cursor, or none: a shared folder may show one of them an older state.

    Args:
        cursor: epoch and image.

    Raises:
        RuntimeError: they would not; the group is started again.
    """
    if RANK == -1:
        return
    first = [cursor]
    distributed.broadcast_object_list(first, src=0)
    if first[0] != cursor:
        raise RuntimeError(f"rank {RANK} would go on at {cursor} (epoch, image), the first at {first[0]}")
