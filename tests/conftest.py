"""What holds in every test: hypothesis asserts nothing about wall time, and Ultralytics keeps to itself."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

settings.register_profile(
    "project",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("project")
