/* natcore's C interface: frames in, frames out, without Python objects and without the GIL.
 *
 * This file is all that is frozen: its names, the layout of natcore_frame, the order of natcore_functions, and what each
 * function does. What is added goes behind what is there, and a change of what is there raises NATCORE_ABI_VERSION.
 * Everything behind natcore_worker may change with any version.
 *
 *     if (natcore_import() < 0) return NULL;                  // once, in the module's initialisation, with the GIL
 *     natcore_worker *worker = natcore_worker_of(capsule);    // from Gateway.capsule(worker=0); keep the capsule
 *     natcore_lock(worker);                                   // without the GIL
 *     natcore_translate(worker, frames, count, now_ns);
 *     natcore_tick(worker, now_ns);
 *     natcore_unlock(worker);
 *
 * Compile with -I"$(python -c 'import natcore; print(natcore.get_include())')". Cython: natcore/translate.pxd has the same.
 */
#ifndef NATCORE_H
#define NATCORE_H

#include <Python.h>
#include <stdint.h>

#define NATCORE_ABI_VERSION 1

/* The side that a frame came from. */
enum { NATCORE_INSIDE = 0, NATCORE_OUTSIDE = 1 };

/* natcore_frame.flags */
enum {
    NATCORE_CSUM_PARTIAL = 1,   /* the layer-4 checksum field holds the uncomplemented pseudo-header sum */
    NATCORE_GSO = 2,            /* a super-frame; gso_size is valid */
    NATCORE_UNFINISHED = 4,     /* a device has to complete something else in it: it cannot be cut into fragments */
    NATCORE_CROSSING = 8        /* from inside, and its destination is behind an inside link: a no-NAT entry routes it there */
};

/* natcore_frame.verdict: natcore.Verdict has the names of all. Up to NATCORE_UNTRANSLATED a frame is to be sent. */
enum {
    NATCORE_OUTBOUND = 0, NATCORE_INBOUND = 1, NATCORE_HAIRPIN = 2, NATCORE_UNTRANSLATED = 3, NATCORE_LOCAL = 4, NATCORE_HELD = 5,
    NATCORE_DROPS = 128         /* this and above: dropped */
};

typedef struct {
    uint8_t *data;      /* the first byte of the Ethernet header (framing="ip": of the IPv4 header); rewritten in place */
    uint32_t length;    /* bytes; cut to what the packet is */
    uint16_t flags;
    uint16_t gso_size;  /* layer-4 payload bytes of each segment, with NATCORE_GSO */
    uint8_t side;       /* where the frame came from; a hairpinned frame goes back there */
    uint8_t verdict;    /* written */
    uint16_t tag;       /* the caller's own; never touched */
} natcore_frame;

typedef struct natcore_worker natcore_worker;

typedef struct {
    uint32_t abi_version;       /* NATCORE_ABI_VERSION of the natcore that runs */
    uint32_t frame_bytes;       /* sizeof(natcore_frame) */
    void (*translate)(natcore_worker *, natcore_frame *, uint32_t, uint64_t);
    void (*tick)(natcore_worker *, uint64_t);
    uint32_t (*take_generated)(natcore_worker *, uint8_t *, uint32_t, uint8_t *, uint8_t *);
    void (*lock)(natcore_worker *);
    int (*try_lock)(natcore_worker *);
    void (*unlock)(natcore_worker *);
} natcore_functions;

static const natcore_functions *natcore_api;

/* Call it once for each file that includes this one, with the GIL. 0, or -1 with a Python exception set: natcore is not
 * there, or it has another ABI than this file. */
static inline int natcore_import(void)
{
    PyObject *module = PyImport_ImportModule("natcore");
    PyObject *capsule = module ? PyObject_GetAttrString(module, "C_API") : NULL;
    const natcore_functions *found =
        capsule ? (const natcore_functions *)PyCapsule_GetPointer(capsule, "natcore.C_API") : NULL;
    Py_XDECREF(capsule);        /* natcore keeps it */
    Py_XDECREF(module);
    if (found == NULL)
        return -1;
    if (found->abi_version != NATCORE_ABI_VERSION || found->frame_bytes != sizeof(natcore_frame)) {
        PyErr_Format(PyExc_ImportError, "natcore has ABI version %u, and this module was compiled for %u: compile it again",
                     (unsigned)found->abi_version, (unsigned)NATCORE_ABI_VERSION);
        return -1;
    }
    natcore_api = found;
    return 0;
}

/* The worker behind Gateway.capsule(), with the GIL; NULL with a Python exception set: another object. It lives as long as
 * the capsule does. */
static inline natcore_worker *natcore_worker_of(PyObject *capsule)
{
    return (natcore_worker *)PyCapsule_GetPointer(capsule, "natcore.Worker");
}

/* Translates frames in place, in order; each one's length and verdict are written. now_ns: the gateway's clock. The caller
 * has locked the worker. With several workers it unlocks the worker for moments. */
static inline void natcore_translate(natcore_worker *worker, natcore_frame *frames, uint32_t count, uint64_t now_ns)
{
    natcore_api->translate(worker, frames, count, now_ns);
}

/* Between batches, at least each 100 ms: a slice of the sweep that ends idle sessions and writes rows. Locked. */
static inline void natcore_tick(natcore_worker *worker, uint64_t now_ns)
{
    natcore_api->tick(worker, now_ns);
}

/* The next frame of the gateway's own (ICMP, fragments) into out; its bytes, 0: there is none. capacity: bytes of out; a
 * longer frame is lost. send_to: the side that it leaves by; cause: a verdict. Locked. */
static inline uint32_t natcore_take_generated(natcore_worker *worker, uint8_t *out, uint32_t capacity, uint8_t *send_to,
                                              uint8_t *cause)
{
    return natcore_api->take_generated(worker, out, capacity, send_to, cause);
}

/* Waits until no other thread has the worker. Without the GIL, for a batch; run no Python code before natcore_unlock. */
static inline void natcore_lock(natcore_worker *worker)
{
    natcore_api->lock(worker);
}

/* Locks the worker only if it is free, and says whether it did. */
static inline int natcore_try_lock(natcore_worker *worker)
{
    return natcore_api->try_lock(worker);
}

static inline void natcore_unlock(natcore_worker *worker)
{
    natcore_api->unlock(worker);
}

#endif
