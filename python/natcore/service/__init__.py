"""`natcore run`: a gateway of a configuration file, as a service."""
