"""What a run is on disk, read by all: its plan, its files, its environment, its health. Needs no PyTorch."""
