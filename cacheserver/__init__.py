"""cacheserver: the daemon that gives every job on a host its MLflow artifacts in milliseconds."""

__version__ = "0.1.0"
