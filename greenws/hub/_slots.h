/* Lists of waiters. slots.py documents each function. */

#ifndef GREENWS_SLOTS_H
#define GREENWS_SLOTS_H

#include <Python.h>

static inline PyObject *
greenws_waiter_at(PyObject *waiters, Py_ssize_t index)
{
    if (index < 0 || index >= PyList_GET_SIZE(waiters)) {
        PyErr_SetString(PyExc_IndexError, "list index out of range");
        return NULL;
    }
    PyObject *waiter = PyList_GET_ITEM(waiters, index);
    Py_INCREF(waiter);
    return waiter;
}

#endif
