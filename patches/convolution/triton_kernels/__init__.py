"""Convolutions as Triton kernels: implicit GEMM, depthwise and small groups; Winograd in fp32."""

from ...environment import amd_architectures, prepare
from .route import TritonRoute, WinogradRoute

__all__ = ["TritonRoute", "WinogradRoute", "amd_architectures", "prepare"]
