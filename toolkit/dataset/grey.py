"""The last steps of a sample, made for channels of grey: brightness, padding, and a network's tensor."""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from ultralytics.data.augment import Compose, Format, LetterBox, RandomHSV

from toolkit.dataset.mosaic import Picture
from toolkit.dataset.planes import channels_of, new_canvas

Array = npt.NDArray[Any]


class Brightness:
    """Multiply the grey values by a factor from 1 - gain to 1 + gain: the V of Ultralytics' HSV jitter.

    Args:
        gain: of the factor.
        in_place: whether the image is nobody else's.
    """

    def __init__(self, gain: float, in_place: bool) -> None:
        self.gain, self.in_place = gain, in_place

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        if self.gain:
            factor = 1 + self.gain * random.uniform(-1, 1)
            if (picture := labels.get(Picture.KEY)) is not None:
                picture.factor = factor
                return labels
            planes = labels["img"].transpose(2, 0, 1)
            flat = np.ascontiguousarray(planes).reshape(-1, planes.shape[2])
            scaled = cv2.convertScaleAbs(flat, dst=flat if self.in_place else None, alpha=factor)
            labels["img"] = scaled.reshape(planes.shape).transpose(1, 2, 0)
        return labels


class GreyLetterBox(LetterBox):
    """Ultralytics' letterbox, channel by channel, so that each stays in one piece of memory."""

    def __init__(self, step: LetterBox) -> None:
        self.__dict__.update(step.__dict__)

    def apply_image(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        image, (width, height) = labels["img"], params["new_unpad"]
        top, left = params["top"], params["left"]
        padded = new_canvas((top + height + params["bottom"], left + width + params["right"], image.shape[2]))
        padded[...] = self.padding_value
        inside = padded[top : top + height, left : left + width]
        for channel, place in zip(channels_of(image), channels_of(inside), strict=True):
            if channel.shape != place.shape:
                place[...] = cv2.resize(channel, (width, height), interpolation=self.interpolation)
            else:
                place[...] = channel
        labels["img"], labels["resized_shape"] = padded, params["new_shape"]
        return labels


class GreyFormat(Format):
    """Ultralytics' formatting, without its slow copy and its division of tensors of a few numbers.

    Args:
        step: Ultralytics'.
        in_place: whether the image is nobody else's.
    """

    def __init__(self, step: Format, in_place: bool = False) -> None:
        self.__dict__.update(step.__dict__)
        self.in_place = in_place
        self.normalize = False  # get_params does it

    def get_params(self, labels: dict[str, Any]) -> dict[str, Any]:
        params: dict[str, Any] = super().get_params(labels)
        params["instances"].normalize(params["w"], params["h"])
        return params

    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        if (picture := labels.pop(Picture.KEY, None)) is not None:
            labels["img"] = picture.rendered(labels["img"])
        formatted: dict[str, Any] = super().apply_image(labels, params)
        return formatted

    def _format_img(self, img: Array) -> torch.Tensor:
        if img.strides[1] < 0:
            # A mirrored view: OpenCV mirrors 640 x 640 pixels in 0.01 ms, where numpy's copy takes 0.22 ms.
            planes = img[:, ::-1].transpose(2, 0, 1)
            flat = np.ascontiguousarray(planes).reshape(-1, planes.shape[2])
            img = cv2.flip(flat, 1, flat if self.in_place else None).reshape(planes.shape).transpose(1, 2, 0)
        if img.shape[2] > 1:  # Ultralytics would exchange the first and the last of three, as of colours
            return torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)))
        formatted: torch.Tensor = super()._format_img(img)
        return formatted


def for_grey(transforms: Compose, gain: float, *, letterbox: bool, in_place: bool) -> None:
    """Exchange Ultralytics' last steps of a sample for those above.

    Args:
        transforms: of a sample; changed in place.
        gain: of the brightness.
        letterbox: whether its letterbox too.
        in_place: whether an image is nobody else's.
    """
    for i, step in enumerate(transforms.transforms):
        if isinstance(step, RandomHSV):
            transforms.transforms[i] = Brightness(gain, in_place)
        elif isinstance(step, LetterBox) and letterbox:
            transforms.transforms[i] = GreyLetterBox(step)
        elif isinstance(step, Format):
            transforms.transforms[i] = GreyFormat(step, in_place)


def channels_that_differ(images: torch.Tensor) -> int:
    """Of (..., channels, height, width): one where all are the same memory, as of a grey frame thrice."""
    return 1 if images.stride(-3) == 0 else int(images.shape[-3])
