"""One training run, from presets to weights."""
