"""Encodes records as ClickHouse RowBinary: fields little-endian and packed, strings preceded by their length."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.log.journal cimport Record

cdef packed struct Row:         # fields of RECORD, in order
    uint8_t protocol
    uint32_t pri_ip             # IPv4 is encoded as UInt32, DateTime64 as Int64
    uint16_t pri_port
    uint32_t pub_ip
    uint16_t pub_port
    uint32_t nat_ip
    uint16_t nat_port
    uint64_t bytes_from_pub
    uint64_t pkts_from_pub
    uint64_t bytes_from_vpc
    uint64_t pkts_from_vpc
    int64_t start_time          # microseconds since 1970
    int64_t end_time
    uint32_t eip
    uint64_t session
    uint64_t number
    uint8_t kind
    uint16_t flags

ROW_BYTES = sizeof(Row)


cdef inline void fill(Row* row, const Record* record) noexcept nogil:
    row.protocol = record.protocol
    row.pri_ip = record.pri_ip
    row.pri_port = record.pri_port
    row.pub_ip = record.pub_ip
    row.pub_port = record.pub_port
    row.nat_ip = record.nat_ip
    row.nat_port = record.nat_port
    row.bytes_from_pub = record.bytes_from_pub
    row.pkts_from_pub = record.pkts_from_pub
    row.bytes_from_vpc = record.bytes_from_vpc
    row.pkts_from_vpc = record.pkts_from_vpc
    row.start_time = record.start_time
    row.end_time = record.end_time
    row.eip = record.eip
    row.session = record.session
    row.number = record.number
    row.kind = record.kind
    row.flags = record.flags


def encode_rows(const uint8_t[::1] records not None, bytes head not None, bytes tail not None):
    """Encodes rows as RowBinary without the GIL: head, the fields of RECORD, tail for each row.

    records: the bytes of RECORD (n,). head, tail: encoded columns with the same value in every row.
    Raises ValueError if records is not a multiple of a record's length.
    """
    cdef uint64_t count = records.shape[0] // sizeof(Record), row
    cdef const Record* rows = <const Record*>&records[0] if count else NULL
    cdef uint64_t head_bytes = <uint64_t>len(head), tail_bytes = <uint64_t>len(tail)
    cdef const char* head_at = PyBytes_AS_STRING(head)
    cdef const char* tail_at = PyBytes_AS_STRING(tail)
    cdef char* at
    cdef Row fields
    if records.shape[0] % sizeof(Record):
        raise ValueError(f"records must be whole records of {sizeof(Record)} bytes, got {records.shape[0]} bytes")
    encoded = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(count * (head_bytes + sizeof(Row) + tail_bytes)))
    at = PyBytes_AS_STRING(encoded)
    with nogil:
        for row in range(count):
            fill(&fields, &rows[row])
            memcpy(at, head_at, head_bytes)
            memcpy(at + head_bytes, &fields, sizeof(Row))
            memcpy(at + head_bytes + sizeof(Row), tail_at, tail_bytes)
            at += head_bytes + sizeof(Row) + tail_bytes
    return encoded
