/* The twin of masking.py: apply_mask() in portable C, in a loop that compilers vectorise. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

static void
xor_mask(unsigned char *restrict out, const unsigned char *restrict in, Py_ssize_t size,
         const unsigned char mask[4])
{
    uint64_t wide;
    unsigned char twice[8];
    memcpy(twice, mask, 4);
    memcpy(twice + 4, mask, 4);
    memcpy(&wide, twice, 8);

    Py_ssize_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, in + i, 8);
        word ^= wide;
        memcpy(out + i, &word, 8);
    }
    for (; i < size; i++)
        out[i] = in[i] ^ mask[i & 3];
}

static PyObject *
apply_mask(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 && count != 4) {
        PyErr_SetString(PyExc_TypeError, "apply_mask(data, mask, start=0, size=None)");
        return NULL;
    }
    char *mask;
    Py_ssize_t mask_size;
    if (PyBytes_AsStringAndSize(args[1], &mask, &mask_size) < 0)
        return NULL;
    if (mask_size != 4) {
        PyErr_Format(PyExc_ValueError, "a mask has 4 bytes, not %zd", mask_size);
        return NULL;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t start = 0, size = view.len;
    if (count == 4) {
        start = PyLong_AsSsize_t(args[2]);
        size = PyLong_AsSsize_t(args[3]);
        if (!PyErr_Occurred() && (start < 0 || size < 0 || start > view.len - size))
            PyErr_SetString(PyExc_ValueError, "start and size lie outside of the data");
        if (PyErr_Occurred()) {
            PyBuffer_Release(&view);
            return NULL;
        }
    }
    PyObject *result = PyBytes_FromStringAndSize(NULL, size);
    if (result != NULL)
        xor_mask((unsigned char *)PyBytes_AS_STRING(result), (unsigned char *)view.buf + start,
                 size, (unsigned char *)mask);
    PyBuffer_Release(&view);
    return result;
}

static PyMethodDef methods[] = {
    {"apply_mask", (PyCFunction)(void (*)(void))apply_mask, METH_FASTCALL,
     "apply_mask(data, mask, start=0, size=None): as in masking.py"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "greenws._masking", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__masking(void)
{
    return PyModule_Create(&definition);
}
