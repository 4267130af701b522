"""Driver: the Python object that owns a Device."""


cdef class Driver:
    """One interface's frames, open until `close`. The base of the drivers; it opens nothing itself."""

    @property
    def fd(self) -> int:
        """Readable when frames wait; -1 when closed."""
        return -1 if self.device == NULL else self.device.fd

    def counters(self) -> dict[str, int]:
        """Cumulative: received, truncated, ring_drops (the kernel found no room), sent, send_dropped, send_errors."""
        return {}

    def close(self) -> None:
        """Idempotent; the counters stay."""
