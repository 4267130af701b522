/* A C extension module that drives natcore: run(capsule, frame, side, now_ns) gives the verdict and the frame as it is now. */
#include <natcore/natcore.h>

static PyObject *run(PyObject *self, PyObject *args)
{
    PyObject *capsule, *copy;
    Py_buffer given;
    int side;
    unsigned long long now_ns;
    natcore_worker *worker;
    natcore_frame frame = {0};

    (void)self;
    if (!PyArg_ParseTuple(args, "Oy*iK", &capsule, &given, &side, &now_ns))
        return NULL;
    worker = natcore_worker_of(capsule);
    copy = worker ? PyBytes_FromStringAndSize((const char *)given.buf, given.len) : NULL;
    if (copy != NULL) {
        frame.data = (uint8_t *)PyBytes_AS_STRING(copy);
        frame.length = (uint32_t)given.len;
        frame.side = (uint8_t)side;
        Py_BEGIN_ALLOW_THREADS
        natcore_lock(worker);
        natcore_translate(worker, &frame, 1, now_ns);
        natcore_tick(worker, now_ns);
        natcore_unlock(worker);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&given);
    if (copy == NULL || _PyBytes_Resize(&copy, frame.length) < 0)
        return NULL;
    return Py_BuildValue("iN", (int)frame.verdict, copy);
}

static PyMethodDef methods[] = {{"run", run, METH_VARARGS, "Translates one frame."}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "c_caller", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_c_caller(void)
{
    if (natcore_import() < 0)
        return NULL;
    return PyModule_Create(&module);
}
