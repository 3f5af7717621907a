"""Whether a store is what its index says, to the last file."""

from __future__ import annotations

from cacheserver import fsck
from tests.rig.daemon import Daemon


def assert_whole(daemon: Daemon) -> None:
    """Stop a daemon: each row has its bytes, each file its row, and nothing is left in staging or quarantine."""
    daemon.stop()
    report = fsck.check(str(daemon.root))
    assert report.sound, report
    assert (report.strays, report.strange, report.stuck, report.quarantined) == (0, (), (), 0), report
    assert daemon.staging() == []
