"""The gateway's own ICMP messages; nothing of it is for Python."""
