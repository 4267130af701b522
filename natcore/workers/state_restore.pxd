"""Takes the rows of a saved state."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.tables.mappings cimport Mapping
from natcore.tables.ports cimport Ports
from natcore.workers.state_rows cimport Damage, Later, Rows
from natcore.workers.worker cimport Worker

cdef void key_set(Worker* first, uint64_t low, uint64_t high) noexcept nogil
cdef bint has_address(const Ports* ports, uint32_t address) noexcept nogil
cdef const char* entry_is_wrong(const Ports* ports, const uint8_t* entries, uint32_t entry_count,
                                const Mapping* mapping) noexcept nogil
cdef const char* use_port(Worker* worker, uint32_t number) noexcept nogil
cdef bint take_gateway(Worker* first, const Rows* sections, const Later* later, bint seeded, Damage* damage) noexcept nogil
cdef bint take_worker(Worker* worker, const Rows* sections, const uint8_t* entries, uint32_t entry_count, const Later* later,
                      Damage* damage) noexcept nogil
cdef bint take_held_down(Worker* first, const Rows* sections, const Later* later, Damage* damage) noexcept nogil
cdef bint take_rows(Worker* first, const Rows* section, Damage* damage) noexcept nogil
