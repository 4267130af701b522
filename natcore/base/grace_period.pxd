"""Waits for what runs in the kernel: XDP programs."""

cdef extern from * nogil:
    """
    #include <linux/membarrier.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    /* membarrier answers after an RCU grace period; where a kernel has it not (nohz_full), no program runs for so long. */
    static void natcore_grace_period(void) {
        struct timespec pause = {0, 200000000};
        if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0)) nanosleep(&pause, NULL);
    }
    """
    void grace_period "natcore_grace_period" () noexcept     # some milliseconds: every program that runs now has ended then
