"""A web view of Fumehood for operators: jobs, nodes, queues and dead letters."""

from importlib import metadata

__all__ = ["__version__"]

__version__ = metadata.version("fumehood-dashboard")
