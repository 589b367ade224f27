"""Two sets of predictions side by side, with an interval that tells a gain from noise.

Frames of one clip show the same scene a second apart, so they are no independent evidence. The bootstrap
therefore draws whole clips, within each month (the months are the challenge's, not a sample of months).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from submission import Detections
from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.evaluation.context import Context
from toolkit.evaluation.engines import RECALL_THRESHOLDS, Engine, Problem
from toolkit.evaluation.matching import Matches, match
from toolkit.evaluation.scoring import Scores, align, is_number, score
from toolkit.evaluation.truth import GroundTruth
from toolkit.vocabulary import LTDV2

RESAMPLES = 1000
CONFIDENCE = 0.95

POSSIBLE = {"global_map_con": (0.0, math.inf), "global_map_bal": (-math.inf, 1.0)}
"""Least and most of the values that are no average precision, which lies from 0 to 1."""

SCORE_BINS = 2000
"""Scores are binned for the bootstrap, at quantiles of the detections that found something; what that does to
the data itself is known and subtracted."""


@dataclass(frozen=True)
class Difference:
    """One number of two sets of predictions.

    Attributes:
        a, b: the exact values; -1 where there is no ground truth.
        low, high: interval of ``b - a``; NaN where it is not resampled.
        wins: share of the resamples in which B is above A.
    """

    a: float
    b: float
    low: float = float("nan")
    high: float = float("nan")
    wins: float = float("nan")

    @property
    def change(self) -> float:
        """``b - a``; NaN where one of them is undecided."""
        return self.b - self.a if is_number(self.a) and is_number(self.b) else float("nan")

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out no change at all."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`.

    Attributes:
        differences: ``global_map_bal``, ``global_map_50``, ``global_map_con``, then ``<month>_map_50``
            (where there are several) and ``<class>_map_50`` (over all images) -> difference.
        classes: months, where there are several, and "all" -> label -> AP@0.5 of A and of B, no interval.
        clips: number of clips that were resampled.
        resamples: number of resamples.
        names: label -> name of the class.
        by: what the months are; another word for the parts of other data than LTDv2.
    """

    differences: Mapping[str, Difference]
    classes: Mapping[str, Mapping[int, Difference]]
    clips: int
    resamples: int
    names: Mapping[int, str]
    by: str = LTDV2.by

    def as_dict(self) -> dict[str, Any]:
        """For JSON: null where a number is not decided."""

        def plain(difference: Difference) -> dict[str, float | None]:
            values = {**asdict(difference), "change": difference.change}
            undecided = {key for key in ("a", "b") if not is_number(values[key])}
            return {
                key: None if key in undecided or math.isnan(value) else value for key, value in values.items()
            }

        return {
            "differences": {name: plain(d) for name, d in self.differences.items()},
            "classes": {
                month: {self.names[label]: plain(d) for label, d in row.items()}
                for month, row in self.classes.items()
            },
            "clips": self.clips,
            "resamples": self.resamples,
        }


def compare(
    truth: GroundTruth,
    a: Detections,
    b: Detections,
    context: Context,
    engine: Engine = "auto",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two sets of predictions of the same images.

    Args:
        truth: ground truth.
        a, b: predictions; images that one lacks count as empty for it.
        context: which clip each image of the truth is of.
        engine: see :func:`toolkit.evaluation.scoring.score`; the exact values come from it.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ToolkitError: there are fewer than two clips.
    """
    clips, clip = np.unique(context.clips, return_inverse=True)
    if len(clips) < 2:
        raise ToolkitError("one clip is no sample", found=f"{len(clips)} clip", expected="at least two")
    both = console.track((a, b), "scoring", unit="sets")
    scores = [score(truth, found, engine) for found in both]
    aligned = [align(truth, d) for d in (a, b)]
    month = _month_of(aligned[0])
    weights = _resample(clip, month, len(clips), resamples, np.random.default_rng(seed))
    weights = np.vstack([np.ones_like(weights[:1]), weights])
    steps = len(aligned) * len(aligned[0].classes)
    with console.progress("resampling clips", steps, "classes") as advance:
        sampled = [_bootstrap(match(each), clip, month, len(clips), weights, advance) for each in aligned]
    exact = [_values(s) for s in scores]
    differences = {
        name: _difference(exact[0][name], exact[1][name], sampled[0].get(name), sampled[1].get(name))
        for name in exact[0]
    }
    sets = [{**s.compared, "all": s.overall} for s in scores]
    classes = {
        name: {
            label: Difference(*((s[name].map_50_per_class or {}).get(label, -1.0) for s in sets))
            for label in scores[0].classes
        }
        for name in sets[0]
    }
    return Comparison(differences, classes, len(clips), resamples, scores[0].classes, scores[0].by)


def intervals(
    truth: GroundTruth,
    found: Detections,
    context: Context,
    resamples: int = RESAMPLES,
    seed: int = 0,
    engine: Engine = "auto",
) -> dict[str, tuple[float, float]]:
    """The interval of every value of :class:`Comparison` for one set of predictions, by resampled clips.

    Values that are not decided have none. An end lies where the value itself can lie. Arguments and errors
    are those of :func:`compare`.
    """
    clips, clip = np.unique(context.clips, return_inverse=True)
    if len(clips) < 2:
        raise ToolkitError("one clip is no sample", found=f"{len(clips)} clip", expected="at least two")
    aligned = align(truth, found)
    month = _month_of(aligned)
    weights = _resample(clip, month, len(clips), resamples, np.random.default_rng(seed))
    weights = np.vstack([np.ones_like(weights[:1]), weights])
    sampled = _bootstrap(match(aligned), clip, month, len(clips), weights)
    between = {}
    for name, value in _values(score(truth, found, engine)).items():
        drawn = sampled.get(name, np.full(1, np.nan))
        drawn = drawn[1:] + (value - drawn[0])  # as for a difference: what binning alone does is taken out
        drawn = drawn[np.isfinite(drawn)]
        if is_number(value) and len(drawn):
            tail = 50 * (1 - CONFIDENCE)
            low, high = np.percentile(drawn, [tail, 100 - tail]).tolist()
            least, most = POSSIBLE.get(name, (0.0, 1.0))
            between[name] = min(max(low, least), most), min(max(high, least), most)
    return between


def _values(scores: Scores) -> dict[str, float]:
    values = {
        "global_map_bal": scores.balanced,
        "global_map_50": scores.overall.map_50,
        "global_map_con": scores.consistency,
    }
    values |= {f"{name}_map_50": summary.map_50 for name, summary in scores.compared.items()}
    per_class = scores.overall.map_50_per_class or {}
    return values | {f"{name}_map_50": per_class.get(label, -1.0) for label, name in scores.classes.items()}


def _difference(
    a: float, b: float, of_a: npt.NDArray[np.float64] | None, of_b: npt.NDArray[np.float64] | None
) -> Difference:
    if of_a is None or of_b is None or not (is_number(a) and is_number(b)):
        return Difference(a, b)
    drawn = of_b - of_a
    # The first sample is the data itself: what binning alone does to the difference is taken out.
    drawn = drawn[1:] + (b - a - drawn[0])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Difference(a, b)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail]).tolist()
    wins = float(np.mean(drawn > 0) + np.mean(drawn == 0) / 2)
    return Difference(a, b, low, high, wins)


def _month_of(problem: Problem) -> npt.NDArray[np.int64]:
    """(images,) number of each image's month in the order of ``problem.months``, -1 for none."""
    month = np.full(problem.images, -1, np.int64)
    for number, mask in enumerate(problem.months.values()):
        month[mask] = number
    return month


def _resample(
    clip: npt.NDArray[np.int64],
    month: npt.NDArray[np.int64],
    clips: int,
    resamples: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """(resamples, clips) how often each clip is drawn, as many as there are, within its month."""
    home = np.full(clips, -1, np.int64)
    home[clip] = month
    weights = np.zeros((resamples, clips), np.float32)
    for number in np.unique(home):
        members = np.flatnonzero(home == number)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), share, size=resamples)
    return weights


