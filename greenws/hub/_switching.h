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

/* The processor may begin to load what lies at an address; none is wrong. */

#define GREENWS_FETCHES 1
#define GREENWS_LINE 64

static inline void
greenws_fetch(size_t address, size_t size)
{
    for (size_t end = address + size; address < end; address += GREENWS_LINE)
        __builtin_prefetch((const void *)address);
}

static inline void
greenws_fetch_at(size_t address, size_t size)
{
    size_t header = 2 * sizeof(void *); /* of the garbage collector, before the object */
    greenws_fetch(address - header, size + header);
}

static inline void
greenws_fetch_object(PyObject *object, size_t size)
{
    greenws_fetch_at((size_t)object, size);
}

static inline void
greenws_fetch_state(PyObject *greenlet)
{
    greenws_fetch((size_t)((PyGreenlet *)greenlet)->pimpl, 256);
}

#endif
