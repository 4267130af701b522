"""Encodes records as syslog messages (RFC 5424) of structured data only, octet-counted (RFC 6587)."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from natcore.log.journal cimport Record
from natcore.base.text cimport put_decimal, put_digits, put_dotted

cdef enum:
    PARAMETERS = 17             # fields of RECORD without `kind`
    KINDS = 14                  # RecordKind values, and one for all unknown ones
    NAME_BYTES = 32             # of ` name="`, at most
    TIME_BYTES = 27             # 2026-01-01T00:00:00.000000Z
    EIP = 13                    # index of the EIP parameter
    QUOTE = 34
    BRACKET = 93
    SPACE = 32

cdef struct Text:
    const uint8_t* bytes
    uint32_t length

cdef struct Frame:              # parts common to all messages
    Text start                  # up to the timestamp
    Text middle[KINDS]          # by kind: from the timestamp to the row's first parameter
    Text names[PARAMETERS]


cdef inline uint8_t* put_text(uint8_t* at, const Text* text) noexcept nogil:
    memcpy(at, text.bytes, text.length)
    return at + text.length


cdef inline uint8_t* put_time(uint8_t* at, int64_t microseconds) noexcept nogil:
    """RFC 3339 in UTC; computed in years that begin in March, 400 of which have 146,097 days."""
    cdef uint64_t time = <uint64_t>microseconds if microseconds > 0 else 0
    cdef uint64_t second = time // 1000000 % 86400
    cdef uint64_t day = time // (<uint64_t>86400 * 1000000) + 719468        # since 0000-03-01
    cdef uint64_t era = day // 146097, of_era = day % 146097
    cdef uint64_t year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    cdef uint64_t of_year = of_era - (365 * year + year // 4 - year // 100)
    cdef uint64_t month = (5 * of_year + 2) // 153                          # 0: March
    at = put_digits(at, 400 * era + year + (1 if month >= 10 else 0), 4)
    at[0] = 45
    at = put_digits(at + 1, month + 3 if month < 10 else month - 9, 2)
    at[0] = 45
    at = put_digits(at + 1, of_year - (153 * month + 2) // 5 + 1, 2)
    at[0] = 84
    at = put_digits(at + 1, second // 3600, 2)
    at[0] = 58
    at = put_digits(at + 1, second // 60 % 60, 2)
    at[0] = 58
    at = put_digits(at + 1, second % 60, 2)
    at[0] = 46
    at = put_digits(at + 1, time % 1000000, 6)
    at[0] = 90
    return at + 1


cdef inline uint8_t* put_number(uint8_t* at, const Text* name, uint64_t value) noexcept nogil:
    at = put_decimal(put_text(at, name), value)
    at[0] = QUOTE
    return at + 1


cdef inline uint8_t* put_address(uint8_t* at, const Text* name, uint32_t value) noexcept nogil:
    at = put_dotted(put_text(at, name), value)
    at[0] = QUOTE
    return at + 1


cdef uint8_t* put_message(uint8_t* at, const Frame* frame, const Record* row) noexcept nogil:
    cdef uint64_t start = <uint64_t>row.start_time if row.start_time > 0 else 0
    cdef uint64_t end = <uint64_t>row.end_time if row.end_time > 0 else 0
    at = put_time(put_text(at, &frame.start), row.end_time)
    at = put_text(at, &frame.middle[row.kind if row.kind < KINDS else KINDS - 1])
    at = put_number(at, &frame.names[0], row.protocol)
    at = put_address(at, &frame.names[1], row.pri_ip)
    at = put_number(at, &frame.names[2], row.pri_port)
    at = put_address(at, &frame.names[3], row.pub_ip)
    at = put_number(at, &frame.names[4], row.pub_port)
    at = put_address(at, &frame.names[5], row.nat_ip)
    at = put_number(at, &frame.names[6], row.nat_port)
    at = put_number(at, &frame.names[7], row.bytes_from_pub)
    at = put_number(at, &frame.names[8], row.pkts_from_pub)
    at = put_number(at, &frame.names[9], row.bytes_from_vpc)
    at = put_number(at, &frame.names[10], row.pkts_from_vpc)
    at = put_number(at, &frame.names[11], start)
    at = put_number(at, &frame.names[12], end)
    if row.eip:
        at = put_address(at, &frame.names[EIP], row.eip)
    at = put_number(at, &frame.names[14], row.session)
    at = put_number(at, &frame.names[15], row.number)
    at = put_number(at, &frame.names[16], row.flags)
    at[0] = BRACKET
    return at + 1


cdef Text text_of(bytes data):
    cdef Text text
    text.bytes = <const uint8_t*>PyBytes_AS_STRING(data)
    text.length = <uint32_t>len(data)
    return text


def encode_frames(const uint8_t[::1] records not None, bytes start not None, middles not None, names not None):
    """Encodes rows as octet-counted messages, without the GIL.

    records: the bytes of RECORD (n,). start: bytes before the timestamp (the row's end time). middles: by kind 0 to 12
    (13: any other) the bytes after it, up to the row's first parameter. names: ` name="` for each field of RECORD but
    `kind`, at most 32 bytes. Raises ValueError for other lengths.
    """
    cdef uint64_t count = records.shape[0] // sizeof(Record), row, largest
    cdef const Record* rows = <const Record*>&records[0] if count else NULL
    cdef Frame frame
    cdef uint8_t *buffer
    cdef uint8_t *scratch
    cdef uint8_t *end
    cdef uint8_t *at
    middles, names = list(middles), list(names)
    if len(middles) != KINDS or len(names) != PARAMETERS or max(map(len, names)) > NAME_BYTES:
        raise ValueError(f"middles must be {KINDS}, names {PARAMETERS} of at most {NAME_BYTES} bytes; got {len(middles)} and "
                         f"{len(names)}")
    if records.shape[0] % sizeof(Record):
        raise ValueError(f"records must be whole records of {sizeof(Record)} bytes, got {records.shape[0]} bytes")
    frame.start = text_of(start)
    for row in range(KINDS):
        frame.middle[row] = text_of(middles[row])
    for row in range(PARAMETERS):
        frame.names[row] = text_of(names[row])
    largest = <uint64_t>len(start) + TIME_BYTES + <uint64_t>max(map(len, middles)) + PARAMETERS * (NAME_BYTES + 21) + 1
    buffer = <uint8_t*>malloc(count * (largest + 21) + largest)
    if buffer == NULL:
        raise MemoryError
    scratch = buffer + count * (largest + 21)
    at = buffer
    try:
        with nogil:
            for row in range(count):
                end = put_message(scratch, &frame, &rows[row])
                at = put_decimal(at, end - scratch)
                at[0] = SPACE
                memcpy(at + 1, scratch, end - scratch)
                at += 1 + (end - scratch)
        return PyBytes_FromStringAndSize(<char*>buffer, at - buffer)
    finally:
        free(buffer)
