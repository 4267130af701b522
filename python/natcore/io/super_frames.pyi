"""IPv4 BIG TCP, cut; nothing of it is for Python."""
