"""Small programs in RDNA's assembly, with the directives around them, and their execution."""

from __future__ import annotations

import numpy as np
from amdgcn.counters import Counters
from amdgcn.launch import Kernel, launch, pack_arguments
from amdgcn.memory import Span

HEADER = """
.amdgcn_target "amdgcn-amd-amdhsa--{target}"
kernel:
{body}
.Lfunc_end0:
.amdhsa_kernel kernel
.amdhsa_kernarg_size 16
.amdhsa_user_sgpr_count 2
.amdhsa_user_sgpr_kernarg_segment_ptr 1
.amdhsa_system_sgpr_workgroup_id_x 1
.amdhsa_next_free_vgpr 128
.end_amdhsa_kernel
  .args:
      - .offset: 0
        .size: 8
        .value_kind: global_buffer
      - .offset: 8
        .size: 8
        .value_kind: global_buffer
    .group_segment_fixed_size: 0
"""
# Loads both addresses, and the lane's byte offset into v1.
START = """
s_load_dwordx4 s[4:7], s[0:1], 0x0
v_lshlrev_b32_e32 v1, 2, v0
s_waitcnt lgkmcnt(0)
"""
SOURCE, TARGET = 0x7F0000000000, 0x7F1000000000


def execute(
    body: str,
    target: str = "gfx1010",
    waves: int = 1,
    lds: int = 0,
    groups: int = 1,
    only: list[int] | None = None,
) -> tuple[np.ndarray, Counters]:
    """Run a program on 64 words of input: 64 words of output, and what was counted."""
    lines = "\n".join(f"\t{line}" if not line.endswith(":") else line for line in body.split("\n"))
    kernel = Kernel.from_assembly(HEADER.format(target=target, body=lines))
    source, result = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    arguments = pack_arguments(kernel.program, [("*i32", SOURCE), ("*i32", TARGET)])
    spans = [
        Span(SOURCE, source.view(np.uint8), "source", writable=False),
        Span(TARGET, result.view(np.uint8)),
    ]
    counters = Counters(kernel.steps)
    launch(kernel, (groups, 1, 1), waves, lds, arguments, spans, counters, only)
    return result, counters


def run(body: str, target: str = "gfx1010", waves: int = 1, lds: int = 0, groups: int = 1) -> np.ndarray:
    """The output alone."""
    return execute(body, target, waves, lds, groups)[0]


COPY = f"""{START}
global_load_dword v2, v1, s[4:5]
s_waitcnt vmcnt(0)
v_add_nc_u32_e32 v2, 1, v2
global_store_dword v1, v2, s[6:7]
s_endpgm"""