def _bootstrap(
    matches: Matches,
    clip: npt.NDArray[np.int64],
    month: npt.NDArray[np.int64],
    clips: int,
    weights: npt.NDArray[np.float32],
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Every value of :func:`_values` in every resample, (resamples,) each; NaN where there is no truth.

    ``advance`` is called after each class.
    """
    p = matches.problem
    home = np.full(clips, -1, np.int64)
    home[clip] = month
    names, none = list(p.months), np.empty(0)
    by_set: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in ["global", *names]}
    result: dict[str, npt.NDArray[np.float64]] = {}
    for label, name in p.classes.items():
        rows = matches.counted & (p.label == label)
        hits = (matches.found >= 0) & rows
        levels = np.unique(np.quantile(p.scores[hits], np.linspace(0, 1, SCORE_BINS))) if hits.any() else none
        true = np.bincount(clip[p.truth_image[p.truth_label == label]], minlength=clips).astype(np.float32)

        found, false = (
            _histogram(clip[p.image[mask]], clips, p.scores[mask], levels) for mask in (hits, rows & ~hits)
        )
        for where, members in {
            "global": np.arange(clips),
            **{m: np.flatnonzero(home == n) for n, m in enumerate(names)},
        }.items():
            w = weights[:, members]
            ap = _weighted_ap(w @ found[members], w @ false[members], w @ true[members])
            by_set[where].append(ap)
            if where == "global":
                result[f"{name}_map_50"] = ap
        advance(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {where: _nanmean(np.array(values)) for where, values in by_set.items()}
        monthly = np.array([means[m] for m in names])
        monthly = monthly[np.isfinite(monthly).any(axis=1)]
        if len(monthly) == len(names) > 1:
            result["global_map_con"] = np.std(monthly, axis=0, ddof=1) / np.mean(monthly, axis=0)
            result["global_map_bal"] = (1 - result["global_map_con"]) * means["global"]
    result["global_map_50"] = means["global"]
    return result | {f"{m}_map_50": means[m] for m in names}


def _histogram(
    clip: npt.NDArray[np.int64], clips: int, scores: npt.NDArray[np.float64], levels: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """(clips, levels) how many scores lie in each bin, the highest bin first.

    ``levels`` ascends from the lowest score of a hit: what lies below it can change nothing and is left out.
    """
    bins = len(levels) - np.searchsorted(levels, scores, side="right")
    kept = bins < len(levels)
    flat = clip[kept] * len(levels) + bins[kept]
    return np.bincount(flat, minlength=clips * len(levels)).reshape(clips, -1).astype(np.float32)


def _nanmean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    known = np.isfinite(values)
    total: npt.NDArray[np.float64] = np.where(known, values, 0).sum(axis=0)
    return total / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def _weighted_ap(
    found: npt.NDArray[np.float32], false: npt.NDArray[np.float32], true: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Average precision of each resample from (resamples, bins) hits and false alarms, (resamples,) boxes."""
    hits, misses = np.cumsum(found, axis=1, dtype=np.float64), np.cumsum(false, axis=1, dtype=np.float64)
    precision = hits / np.maximum(hits + misses, 1e-9)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(true[:, None], 1e-9)
    ap = np.full(len(true), np.nan)
    for i in np.flatnonzero(true > 0).tolist():
        at = np.searchsorted(recall[i], RECALL_THRESHOLDS)
        ap[i] = np.append(precision[i], 0.0)[at].mean()
    return ap
