/* apply_mask() of masking.py in C. */

#include "_masking.h"

static PyObject *
apply_mask(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "apply_mask(data, mask)");
        return NULL;
    }
    char *mask;
    Py_ssize_t mask_size;
    if (PyBytes_AsStringAndSize(args[1], &mask, &mask_size) < 0)
        return NULL;
    if (mask_size != 4) {
        PyErr_Format(PyExc_ValueError, "mask must have 4 bytes, not %zd", mask_size);
        return NULL;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, view.len);
    if (result != NULL) {
        uint32_t key;
        memcpy(&key, mask, 4);
        greenws_xor((unsigned char *)PyBytes_AS_STRING(result), view.buf, view.len, key);
    }
    PyBuffer_Release(&view);
    return result;
}

static PyMethodDef methods[] = {
    {"apply_mask", (PyCFunction)(void (*)(void))apply_mask, METH_FASTCALL,
     "apply_mask(data, mask): as in masking.py"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "greenws.protocol._masking", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__masking(void)
{
    return PyModule_Create(&definition);
}
