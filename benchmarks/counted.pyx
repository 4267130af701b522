"""The core alone, measured: instructions counted by callgrind while it translates, or the time of each packet by itself."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from posix.time cimport clock_gettime, timespec

from natcore.nat.clock cimport advance
from natcore.nat.pipeline cimport translate
from natcore.frame cimport Frame
from natcore.workers.worker cimport Worker

cdef extern from * nogil:
    """
    #include <time.h>
    #include <valgrind/callgrind.h>
    static void count_begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
    static void count_end(const char* name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
    """
    int RUNNING_ON_VALGRIND
    int CLOCK_THREAD_CPUTIME_ID
    void count_begin()
    void count_end(const char* name)


def is_counting():
    """Whether this process runs under valgrind."""
    return RUNNING_ON_VALGRIND != 0


def count_translate(capsule, uint8_t[:, ::1] frames, uint32_t[::1] lengths, const uint8_t[::1] sides, double now,
                    uint8_t[::1] verdicts, bytes name):
    """Translates the frames in place, one batch; writes their verdicts. The dump of the count gets this name."""
    cdef Worker* worker = <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")
    cdef uint32_t count = <uint32_t>frames.shape[0], i
    cdef uint64_t now_ns = <uint64_t>(now * 1e9)
    cdef const char* label = name
    cdef Frame* batch = <Frame*>calloc(count, sizeof(Frame))
    if batch == NULL:
        raise MemoryError
    for i in range(count):
        batch[i].data = &frames[i, 0]
        batch[i].length = lengths[i]
        batch[i].side = sides[i]
    with nogil:
        count_begin()
        translate(worker, batch, count, now_ns)
        count_end(label)
    for i in range(count):
        verdicts[i] = batch[i].verdict
    free(batch)


def count_advance(capsule, double now, bytes name):
    """Ends what is due by now."""
    cdef Worker* worker = <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")
    cdef uint64_t now_ns = <uint64_t>(now * 1e9)
    cdef const char* label = name
    with nogil:
        count_begin()
        advance(worker, now_ns, <uint64_t>-1)
        count_end(label)


def count_call(call, bytes name):
    """Calls it once before, and once counted."""
    cdef const char* label = name
    call()
    count_begin()
    call()
    count_end(label)


def time_translate(capsule, uint8_t[:, ::1] frames, uint32_t[::1] lengths, const uint8_t[::1] sides,
                   const uint64_t[::1] nows_ns,
                   uint8_t[::1] verdicts, uint64_t[::1] took_ns):
    """Translates the frames in place one by one, each as a batch of its own; writes their verdicts and what each took."""
    cdef Worker* worker = <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")
    cdef uint32_t i
    cdef Frame one
    cdef timespec before, after
    for i in range(<uint32_t>frames.shape[0]):
        one.data = &frames[i, 0]
        one.length = lengths[i]
        one.flags = 0
        one.side = sides[i]
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before)
        translate(worker, &one, 1, nows_ns[i])
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after)
        verdicts[i] = one.verdict
        took_ns[i] = (after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec
