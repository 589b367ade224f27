"""The life of an RTIOD competition entry: prepare, train, evaluate, predict, submit."""

__version__ = "0.1.0"
