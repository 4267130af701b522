"""Encodes records as protobuf: the Logs of a LogGroup (Simple Log Service)."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from natcore.log.journal cimport RECORD_END, Record
from natcore.log.row_tails cimport RowTails, put_row_tail, row_tails_set
from natcore.base.text cimport put_decimal, put_dotted

cdef enum:
    FIELDS = 13
    LOCAL_FIELDS = 7
    KEY_BYTES = 64              # of a key with tag and length, at most
    FIELD_BYTES = 2 + KEY_BYTES + 2 + 20    # of a content with its value, at most
    RUN_BYTES = 40
    MICROSECONDS = 1000000

# Protobuf tags: field number << 3 | wire type.
cdef enum:
    GROUP_LOGS = 0x0A           # LogGroup.Logs = 1, length-delimited
    LOG_TIME = 0x08             # Log.Time = 1, varint
    LOG_CONTENTS = 0x12         # Log.Contents = 2, length-delimited
    CONTENT_KEY = 0x0A          # Content.Key = 1, length-delimited
    CONTENT_VALUE = 0x12        # Content.Value = 2, length-delimited

cdef struct Key:
    uint32_t length             # bytes, including the key's tag and length and the value's tag
    uint8_t bytes[KEY_BYTES]


cdef inline uint8_t* put_varint(uint8_t* at, uint64_t value) noexcept nogil:
    while value > 127:
        at[0] = <uint8_t>(value | 128)
        value >>= 7
        at += 1
    at[0] = <uint8_t>value
    return at + 1


cdef inline uint64_t seconds_of(int64_t microseconds) noexcept nogil:
    """Whole Unix seconds; 0 for times before 1970."""
    return <uint64_t>(microseconds // MICROSECONDS) if microseconds > 0 else 0


cdef inline uint8_t* put_field(uint8_t* at, const Key* key, uint64_t value, bint is_address) noexcept nogil:
    """Writes a Content; all its lengths are below 128, so one byte each."""
    cdef uint8_t* length_at = at + 2 + key.length
    cdef uint8_t* value_at = length_at + 1
    cdef uint8_t* end = put_dotted(value_at, <uint32_t>value) if is_address else put_decimal(value_at, value)
    at[0] = LOG_CONTENTS
    at[1] = <uint8_t>(end - at - 2)
    memcpy(at + 2, key.bytes, key.length)
    length_at[0] = <uint8_t>(end - value_at)
    return end


cdef inline uint8_t* put_name(uint8_t* at, const Key* key, const uint8_t* run, uint32_t run_length,
                              const Record* row) noexcept nogil:
    """Writes a Content with the value "RUN/NUMBER": the run and the row's number. A row that is no session's has no number
    of its own: "RUN/NUMBER/KIND/SEQUENCE"."""
    cdef uint8_t* length_at = at + 2 + key.length
    cdef uint8_t* end = length_at + 1 + run_length
    memcpy(length_at + 1, run, run_length)
    end[0] = 47
    end = put_decimal(end + 1, row.number)
    if row.kind > RECORD_END:
        end[0] = 47
        end = put_decimal(end + 1, row.kind)
        end[0] = 47
        end = put_decimal(end + 1, row.pkts_from_vpc)
    at[0] = LOG_CONTENTS
    at[1] = <uint8_t>(end - at - 2)
    memcpy(at + 2, key.bytes, key.length)
    length_at[0] = <uint8_t>(end - length_at - 1)
    return end


cdef uint8_t* put_log(uint8_t* at, const Record* row, const uint8_t* head, uint32_t head_length, const Key* keys,
                      const Key* local, const Key* name, const uint8_t* run, uint32_t run_length,
                      const RowTails* tails, uint64_t number, uint8_t* scratch) noexcept nogil:
    cdef uint8_t* end = scratch
    end[0] = LOG_TIME
    end = put_varint(end + 1, <uint32_t>seconds_of(row.end_time))
    memcpy(end, head, head_length)
    end += head_length
    end = put_field(end, &keys[0], row.protocol, False)
    end = put_field(end, &keys[1], row.pri_ip, True)
    end = put_field(end, &keys[2], row.pri_port, False)
    end = put_field(end, &keys[3], row.pub_ip, True)
    end = put_field(end, &keys[4], row.pub_port, False)
    end = put_field(end, &keys[5], row.nat_ip, True)
    end = put_field(end, &keys[6], row.nat_port, False)
    end = put_field(end, &keys[7], row.bytes_from_pub, False)
    end = put_field(end, &keys[8], row.pkts_from_pub, False)
    end = put_field(end, &keys[9], row.bytes_from_vpc, False)
    end = put_field(end, &keys[10], row.pkts_from_vpc, False)
    end = put_field(end, &keys[11], seconds_of(row.start_time), False)
    end = put_field(end, &keys[12], seconds_of(row.end_time), False)
    if local != NULL:
        end = put_field(end, &local[0], row.eip, True)
        end = put_field(end, &local[1], row.session, False)
        end = put_field(end, &local[2], row.number, False)
        end = put_field(end, &local[3], row.kind, False)
        end = put_field(end, &local[4], row.flags, False)
        end = put_field(end, &local[5], <uint64_t>max(row.start_time, 0), False)
        end = put_field(end, &local[6], <uint64_t>max(row.end_time, 0), False)
    if name != NULL:
        end = put_name(end, name, run, run_length, row)
    end = put_row_tail(end, tails, number)
    at[0] = GROUP_LOGS
    at = put_varint(at + 1, end - scratch)
    memcpy(at, scratch, end - scratch)
    return at + (end - scratch)


cdef int make_key(Key* key, bytes name) except -1:
    text = bytes((CONTENT_KEY, len(name))) + name + bytes((CONTENT_VALUE,))
    key.length = <uint32_t>len(text)
    memcpy(key.bytes, PyBytes_AS_STRING(text), len(text))
    return 0


def encode_logs(const uint8_t[::1] records not None, bytes head not None, names not None, bytes run=None, local=(), *,
                const uint8_t[::1] texts=None, const uint32_t[::1] offsets=None, const uint32_t[::1] numbers=None):
    """Encodes rows as the protobuf Logs of a LogGroup, one per row, without the GIL.

    records: the bytes of RECORD (n,). head: encoded Contents at the start of every Log.
    names: the 13 keys of the numeric fields in the contract's order, at most 60 bytes of UTF-8 each.
    run: adds a Content, `row`: run, slash, row number; at most 40 bytes.
    local: none, or the 7 keys of eip, session, number, kind, flags, and the times in microseconds, likewise.
    texts, offsets, numbers: encoded Contents, one behind the other; where each begins, and the last one ends; and of each row
    the number of those that it has at its end.
    Raises ValueError for invalid names or numbers, or if records is not a multiple of a record's length.
    """
    cdef Key keys[FIELDS]
    cdef Key local_keys[LOCAL_FIELDS]
    cdef Key row_key
    cdef const Key* added = NULL
    cdef const uint8_t* run_bytes = NULL
    cdef uint32_t run_length = 0
    cdef uint32_t field, head_length = <uint32_t>len(head)
    cdef uint64_t count = records.shape[0] // sizeof(Record), row
    cdef const Record* rows = <const Record*>&records[0] if count else NULL
    cdef uint8_t *buffer
    cdef uint8_t *end
    cdef uint8_t *scratch
    cdef const uint8_t* head_bytes = <const uint8_t*>PyBytes_AS_STRING(head)
    encoded, local_encoded = [name.encode() for name in names], [name.encode() for name in local]
    if (len(encoded) != FIELDS or len(local_encoded) not in (0, LOCAL_FIELDS) or records.shape[0] % sizeof(Record)
            or max(map(len, encoded + local_encoded)) > KEY_BYTES - 4):
        raise ValueError(f"names must be {FIELDS} keys of at most {KEY_BYTES - 4} bytes, records whole; got "
                         f"{len(encoded)} names, {records.shape[0]} bytes of records")
    if run is not None and len(run) > RUN_BYTES:
        raise ValueError(f"run must be at most {RUN_BYTES} bytes, got {run!r}")
    for field in range(FIELDS):
        make_key(&keys[field], encoded[field])
    for field, key in enumerate(local_encoded):
        make_key(&local_keys[field], key)
    make_key(&row_key, b"row")
    if run is not None:
        added, run_bytes, run_length = &row_key, <const uint8_t*>PyBytes_AS_STRING(run), <uint32_t>len(run)
    cdef const Key* local_at = &local_keys[0] if local_encoded else NULL
    cdef RowTails tails
    row_tails_set(&tails, texts, offsets, numbers, count)
    cdef uint64_t log_bytes = 6 + head_length + (FIELDS + LOCAL_FIELDS) * FIELD_BYTES + FIELD_BYTES + RUN_BYTES
    buffer = <uint8_t*>malloc(count * (log_bytes + 6) + log_bytes + 2 * tails.bytes)
    if buffer == NULL:
        raise MemoryError
    scratch = buffer + count * (log_bytes + 6) + tails.bytes
    end = buffer
    try:
        with nogil:
            for row in range(count):
                end = put_log(end, &rows[row], head_bytes, head_length, keys, local_at, added, run_bytes, run_length,
                              &tails, row, scratch)
        return PyBytes_FromStringAndSize(<char*>buffer, end - buffer)
    finally:
        free(buffer)
