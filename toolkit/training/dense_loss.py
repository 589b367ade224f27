"""Ultralytics' loss of a detector, computed with shapes that do not follow the boxes of a batch.

Ultralytics looks up which pairs of a true box and an anchor are candidates, and which anchors have a box in
the end, and computes for those alone. The host has to wait for the card to learn how many they are, so no
CUDA graph can hold it. Here each pair is computed, and as many anchors as could have a box, and what is none
counts nothing. The numbers of those that count come about as there; only the sums of the losses that are
shown add more zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.loss import BboxLoss, E2ELoss, v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh
from ultralytics.utils.tal import TaskAlignedAssigner, bbox2dist, make_anchors

BOXES = 3
"""An image, about LTDv2's mean, where some have to be made up."""

LEAST = 8
"""Places for boxes an image."""

ROW = 5
"""Numbers of a box: class; centre, width and height in parts of the image."""


def boxes(images: int) -> dict[str, Tensor]:
    """Boxes of so many images as Ultralytics' loss takes them: :data:`BOXES` an image, somewhere in it."""
    return {
        "cls": torch.zeros(images * BOXES, 1),
        "bboxes": torch.rand(images * BOXES, 4) * 0.3 + 0.2,
        "batch_idx": torch.arange(images).repeat_interleave(BOXES).float(),
    }


def places(batch: Mapping[str, Tensor]) -> int:
    """Places an image that suffice for the boxes of a batch on the host: a power of two."""
    most = int(torch.bincount(batch["batch_idx"].long().view(-1)).max()) if len(batch["batch_idx"]) else 0
    return max(LEAST, 1 << max(most - 1, 0).bit_length())


def padded(batch: Mapping[str, Tensor], count: int) -> Tensor:
    """The boxes of a batch on the host in as many places an image, the rest zero.

    Args:
        batch: with ``batch_idx``, ascending, ``cls`` and ``bboxes``, as Ultralytics' loaders give it.
        count: places (:func:`places`).

    Returns:
        Tensor of (images, count, 5), float32: class, and the box as it is in ``bboxes``.
    """
    images = len(batch["img"])
    found = torch.zeros(images, count, ROW)
    of = batch["batch_idx"].long().view(-1)
    counts = torch.bincount(of, minlength=images)
    first = torch.cumsum(counts, 0) - counts
    rows = torch.cat((batch["cls"].view(-1, 1), batch["bboxes"]), 1).float()
    found[of, torch.arange(len(of)) - first[of]] = rows
    return found


