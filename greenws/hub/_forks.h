/* The number of this process, without a system call; forks.py says what it is for. */

#ifndef GREENWS_FORKS_H
#define GREENWS_FORKS_H

#include <Python.h>
#include <pthread.h>
#include <unistd.h>

static long greenws_pid;

/* Runs inside fork(), before any Python in the child. */
static void
greenws_forked(void)
{
    greenws_pid = (long)getpid();
}

static inline int
greenws_forks_load(void)
{
    greenws_forked();
    if (pthread_atfork(NULL, NULL, greenws_forked) == 0)
        return 0;
    PyErr_NoMemory();
    return -1;
}

static inline long
greenws_process(void)
{
    return greenws_pid;
}

#endif
