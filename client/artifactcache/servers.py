"""When two tracking URIs are the same server: the daemon serves MLflow's calls only where it has MLflow's own."""

from __future__ import annotations

from urllib.parse import urlsplit


def server(uri: str) -> str | None:
    """Return a tracking URI in one form, without credentials; None where it means something else in another folder."""
    parts = urlsplit(uri)
    scheme, host = parts.scheme.lower(), parts.netloc.rpartition("@")[2].lower()
    if scheme in ("http", "https"):
        host = host.removesuffix(":80" if scheme == "http" else ":443")
    elif scheme in ("", "file", "sqlite") and not parts.path.startswith("//" if scheme == "sqlite" else "/"):
        return None
    return f"{scheme}://{host}{parts.path.rstrip('/')}"
