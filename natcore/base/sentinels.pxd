"""What a number of 32 bits says where there is none."""

cdef enum:
    NONE = 0xFFFFFFFF           # no slot, no element, no port, no index: a search found nothing, a list ends
    NO_LIMIT = 0xFFFFFFFF       # of a count, or of a rate
