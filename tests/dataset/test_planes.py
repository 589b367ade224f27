"""Channels that lie in one piece each, through the canvas and the letterbox."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.augment import LetterBox
from ultralytics.utils.instance import Instances

from toolkit.dataset.grey import GreyLetterBox
from toolkit.dataset.planes import Layers, channels_of, new_canvas

sides = st.integers(1, 90)


@given(st.integers(1, 4), sides, sides)
def test_each_channel_of_a_canvas_lies_in_one_piece(channels: int, height: int, width: int) -> None:
    canvas = new_canvas((height, width, channels))
    assert canvas.shape == (height, width, channels)
    assert all(channel.flags.c_contiguous for channel in channels_of(canvas))
    assert canvas.transpose(2, 0, 1).flags.c_contiguous
    assert channels_of(new_canvas((height, width)))[0].shape == (height, width)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.tuples(sides, sides),
    st.tuples(sides, sides),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_a_letterbox_is_ultralytics_bit_for_bit(
    channels: int, size: tuple[int, int], wanted: tuple[int, int], scaleup: bool, center: bool, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)
    plain = LetterBox(new_shape=wanted, scaleup=scaleup, center=center)

    def label(pixels: Any) -> dict[str, Any]:
        boxes = np.array([[1, 2, 3, 4]], np.float32)
        instances = Instances(boxes, bbox_format="xyxy", normalized=False)
        return {"img": pixels, "instances": instances, "cls": np.zeros((1, 1)), "ratio_pad": (1.0, 1.0)}

    planes = new_canvas(image.shape)
    planes[...] = image
    for pixels in (image, planes):
        ours, theirs = GreyLetterBox(plain)(label(pixels)), plain(label(image))
        np.testing.assert_array_equal(ours["img"], theirs["img"])
        assert ours["img"].transpose(2, 0, 1).flags.c_contiguous
        np.testing.assert_array_equal(ours["instances"].bboxes, theirs["instances"].bboxes)
        assert ours["resized_shape"] == theirs["resized_shape"]
        assert ours["ratio_pad"] == theirs["ratio_pad"]


def test_layers_are_their_channels_and_a_copy_of_them_is_an_array_that_may_be_written() -> None:
    planes = list(np.random.default_rng(0).integers(0, 256, (3, 5, 7), np.uint8))
    before = [plane.copy() for plane in planes]
    layers = Layers(planes)
    assert layers.shape == (5, 7, 3)
    assert all(one is other for one, other in zip(channels_of(layers), planes, strict=True))
    copied = layers.copy()
    for channel, plane in zip(channels_of(copied), planes, strict=True):
        assert channel.flags.c_contiguous
        np.testing.assert_array_equal(channel, plane)
    copied[...] = 0
    np.testing.assert_array_equal(planes, before)
