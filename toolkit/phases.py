"""The lists of ids that phases expect, and the phase that some ids are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from submission import templates
from submission.competitions import PHASES
from toolkit.errors import ToolkitError
from toolkit.ltdv2 import SPLITS


@dataclass(frozen=True)
class Template:
    """The ids that a phase expects.

    Attributes:
        ids: (images,) int64, each once.
        words: what it is, for a message.
    """

    ids: npt.NDArray[np.int64]
    words: str


def shipped() -> dict[str, Template]:
    """The organisers' templates of all phases that are known, as they are shipped."""
    return {phase: Template(templates.template(phase), f"the {phase} template") for phase in PHASES}


def refuse_another_phase(
    image_ids: npt.NDArray[np.int64], wanted: Template, source: str, known: Mapping[str, Template]
) -> None:
    """Say which phase predictions are of when none of their ids is expected and a phase has them all."""
    if not len(image_ids) or np.isin(image_ids, wanted.ids).any():
        return
    for phase, split in SPLITS.items():
        if np.isin(image_ids, known[phase].ids).all():
            raise ToolkitError(
                f"{source} is of another split",
                found=f"{len(image_ids):,} ids of the {phase} phase (split {split})",
                expected=f"ids of {wanted.words}",
                fix=f"hand it in with --phase {phase}, or predict the split that is wanted",
            )


def guess_phase(
    image_ids: npt.NDArray[np.int64], source: str, known: Mapping[str, Template] | None = None
) -> str:
    """The phase whose template contains all of these ids; ``known`` as :func:`prepare` takes it.

    Raises:
        ToolkitError: none does, or there are no ids.
    """
    if not len(image_ids):
        raise ToolkitError(f"{source} has no images", expected="predictions of at least one")
    wanted = known or shipped()
    shares = {phase: float(np.isin(image_ids, each.ids).mean()) for phase, each in wanted.items()}
    for phase, share in shares.items():
        if share == 1:
            return phase
    raise ToolkitError(
        f"{source} belongs to no phase",
        found=", ".join(f"{share:.1%} of its ids in {phase}" for phase, share in shares.items()),
        expected="ids of one phase",
        fix="name it to see the offending ids: --phase testing",
    )
