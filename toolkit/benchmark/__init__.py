"""Measuring convolutions and training steps on this machine."""

import os

# The profiler that counts memory on the CPU reads this when torch is loaded; it has nothing to say.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
