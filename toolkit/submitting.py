"""From predictions to what is handed in: which ids a submission must have, and the checked detections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from submission import Detections, templates
from submission.templates import PHASES, Phase
from submission.validate import check_ids, check_values
from toolkit.errors import ToolkitError


@dataclass(frozen=True)
class Submission:
    """Detections that the organisers accept.

    Attributes:
        detections: one entry for every expected id, rounded.
        against: what the ids were checked against, in words.
        filled: expected ids that had no entry and got empty lists.
        rehearsal: the data is a sample: all ids that it lacks are among ``filled``.
    """

    detections: Detections
    against: str
    filled: int
    rehearsal: bool


def prepare(
    detections: Detections,
    *,
    source: str,
    phase: Phase | None = None,
    template: Path | None = None,
    data_template: Path | None = None,
    allow_missing: bool = False,
) -> Submission:
    """Check detections against the ids of a phase and round them.

    A data folder that holds only a part of the phase's images (``toolkit dataset sample``) cannot yield
    all predictions. All images that it has must then be there; the others get empty lists, so that the
    zip is one that the organisers accept, and ``rehearsal`` says that its score will mean nothing.

    Args:
        detections: what was predicted, in any order.
        source: names them in messages.
        phase: None finds the phase whose template has all ids.
        template: ids to check against instead of a phase's: a template or a COCO file.
        data_template: the annotation file of the data that was predicted, if known.
        allow_missing: give ids without an entry empty lists instead of refusing.

    Raises:
        SubmissionError: values or ids that the organisers would refuse.
        ToolkitError: no phase was named and the ids belong to none.
    """
    check_values(detections, source)
    rehearsal = False
    if template is not None:
        expected, against = templates.read(template), str(template)
    else:
        phase = phase or guess_phase(detections.image_ids, source)
        expected, against = templates.template(phase), f"the {phase} template"
        if data_template is not None and data_template.is_file():
            held = templates.read(data_template)
            rehearsal = len(held) < len(expected) and bool(np.isin(held, expected).all())
            if rehearsal:
                check_ids(detections, held, allow_missing=allow_missing, source=source)
    whole = check_ids(detections, expected, allow_missing=allow_missing or rehearsal, source=source)
    filled = int((~np.isin(expected, detections.image_ids)).sum())
    return Submission(whole.rounded(), against, filled, rehearsal)


def guess_phase(image_ids: npt.NDArray[np.int64], source: str) -> Phase:
    """The phase whose template contains all of these ids.

    Raises:
        ToolkitError: none does.
    """
    shares = {phase: float(np.isin(image_ids, templates.template(phase)).mean()) for phase in PHASES}
    for phase, share in shares.items():
        if share == 1:
            return phase
    raise ToolkitError(
        f"{source} belongs to no phase",
        found=", ".join(f"{share:.1%} of its ids in {phase}" for phase, share in shares.items()),
        expected="ids of one phase",
        fix="name it to see the offending ids: --phase testing",
    )
