"""Convolutions as Triton kernels: implicit GEMM, depthwise and small groups, in fp32, fp16 and bf16."""

from ...environment import amd_architectures, prepare
from .route import TritonRoute

__all__ = ["TritonRoute", "amd_architectures", "prepare"]
