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
#define GREENWS_OBJECT 256 /* bytes of an object; about the size of a socket's objects */

/* The size is a constant, so that no loop is left. */
static inline void
greenws_prefetch(size_t address, size_t size)
{
    for (size_t offset = 0; offset < size; offset += GREENWS_LINE)
        __builtin_prefetch((const char *)address + offset);
}

static inline void
greenws_prefetch_at(size_t address)
{
    size_t header = 2 * sizeof(void *); /* the garbage collector's, which precedes the object */
    greenws_prefetch(address - header, GREENWS_OBJECT + header);
}

static inline void
greenws_prefetch_object(PyObject *object)
{
    greenws_prefetch_at((size_t)object);
}

static inline void
greenws_prefetch_state(PyObject *greenlet)
{
    greenws_prefetch((size_t)((PyGreenlet *)greenlet)->pimpl, 256);
}

#endif
