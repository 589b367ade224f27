"""The life of an RTIOD competition entry: prepare, train, evaluate, predict, submit."""

NAME = "ltdv2-toolkit"
"""The name of the project, and of its folder in the cache."""

__version__ = "0.1.0"
