/* libFuzzer's program around natcore: it starts Python, which makes the gateways once, and feeds natcore.testhooks.fuzz from then on. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { RECORD = 24 };           /* bytes; the first byte of an input chooses the gateway (natcore/testhooks/fuzz.pyx) */

typedef int (*target_t)(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

static target_t target;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    PyConfig config;
    PyObject *module, *capsule;
    (void)argc, (void)argv;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    PyConfig_SetBytesString(&config, &config.program_name, FUZZ_PYTHON);
    if (PyStatus_Exception(Py_InitializeFromConfig(&config))) abort();
    PyConfig_Clear(&config);
    if (PyRun_SimpleString("import sys; sys.path.insert(0, '" FUZZ_FOLDER "')")) abort();
    module = PyImport_ImportModule("gateways");
    capsule = module ? PyObject_GetAttrString(module, "TARGET") : NULL;
    if (!capsule) {
        PyErr_Print();
        abort();
    }
    target = (target_t)PyCapsule_GetPointer(capsule, "natcore.fuzz");
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return target(data, size); }

static uint32_t random_of(unsigned *seed, uint32_t below) {
    *seed = *seed * 1103515245u + 12345u;
    return below ? (*seed >> 8) % below : 0;
}

/* Whole records come, go, are repeated or change places; or the bytes of one change. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    size_t count = size ? (size - 1) / RECORD : 0, one, other;
    uint8_t kept[RECORD], *records = data + 1;
    if (most < 1 + RECORD) return LLVMFuzzerMutate(data, size, most);
    if (count == 0) {
        data[0] = (uint8_t)random_of(&seed, 256);
        for (one = 0; one < RECORD; one++) records[one] = (uint8_t)random_of(&seed, 256);
        return 1 + RECORD;
    }
    one = random_of(&seed, (uint32_t)count);
    other = random_of(&seed, (uint32_t)count);
    switch (random_of(&seed, 12)) {
    case 0:                     /* another gateway */
        data[0] = (uint8_t)random_of(&seed, 256);
        break;
    case 1:                     /* one more, like another one */
    case 2:
        if (1 + (count + 1) * RECORD > most) break;
        memcpy(kept, records + one * RECORD, RECORD);
        memmove(records + (other + 1) * RECORD, records + other * RECORD, (count - other) * RECORD);
        memcpy(records + other * RECORD, kept, RECORD);
        if (random_of(&seed, 2)) LLVMFuzzerMutate(records + other * RECORD, RECORD, RECORD);
        count++;
        break;
    case 3:                     /* one less */
        if (count == 1) break;
        memmove(records + one * RECORD, records + (one + 1) * RECORD, (count - one - 1) * RECORD);
        count--;
        break;
    case 4:                     /* in another order */
        memcpy(kept, records + one * RECORD, RECORD);
        memcpy(records + one * RECORD, records + other * RECORD, RECORD);
        memcpy(records + other * RECORD, kept, RECORD);
        break;
    case 5:                     /* the same from the other side, as an answer */
        records[one * RECORD] ^= 8;
        records[one * RECORD] |= 4;
        records[one * RECORD + 2] |= 128;
        break;
    case 6:                     /* a protocol that is near, or common */
        records[one * RECORD + 1] = (const uint8_t[]){0, 1, 6, 17, 47, 50, 51, 129, 134, 145, 255}[random_of(&seed, 11)];
        break;
    case 7:                     /* to port 0, from port 0 */
        memset(records + one * RECORD + 4 + 2 * random_of(&seed, 2), random_of(&seed, 2) ? 0 : 255, 2);
        break;
    case 8:                     /* time passes */
        records[one * RECORD] |= 7;
        records[one * RECORD + 14] = (uint8_t)random_of(&seed, 36);
        break;
    default: {                  /* one byte to four */
        size_t bytes = 1u << random_of(&seed, 3), at = random_of(&seed, (uint32_t)(count * RECORD));
        if (at + bytes > count * RECORD) at = count * RECORD - bytes;
        LLVMFuzzerMutate(records + at, bytes, bytes);
    }
    }
    return 1 + count * RECORD;
}
