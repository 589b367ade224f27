"""Writing a file so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from submission.errors import SubmissionError, remedy


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file beside ``path``, flush it to the disk and rename it.

    Raises:
        SubmissionError: the folder cannot be written or the disk is full; ``path`` is as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0o022)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise SubmissionError(
            f"cannot write {path}",
            found=error.strerror or str(error),
            expected="a writable folder with space left",
            fix=remedy(error),
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
