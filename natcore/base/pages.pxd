"""Memory for tables: one allocation each, zeroed and untouched until used, on huge pages where large."""
from libc.stddef cimport size_t

cdef extern from * nogil:
    """
    #include <stdlib.h>
    #include <string.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #define NATCORE_HUGE ((size_t)1 << 21)

    #ifdef __SANITIZE_ADDRESS__             /* the sanitizer sees overruns only of what its own allocator gave */
    static void* natcore_table_new(size_t bytes) {
        void* table = NULL;
        if (posix_memalign(&table, 64, bytes ? bytes : 64)) return NULL;
        memset(table, 0, bytes);
        return table;
    }
    static void natcore_table_delete(void* table, size_t bytes) { (void)bytes; free(table); }
    static size_t natcore_table_mapped(size_t bytes) { return bytes ? bytes : 64; }
    static size_t natcore_table_span(size_t bytes) { return natcore_table_mapped(bytes); }
    #else
    static size_t natcore_table_mapped(size_t bytes) { return bytes ? (bytes + 4095) / 4096 * 4096 : 4096; }
    static size_t natcore_table_span(size_t bytes) {        /* of addresses: a large table begins and ends with a huge page */
        size_t unit = bytes >= 2 * NATCORE_HUGE ? NATCORE_HUGE : 4096;
        return bytes ? (bytes + unit - 1) / unit * unit : unit;
    }
    static void* natcore_table_new(size_t bytes) {
        size_t size = natcore_table_span(bytes), whole = bytes / NATCORE_HUGE * NATCORE_HUGE;
        int huge = size >= 2 * NATCORE_HUGE;
        size_t spare = huge ? NATCORE_HUGE : 0;
        char* base = (char*)mmap(NULL, size + spare, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == (char*)MAP_FAILED) return NULL;
        if (huge) {                         /* cut to a huge page's boundary */
            size_t head = (NATCORE_HUGE - ((uintptr_t)base & (NATCORE_HUGE - 1))) & (NATCORE_HUGE - 1);
            if (head) munmap(base, head);
            if (spare - head) munmap(base + head + size, spare - head);
            base += head;
            madvise(base, whole, MADV_HUGEPAGE);
            if (size > whole) madvise(base + whole, size - whole, MADV_NOHUGEPAGE);     /* its end takes what it needs */
        }
        return base;
    }
    static void natcore_table_delete(void* table, size_t bytes) {
        if (table) munmap(table, natcore_table_span(bytes));
    }
    #endif
    """
    enum:
        HUGE_BYTES "NATCORE_HUGE"       # bytes of a huge page; tables of two or more are aligned to it
    void* table_new "natcore_table_new" (size_t bytes) noexcept
    size_t table_mapped "natcore_table_mapped" (size_t bytes) noexcept      # memory that a table of so many bytes takes
    size_t table_span "natcore_table_span" (size_t bytes) noexcept          # address space that it takes
    void table_delete "natcore_table_delete" (void* table, size_t bytes) noexcept
