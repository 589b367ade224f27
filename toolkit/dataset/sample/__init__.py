"""A small drawn LTDv2: its layout, names, ids and months, with scenes from a seed.

``harbour`` is a fixed camera over a quay, as LTDv2 has it; ``street`` has few and large objects, which a tiny
model learns within seconds. Nothing in either was recorded by a camera.
"""

from toolkit.dataset.sample.layout import template_ids as _template_ids
from toolkit.dataset.sample.writing import write_sample

__all__ = ["_template_ids", "write_sample"]
