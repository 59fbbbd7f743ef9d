"""Running models: sessions, comparison of two models, timing."""

from graphopt.runtime.session import InputInfo, Session, evaluate

__all__ = ["InputInfo", "Session", "evaluate"]
