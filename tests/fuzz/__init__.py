"""What nobody would send, made from a seed: for both sockets, in a process of a user whom the daemon does not trust."""
