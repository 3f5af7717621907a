"""Each room of the daemon by itself, in this process: no server, no mount, no other user."""
