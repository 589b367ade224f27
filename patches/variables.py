"""The environment variables of this package that overrule a program's own settings. Imports no torch.

Most have an older name, from the time when this package belonged to one toolkit alone. The older names are
read here and nowhere else; the newer one counts where both are set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple


class Variable(NamedTuple):
    """The name of a variable, and the older one that still works; "" where there is none."""

    name: str
    older: str = ""

    def read(self) -> Setting | None:
        """What the environment says; None where it says nothing."""
        for name in filter(None, self):
            value = os.environ.get(name)
            if value:
                return Setting(name, value, "" if name == self.name else f" (its name is {self.name} now)")
        return None

    def choose(self, what: str, wanted: str, choices: Sequence[str]) -> str:
        """One of some choices: what the environment says, else what is wanted.

        Args:
            what: is set, for the message.
            wanted: by the program.
            choices: that there are.

        Raises:
            ValueError: it is none of them.
        """
        forced = self.read()
        found = forced.value if forced else wanted
        if found not in choices:
            named = f"{forced.name}={found}" if forced else f"{what} {wanted!r}"
            raise ValueError(f"{named}: expected one of {', '.join(choices)}")
        return found


class Setting(NamedTuple):
    """The variable that was found, its value, and what to say of its name."""

    name: str
    value: str
    advice: str


ROUTE = Variable("CONVROUTES_ROUTE", "TOOLKIT_CONV_ROUTE")
"""Overrules the route of every ``enable``."""

NORMALIZATION = Variable("CONVROUTES_NORMALIZATION", "TOOLKIT_NORM_ROUTE")
"""Overrules the normalization of every ``enable``."""

VENDOR = Variable("CONVROUTES_VENDOR")
"""Overrules the vendor of every ``enable``."""

GRAPH = Variable("CONVROUTES_GRAPH")
"""Says whether ``settle_graph`` may choose CUDA graphs."""

RECOMPUTE = Variable("CONVROUTES_RECOMPUTE")
"""Says whether a convolution's backward pass computes the output of a fused batch norm again."""

PLAN = Variable("CONVROUTES_PLAN", "TOOLKIT_CONV_PLAN")
"""Names the file of the plan, or the folder for plans."""

NORMALIZATIONS = ("auto", "off", "torch", "triton")
"""The best that is trusted, PyTorch as it comes, PyTorch's kernels in one operation, fused kernels."""

VENDORS = ("auto", "off", "on")
"""Where it is known to work and passed its self-tests, never, or wherever PyTorch wants it."""

GRAPHS = ("auto", "off")
"""Where they are quicker, or never."""

RECOMPUTES = ("auto", "on", "off")
"""On cards with little memory, wherever batch norms are fused, or never."""

KERNELS = (*ROUTE, *NORMALIZATION, VENDOR.name, GRAPH.name, RECOMPUTE.name)
"""The names, old and new, of what chooses the kernels that compute."""
