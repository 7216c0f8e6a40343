/* Greenlets by greenlet's C API. switching.py documents each function. */

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
greenws_thread_id(void)
{
    return PyThread_get_thread_ident();
}

/* Prefetching is a hint to the processor, and harmless for any address. */

#define GREENWS_PREFETCHES 1
#define GREENWS_LINE 64

static inline void
greenws_prefetch(size_t address, size_t size)
{
    for (size_t end = address + size; address < end; address += GREENWS_LINE)
        __builtin_prefetch((const void *)address);
}

static inline void
greenws_prefetch_at(size_t address, size_t size)
{
    size_t header = 2 * sizeof(void *); /* the garbage collector's, which precedes the object */
    greenws_prefetch(address - header, size + header);
}

static inline void
greenws_prefetch_object(PyObject *object, size_t size)
{
    greenws_prefetch_at((size_t)object, size);
}

static inline void
greenws_prefetch_state(PyObject *greenlet)
{
    greenws_prefetch((size_t)((PyGreenlet *)greenlet)->pimpl, 256);
}

#endif
