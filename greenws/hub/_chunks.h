/* CPython 3.11 and later keeps the Python frames of each greenlet in a chunk of 16 KiB, which it maps
   when the greenlet starts and unmaps when it ends. These two system calls, and the page faults that
   follow, are most of what a short session costs. So we keep some chunks for later greenlets.

   An idle session has used less than a page of its chunk. So a greenlet that is about to run one
   begins with a small chunk, in the heap. Frames that do not fit are in chunks of the usual size, as
   CPython and greenlet, which frees them, do with any stack. */

#ifndef GREENWS_CHUNKS_H
#define GREENWS_CHUNKS_H

#include <Python.h>

#if PY_VERSION_HEX >= 0x030B0000

#define GREENWS_CHUNK_SIZE (1 << 14) /* DATA_STACK_CHUNK_SIZE; object arenas are larger */
#define GREENWS_CHUNKS_KEPT 64
#define GREENWS_SMALL_CHUNK 1536 /* bytes */

static PyObjectArenaAllocator greenws_arenas; /* the previous allocator */
static void *greenws_chunks[GREENWS_CHUNKS_KEPT];
static int greenws_chunk_count = -1; /* how many are kept; -1 before keep_chunks() */
static char greenws_chunks_locked; /* subinterpreters with their own GIL share the allocator */

static inline int
greenws_lock_chunks(void)
{
    return !__atomic_test_and_set(&greenws_chunks_locked, __ATOMIC_ACQUIRE);
}

static inline void
greenws_unlock_chunks(void)
{
    __atomic_clear(&greenws_chunks_locked, __ATOMIC_RELEASE);
}

static void *
greenws_alloc_arena(void *context, size_t size)
{
    void *chunk = NULL;
    (void)context;
    if (size == GREENWS_CHUNK_SIZE && greenws_lock_chunks()) {
        if (greenws_chunk_count > 0)
            chunk = greenws_chunks[--greenws_chunk_count];
        greenws_unlock_chunks();
    }
    return chunk != NULL ? chunk : greenws_arenas.alloc(greenws_arenas.ctx, size);
}

static void
greenws_free_arena(void *context, void *memory, size_t size)
{
    (void)context;
    if (size == GREENWS_SMALL_CHUNK) {
        PyMem_RawFree(memory);
        return;
    }
    if (size == GREENWS_CHUNK_SIZE && greenws_lock_chunks()) {
        if (greenws_chunk_count < GREENWS_CHUNKS_KEPT) {
            greenws_chunks[greenws_chunk_count++] = memory;
            memory = NULL;
        }
        greenws_unlock_chunks();
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

/* Gives the current greenlet a small chunk, unless Python has run in it already. */
static inline int
greenws_use_small_chunk(void)
{
    PyThreadState *state = PyThreadState_Get();
    if (state->datastack_chunk != NULL || greenws_chunk_count < 0)
        return 0;
    _PyStackChunk *chunk = PyMem_RawMalloc(GREENWS_SMALL_CHUNK);
    if (chunk == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    chunk->previous = NULL;
    chunk->size = GREENWS_SMALL_CHUNK;
    chunk->top = 0;
    state->datastack_chunk = chunk;
    state->datastack_limit = (PyObject **)((char *)chunk + GREENWS_SMALL_CHUNK);
    state->datastack_top = &chunk->data[1]; /* as CPython: with the first, it would free the chunk */
    return 0;
}

#else

#define greenws_keep_chunks() ((void)0)
#define greenws_use_small_chunk() (0)

#endif
#endif
