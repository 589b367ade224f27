"""What a shell completes beside choices: runs, weights and presets, from names alone, in milliseconds."""

from __future__ import annotations

from pathlib import Path

from toolkit import settings


def runs(incomplete: str) -> list[str]:
    """Names of runs, the newest first."""
    from toolkit import workspace

    folders = [path for path in workspace.current().runs.glob("*") if workspace.is_run(path)]
    folders.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.name for path in folders if path.name.startswith(incomplete)]


def weights(incomplete: str) -> list[str]:
    """``best.pt``, ``last.pt``, runs that have weights, and files and folders that begin so."""
    from toolkit import workspace

    place = workspace.current()
    named = [name for name in ("best.pt", "last.pt") if name.startswith(incomplete)]
    trained = [name for name in runs(incomplete) if (place.runs / name / "weights" / "best.pt").is_file()]
    return [*named, *trained, *_paths(incomplete, (".pt",))]


def predictions(incomplete: str) -> list[str]:
    """:func:`weights`, and files of predictions."""
    return [*weights(incomplete), *_paths(incomplete, (".json",), folders=False)]


def compared(incomplete: str) -> list[str]:
    """Runs, files of predictions, and weights."""
    return [*runs(incomplete), *_paths(incomplete, (".json", ".pt"))]


def found(incomplete: str) -> list[str]:
    """Files of predictions: those of the runs, and files and folders that begin so."""
    return list(dict.fromkeys([*_of_runs("predictions*.json", incomplete), *_paths(incomplete, (".json",))]))


def entered(incomplete: str) -> list[str]:
    """:func:`found`, and archives of predictions."""
    archives = [*_of_runs("*.zip", incomplete), *_paths(incomplete, (".zip",), folders=False)]
    return list(dict.fromkeys([*found(incomplete), *archives]))


def presets(incomplete: str) -> list[str]:
    """Names of presets."""
    return [name for name in settings.presets() if name.startswith(incomplete)]


def _of_runs(pattern: str, incomplete: str) -> list[str]:
    """Files of all runs, as a person in the current folder writes them."""
    from toolkit import workspace

    here, folder = Path.cwd(), workspace.current().runs
    found = sorted([*folder.glob(f"*/{pattern}"), *folder.glob(f"*/{workspace.EVALUATION}/{pattern}")])
    names = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in found]
    return [name for name in names if name.startswith(incomplete)]


def _paths(incomplete: str, suffixes: tuple[str, ...], *, folders: bool = True) -> list[str]:
    folder, _, start = incomplete.rpartition("/")
    base = Path(f"{folder}/") if folder or incomplete.startswith("/") else Path()
    if not base.is_dir():
        return []
    found = [
        path
        for path in base.iterdir()
        if path.name.startswith(start) and (start.startswith(".") or not path.name.startswith("."))
    ]
    kept = [f"{path}/" for path in found if folders and path.is_dir()]
    return sorted(kept + [str(path) for path in found if path.suffix in suffixes and path.is_file()])
