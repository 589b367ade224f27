"""LTDv2 on disk: annotations, frames, the index over both, and what Ultralytics sees of them."""
