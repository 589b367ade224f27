"""Print the folder that PyTorch is imported from and the fingerprint of its files, or fail if there is none.

The first line is a path, the second a comment to Python's ``site``, so that the output serves as a .pth file.
"""

import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path


def fingerprint() -> str:
    """Version of PyTorch, and a digest of its installer's list of files with their hashes."""
    found = importlib.metadata.distribution("torch")
    return f"torch {found.version} {hashlib.sha256((found.read_text('RECORD') or '').encode()).hexdigest()}"


if __name__ == "__main__":
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(1)
    print(Path(spec.origin).parents[1])
    print("#", fingerprint())
