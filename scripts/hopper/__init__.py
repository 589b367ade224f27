"""What a Triton kernel occupies on an NVIDIA H100, read from its machine code; for ``rank_tiles.py``."""
