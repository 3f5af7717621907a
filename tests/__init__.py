"""The tests: the client and the daemon through their public surface, and each room of the daemon by itself."""
