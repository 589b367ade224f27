"""A fixed camera over a quay, drawn: background, weather, objects on tracks, and their thermal picture."""

from toolkit.dataset.sample.harbour.clips import choose_frames
from toolkit.dataset.sample.harbour.thermal import draw
from toolkit.dataset.sample.harbour.weather import meta

__all__ = ["choose_frames", "draw", "meta"]
