"""A gateway between network interfaces: drivers, links, the kernel bypass and the threads that move packets."""
