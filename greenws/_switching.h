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

#endif
