"""`python -m artifactcache` is the command `artifactcache`."""

import sys

from artifactcache.command import main

if __name__ == "__main__":
    sys.exit(main())
