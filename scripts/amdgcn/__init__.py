"""AMD's machine code for RDNA, executed on a CPU: see docs/amd.md.

The assembly that Triton writes is decoded once (``assembly``, ``machine``) and then executed for many waves
at a time in NumPy (``team``, ``vector``, ``scalar``, ``memory``, ``lds``). What hardware punishes silently
is an error here (``faults``, ``waits``).
"""
