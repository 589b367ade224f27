"""What a training may start from: weights or an architecture."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import ToolkitError, reason


def check_model(model: str) -> str:
    """A checkpoint must be a file: nothing is fetched. A YAML is a file or one of Ultralytics' own."""
    from ultralytics.nn import tasks

    from toolkit.weights import check_architecture, check_detector, read_checkpoint

    path = Path(model)
    try:
        there = path.is_file()
        if there:
            path.open("rb").close()
    except OSError as error:
        raise ToolkitError(
            f"cannot read {model}", found=reason(error), expected="weights or a YAML that this user may read"
        ) from error
    if path.suffix == ".pt":
        if not there:
            raise ToolkitError(
                f"no checkpoint {model}",
                found="no such file (weights are never downloaded on their own)",
                expected="a YOLO checkpoint (.pt) or an architecture (.yaml)",
                fix=f"train from scratch with --model {path.stem}.yaml, or put the file there",
            )
        check_detector(read_checkpoint(path), model)
        return str(path.absolute())
    if path.suffix in (".yaml", ".yml"):
        try:
            described = tasks.yaml_model_load(model)
            _ = described["backbone"]
            check_architecture(described, model if path.is_file() else path.stem)
            return str(path.absolute()) if path.is_file() else model
        except FileNotFoundError:
            pass
        except ToolkitError:
            raise
        except Exception as error:  # Ultralytics raises whatever the content makes it raise
            raise ToolkitError(
                f"{model} describes no model",
                found=f"{type(error).__name__} when it was read",
                expected="backbone and head, as in yolo11n.yaml",
            ) from error
    raise ToolkitError(
        f"no model {model}", expected="a checkpoint (.pt), a file .yaml, or one such as yolo11n.yaml"
    )
