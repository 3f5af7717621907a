"""The tests: the client and the daemon through their public surface, and each room of the daemon by itself."""

import os

# The tests start processes as other users. For that Python forks while channels of gRPC are open, and gRPC's own fork
# handlers, on by default in the release that the tests run with, may then wait for ever, where no signal reaches them.
# This is read when grpc is imported: before any module of the tests. What they start has an environment of its own.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