class DenseLoss:
    """The loss of one of Ultralytics' detectors, for boxes that are padded.

    Args:
        criterion: what the detector computes its loss by, of one of the kinds that :meth:`serves` takes.
    """

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion
        self._ends = isinstance(criterion, E2ELoss)
        parts = (criterion.one2many, criterion.one2one) if self._ends else (criterion,)
        self._parts = [_Part(each) for each in parts]
        self.names = tuple(parts[-1].loss_names)

    @staticmethod
    def serves(criterion: Any) -> bool:
        """Whether the criterion is Ultralytics' own, with its own assigner: what others do nobody knows."""
        if type(criterion) is E2ELoss:
            return all(map(DenseLoss.serves, (criterion.one2many, criterion.one2one)))
        return (
            type(criterion) is v8DetectionLoss
            and type(criterion.assigner) is TaskAlignedAssigner
            and type(criterion.bbox_loss) is BboxLoss
        )

    def gains(self) -> list[float]:
        """What the parts of the loss are multiplied by at present; it may change from epoch to epoch."""
        return [self._criterion.o2m, self._criterion.o2o] if self._ends else [1.0]

    def __call__(self, outputs: Any, targets: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch.

        Args:
            outputs: of the detector in training mode.
            targets: of :func:`padded`, on the device.
            gains: :meth:`gains`, on the device, float32.

        Returns:
            The components times the images of the batch, with a gradient, and the components as they are
            shown; both of three float32.
        """
        outputs = self._parts[-1].criterion.parse_output(outputs)
        if not self._ends:
            return self._parts[0](outputs, targets)
        (many, _), (one, shown) = (
            part(outputs[name], targets)
            for part, name in zip(self._parts, ("one2many", "one2one"), strict=True)
        )
        return many * gains[0] + one * gains[1], shown


class _Part:
    """The loss of one head."""

    def __init__(self, criterion: Any) -> None:
        self.criterion = criterion
        self._assigner = _DenseAssigner(criterion.assigner)
        self._known: tuple[Any, ...] = ()

    def __call__(self, outputs: Mapping[str, Any], targets: Tensor) -> tuple[Tensor, Tensor]:
        criterion = self.criterion
        distances = outputs["boxes"].permute(0, 2, 1).contiguous()
        scores = outputs["scores"].permute(0, 2, 1).contiguous()
        anchors, strides, size = self._grid(outputs["feats"], scores.dtype)
        labels, boxes = targets[..., :1], xywh2xyxy(targets[..., 1:] * size)
        real = boxes.sum(2, keepdim=True).gt(0.0).to(boxes.dtype)
        found = criterion.bbox_decode(anchors, distances)
        true, wanted, taken = self._assigner.assign(
            scores.detach().sigmoid(),
            (found.detach() * strides).type(boxes.dtype),
            anchors * strides,
            labels,
            boxes,
            real,
        )
        whole = wanted.sum().clamp(min=1)
        classes = criterion.bce(scores, wanted.to(scores.dtype))
        if getattr(criterion, "class_weights", None) is not None:
            classes = classes * criterion.class_weights
        at = _first(taken, self._assigner.topk * targets.shape[1])
        weight = _rows(wanted, at).sum(-1, keepdim=True) * taken.gather(1, at).unsqueeze(-1)
        anchors, strides = anchors[at], strides[at]
        true = _rows(true, at) / strides
        overlap = _overlap_loss(_rows(found, at), true, weight) / whole
        shape = self._shape_loss(_rows(distances, at), anchors, true, weight, strides, size) / whole
        hyper = criterion.hyp
        loss = torch.stack(
            (
                overlap.float() * hyper.box,
                (classes.sum() / whole).float() * hyper.cls,
                shape.float() * hyper.dfl,
            )
        )
        return loss * len(scores), loss.detach()

    def _grid(self, features: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors and strides by their place, and the images' width, height, width, height in pixels.

        They are made once for features of a kind, since making them copies from the host.
        """
        kind = ([each.shape[2:] for each in features], features[0].dtype, dtype)
        if not self._known or self._known[0] != kind:
            stride = self.criterion.stride
            high, wide = features[0].shape[2:]
            side = torch.tensor((wide, high, wide, high), device=features[0].device, dtype=dtype)
            self._known = (kind, *make_anchors(features, stride, 0.5), side * stride[0])
        anchors, strides, size = self._known[1:]
        return anchors, strides, size

    def _shape_loss(
        self, distances: Tensor, anchors: Tensor, true: Tensor, weight: Tensor, strides: Tensor, size: Tensor
    ) -> Tensor:
        """How far the distances to the sides are off: by their distributions (DFL), or directly (L1)."""
        bins = self.criterion.reg_max
        if bins == 1:
            off = distances * strides / size - bbox2dist(anchors, true) * strides / size
            direct: Tensor = (off.abs().mean(-1, keepdim=True) * weight).sum()
            return direct
        sides = bbox2dist(anchors, true, bins - 1).clamp(0, bins - 1 - 0.01)
        logs = distances.view(*sides.shape, bins).log_softmax(-1)
        # The two bins beside a side share it; Ultralytics gathers them, whose gradient scatters.
        shares = (1 - (torch.arange(bins, device=sides.device) - sides.unsqueeze(-1)).abs()).clamp(min=0)
        shared: Tensor = (-(logs * shares).sum(-1).mean(-1, keepdim=True) * weight).sum()
        return shared


def _first(taken: Tensor, count: int) -> Tensor:
    """Of each image the anchors that have a box, and others up to so many, which suffice: (images, count).

    Each true box takes no more than the assigner's ``topk``.
    """
    return taken.to(torch.uint8).topk(min(count, taken.shape[1]), 1, sorted=False).indices


def _rows(of: Tensor, at: Tensor) -> Tensor:
    """Those of (images, anchors, numbers) at :func:`_first`."""
    images, anchors, numbers = of.shape
    first = torch.arange(images, device=at.device).unsqueeze(1) * anchors
    return of.reshape(-1, numbers).index_select(0, (at + first).view(-1)).view(images, -1, numbers)


def _overlap_loss(found: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """What the boxes that were assigned lack of covering their true ones (CIoU), times the weight, summed."""
    # Elsewhere a box is compared with itself: no gradient, and no number that is none.
    found = torch.where(weight > 0, found, true.to(found.dtype))
    lack: Tensor = ((1.0 - bbox_iou(found, true, xywh=False, CIoU=True)) * weight).sum()
    return lack


class _DenseAssigner(TaskAlignedAssigner):
    """Task-aligned assignment that computes all pairs of true boxes and anchors."""

    def __init__(self, like: TaskAlignedAssigner) -> None:
        self.__dict__.update(copy.copy(like).__dict__)

    @torch.no_grad()
    def assign(
        self, scores: Tensor, found: Tensor, anchors: Tensor, labels: Tensor, boxes: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each anchor the true box, the scores to be learnt, and whether it has one."""
        self.bs, self.n_max_boxes = boxes.shape[:2]
        told = self._forward(scores, found, anchors, labels, boxes, real)
        return told[1], told[2], told[3]

    def get_box_metrics(  # shapes as in Ultralytics: (images, boxes, anchors)
        self, pd_scores: Tensor, pd_bboxes: Tensor, gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Alignment and overlap of all pairs, 0 for those that are no candidates."""
        none = ~mask_gt.bool()
        classes = gt_labels.long().expand(-1, -1, pd_scores.shape[1])
        scores = pd_scores.transpose(1, 2).gather(1, classes)
        overlaps = bbox_iou(gt_bboxes.unsqueeze(2), pd_bboxes.unsqueeze(1), xywh=False, CIoU=True)
        overlaps = overlaps.squeeze(-1).clamp(0)
        align = scores.pow(self.alpha) * overlaps.pow(self.beta)
        return align.masked_fill(none, 0.0), overlaps.masked_fill(none, 0.0)

    def select_candidates_in_gts(
        self, xy_centers: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, eps: float = 1e-9
    ) -> Tensor:
        """Whether an anchor's centre lies in a true box, none of whose sides counts less than a stride."""
        centres, sides = xyxy2xywh(gt_bboxes).split(2, -1)
        sides = sides.masked_fill((sides < self.stride_val) & mask_gt.bool(), self.stride_val)
        low, high = xywh2xyxy(torch.cat((centres, sides), -1)).unsqueeze(2).split(2, -1)
        inside: Tensor = ((xy_centers - low > eps) & (high - xy_centers > eps)).all(-1)
        return inside
