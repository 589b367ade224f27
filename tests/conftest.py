"""What holds in every test: hypothesis asserts nothing about wall time, and Ultralytics keeps to itself."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from toolkit.offline import keep_ultralytics_offline

keep_ultralytics_offline()

settings.register_profile(
    "project",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("project")
