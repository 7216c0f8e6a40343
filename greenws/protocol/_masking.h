/* Masking in portable C, in loops that compilers vectorise. masking.py documents each function. */

#ifndef GREENWS_MASKING_H
#define GREENWS_MASKING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

static inline void
greenws_xor(unsigned char *restrict out, const unsigned char *restrict in, Py_ssize_t size,
            uint32_t key)
{
    uint64_t wide;
    unsigned char mask[8];
    memcpy(mask, &key, 4);
    memcpy(mask + 4, &key, 4);
    memcpy(&wide, mask, 8);

    Py_ssize_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, in + i, 8);
        word ^= wide;
        memcpy(out + i, &word, 8);
    }
    for (; i < size; i++)
        out[i] = in[i] ^ mask[i & 3];
}

/* The callers in frames.py have checked that the range lies within the bytearray. */

static inline uint32_t
greenws_read_key(PyObject *data, Py_ssize_t position)
{
    uint32_t key;
    memcpy(&key, PyByteArray_AS_STRING(data) + position, 4);
    return key;
}

static inline uint32_t
greenws_turn_key(uint32_t key, Py_ssize_t offset)
{
    unsigned char mask[8];
    memcpy(mask, &key, 4);
    memcpy(mask + 4, &key, 4);
    memcpy(&key, mask + (offset & 3), 4);
    return key;
}

static inline PyObject *
greenws_unmask(PyObject *data, Py_ssize_t start, Py_ssize_t size, uint32_t key)
{
    PyObject *payload = PyBytes_FromStringAndSize(NULL, size);
    if (payload != NULL)
        greenws_xor((unsigned char *)PyBytes_AS_STRING(payload),
                    (unsigned char *)PyByteArray_AS_STRING(data) + start, size, key);
    return payload;
}

static inline PyObject *
greenws_copy(PyObject *data, Py_ssize_t start, Py_ssize_t size)
{
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(data) + start, size);
}

/* `gathered` may be changed: nothing else has a reference to it. A full one is replaced by a larger one. */
static inline PyObject *
greenws_gather(PyObject *gathered, Py_ssize_t used, PyObject *data, Py_ssize_t start,
               Py_ssize_t size, uint32_t key, Py_ssize_t length)
{
    Py_ssize_t needed = used + size;
    if (gathered == Py_None || PyBytes_GET_SIZE(gathered) < needed) {
        Py_ssize_t room = needed < length / 4 ? needed * 4 : length;
        PyObject *larger = PyBytes_FromStringAndSize(NULL, room);
        if (larger == NULL)
            return NULL;
        if (used)
            memcpy(PyBytes_AS_STRING(larger), PyBytes_AS_STRING(gathered), used);
        gathered = larger;
    }
    else
        Py_INCREF(gathered);
    greenws_xor((unsigned char *)PyBytes_AS_STRING(gathered) + used,
                (unsigned char *)PyByteArray_AS_STRING(data) + start, size, key);
    return gathered;
}

/* It has exactly the length of the payload now. */
static inline PyObject *
greenws_gathered(PyObject *gathered)
{
    Py_INCREF(gathered);
    return gathered;
}

/* The caller in frames.py has checked that there is room. */
static inline Py_ssize_t
greenws_place(PyObject *buffer, Py_ssize_t position, PyObject *data)
{
    memcpy(PyByteArray_AS_STRING(buffer) + position, PyBytes_AS_STRING(data),
           PyBytes_GET_SIZE(data));
    return position + PyBytes_GET_SIZE(data);
}

/* Likewise; the caller has checked that `keys` has four bytes from `start`. */
static inline Py_ssize_t
greenws_place_masked(PyObject *buffer, Py_ssize_t position, PyObject *keys, Py_ssize_t start,
                     PyObject *data)
{
    uint32_t key = greenws_read_key(keys, start);
    unsigned char *out = (unsigned char *)PyByteArray_AS_STRING(buffer) + position;
    memcpy(out, &key, 4);
    greenws_xor(out + 4, (unsigned char *)PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), key);
    return position + 4 + PyBytes_GET_SIZE(data);
}

#endif
