/* Greenlets by greenlet's C interface; switching.py says what each is for. */

#ifndef GREENWS_SWITCHING_H
#define GREENWS_SWITCHING_H

#include <Python.h>
#include <greenlet.h>

static inline int
greenws_load(void)
{
    PyGreenlet_Import();
    return _PyGreenlet_API == NULL ? -1 : 0;
}

static inline PyObject *
greenws_current(void)
{
    return (PyObject *)PyGreenlet_GetCurrent();
}

static inline PyObject *
greenws_switch(PyObject *greenlet)
{
    return PyGreenlet_Switch((PyGreenlet *)greenlet, NULL, NULL);
}

static inline unsigned long
greenws_thread(void)
{
    return PyThread_get_thread_ident();
}

/* The processor may begin to load these; it never fails. Objects begin with a header of the garbage
   collector's. */

#define GREENWS_FETCHES 1
#define GREENWS_LINE 64

static inline void
greenws_fetch(const char *start, Py_ssize_t size)
{
    for (Py_ssize_t i = -(Py_ssize_t)(2 * sizeof(void *)); i < size; i += GREENWS_LINE)
        __builtin_prefetch(start + i);
}

#define greenws_fetch_at(address, size) greenws_fetch((const char *)(address), size)
#define greenws_fetch_object(object, size) greenws_fetch((const char *)(object), size)

static inline void
greenws_fetch_state(PyObject *greenlet)
{
    greenws_fetch((const char *)((PyGreenlet *)greenlet)->pimpl, 256);
}

#endif
