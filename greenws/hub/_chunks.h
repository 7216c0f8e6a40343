/* CPython (3.11 and later) maps 16 KiB for the Python frames of each greenlet, and unmaps them when
   it ends: two system calls and the page faults behind them, most of what a short session costs.
   Some of these chunks are kept for the next greenlets instead. */

#ifndef GREENWS_CHUNKS_H
#define GREENWS_CHUNKS_H

#include <Python.h>

#if PY_VERSION_HEX >= 0x030B0000

#define GREENWS_CHUNK_SIZE (1 << 14) /* DATA_STACK_CHUNK_SIZE; an arena of objects is larger */
#define GREENWS_CHUNKS_KEPT 64

static PyObjectArenaAllocator greenws_arenas; /* what was there before */
static void *greenws_chunks[GREENWS_CHUNKS_KEPT];
static int greenws_chunk_count = -1; /* that of those kept; -1 before keep_chunks() */
static char greenws_chunks_taken; /* interpreters with locks of their own share the allocator */

static inline int
greenws_take_chunks(void)
{
    return !__atomic_test_and_set(&greenws_chunks_taken, __ATOMIC_ACQUIRE);
}

static inline void
greenws_leave_chunks(void)
{
    __atomic_clear(&greenws_chunks_taken, __ATOMIC_RELEASE);
}

static void *
greenws_alloc_arena(void *context, size_t size)
{
    void *chunk = NULL;
    (void)context;
    if (size == GREENWS_CHUNK_SIZE && greenws_take_chunks()) {
        if (greenws_chunk_count > 0)
            chunk = greenws_chunks[--greenws_chunk_count];
        greenws_leave_chunks();
    }
    return chunk != NULL ? chunk : greenws_arenas.alloc(greenws_arenas.ctx, size);
}

static void
greenws_free_arena(void *context, void *memory, size_t size)
{
    (void)context;
    if (size == GREENWS_CHUNK_SIZE && greenws_take_chunks()) {
        if (greenws_chunk_count < GREENWS_CHUNKS_KEPT) {
            greenws_chunks[greenws_chunk_count++] = memory;
            memory = NULL;
        }
        greenws_leave_chunks();
    }
    if (memory != NULL)
        greenws_arenas.free(greenws_arenas.ctx, memory, size);
}

static inline void
greenws_keep_chunks(void)
{
    if (greenws_chunk_count >= 0)
        return;
    PyObjectArenaAllocator ours = {NULL, greenws_alloc_arena, greenws_free_arena};
    greenws_chunk_count = 0;
    PyObject_GetArenaAllocator(&greenws_arenas);
    PyObject_SetArenaAllocator(&ours);
}

#else

#define greenws_keep_chunks() ((void)0)

#endif
#endif
