"""The oracle: a NAT in plain Python, written for a reader who wants to learn from it what natcore has to do."""
