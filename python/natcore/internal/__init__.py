"""Private helpers that the whole package shares: checks of arguments, files, threads, the machine."""
