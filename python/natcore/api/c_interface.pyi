"""The table of functions that natcore.h calls."""

ABI_VERSION: int
C_API: object
