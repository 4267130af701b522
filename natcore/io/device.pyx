"""Driver: the Python object that owns a Device."""


cdef class Driver:
    """The frames of one interface, open until `close`: base class of the drivers, opens nothing itself."""

    @property
    def fd(self) -> int:
        """Readable when frames are available; -1 when closed."""
        return -1 if self.device == NULL else self.device.fd

    def counters(self) -> dict[str, int]:
        """Cumulative: received, truncated, ring_drops (ring full), sent, send_dropped, send_errors."""
        return {}

    def close(self) -> None:
        """Idempotent; the counters stay."""
