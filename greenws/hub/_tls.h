/* TLS records in memory, by the OpenSSL that Python's ssl module uses. tls.py documents each
   function, and why it is here.

   Nothing of OpenSSL is needed to build this, and nothing of CPython's private structures is assumed:
   the functions are looked up in the libraries that the module _ssl has loaded, and where an SSL object
   of Python keeps its SSL is found out by making one while OpenSSL tells which SSL that is. */

#ifndef GREENWS_TLS_H
#define GREENWS_TLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <limits.h>
#include <string.h>

typedef struct ssl_st SSL;
typedef struct bio_st BIO;
typedef struct bio_method_st BIO_METHOD;
typedef struct crypto_ex_data_st CRYPTO_EX_DATA;
typedef void greenws_ex_new(void *, void *, CRYPTO_EX_DATA *, int, long, void *);

/* Of OpenSSL's public headers, whose numbers are a part of its ABI. */
enum {
    GREENWS_EX_SSL = 0,           /* CRYPTO_EX_INDEX_SSL */
    GREENWS_APP_DATA = 0,         /* the index of SSL_get_app_data() */
    GREENWS_BIO_SOURCE_SINK = 0x400,
    GREENWS_BIO_READ = 0x01,      /* BIO_FLAGS_READ... */
    GREENWS_BIO_WRITE = 0x02,
    GREENWS_BIO_FLAGS = 0x0f,     /* those and BIO_FLAGS_SHOULD_RETRY */
    GREENWS_BIO_RETRY = 0x08,
    GREENWS_BIO_FLUSH = 11,       /* BIO_CTRL_FLUSH */
    GREENWS_BIO_KTLS_SEND = 73,   /* BIO_CTRL_GET_KTLS_SEND */
    GREENWS_BIO_KTLS_RECV = 76,   /* BIO_CTRL_GET_KTLS_RECV */
    GREENWS_WANT_READ = 2,        /* SSL_ERROR_WANT_READ... */
    GREENWS_ZERO_RETURN = 6,
    GREENWS_RECEIVED_SHUTDOWN = 2 /* SSL_RECEIVED_SHUTDOWN */
};

static struct {
    int (*CRYPTO_get_ex_new_index)(int, long, void *, greenws_ex_new *, void *, void *);
    int (*CRYPTO_free_ex_index)(int, int);
    void *(*SSL_get_ex_data)(const SSL *, int);
    int (*SSL_read)(SSL *, void *, int);
    int (*SSL_write)(SSL *, const void *, int);
    int (*SSL_shutdown)(SSL *);
    int (*SSL_get_shutdown)(const SSL *);
    int (*SSL_get_error)(const SSL *, int);
    int (*SSL_is_init_finished)(const SSL *);
    int (*SSL_set_fd)(SSL *, int);
    BIO *(*SSL_get_wbio)(const SSL *);
    BIO *(*SSL_get_rbio)(const SSL *);
    void (*SSL_set_bio)(SSL *, BIO *, BIO *);
    BIO *(*BIO_new)(const BIO_METHOD *);
    BIO_METHOD *(*BIO_meth_new)(int, const char *);
    int (*BIO_meth_set_read)(BIO_METHOD *, int (*)(BIO *, char *, int));
    int (*BIO_meth_set_write)(BIO_METHOD *, int (*)(BIO *, const char *, int));
    int (*BIO_meth_set_ctrl)(BIO_METHOD *, long (*)(BIO *, int, long, void *));
    void (*BIO_set_init)(BIO *, int);
    void (*BIO_set_flags)(BIO *, int);
    void (*BIO_clear_flags)(BIO *, int);
    long (*BIO_ctrl)(BIO *, int, long, void *);
    void (*ERR_clear_error)(void);
    unsigned long (*ERR_peek_last_error)(void);
    const char *(*ERR_reason_error_string)(unsigned long);
} greenws_ssl;

static const struct {
    const char *name;
    void **place;
} greenws_ssl_names[] = {
#define GREENWS_NAME(name) {#name, (void **)&greenws_ssl.name}
    GREENWS_NAME(CRYPTO_get_ex_new_index),
    GREENWS_NAME(CRYPTO_free_ex_index),
    GREENWS_NAME(SSL_get_ex_data),
    GREENWS_NAME(SSL_read),
    GREENWS_NAME(SSL_write),
    GREENWS_NAME(SSL_shutdown),
    GREENWS_NAME(SSL_get_shutdown),
    GREENWS_NAME(SSL_get_error),
    GREENWS_NAME(SSL_is_init_finished),
    GREENWS_NAME(SSL_set_fd),
    GREENWS_NAME(SSL_get_wbio),
    GREENWS_NAME(SSL_get_rbio),
    GREENWS_NAME(SSL_set_bio),
    GREENWS_NAME(BIO_new),
    GREENWS_NAME(BIO_meth_new),
    GREENWS_NAME(BIO_meth_set_read),
    GREENWS_NAME(BIO_meth_set_write),
    GREENWS_NAME(BIO_meth_set_ctrl),
    GREENWS_NAME(BIO_set_init),
    GREENWS_NAME(BIO_set_flags),
    GREENWS_NAME(BIO_clear_flags),
    GREENWS_NAME(BIO_ctrl),
    GREENWS_NAME(ERR_clear_error),
    GREENWS_NAME(ERR_peek_last_error),
    GREENWS_NAME(ERR_reason_error_string),
#undef GREENWS_NAME
};

static BIO_METHOD *greenws_bio_method;
static PyTypeObject *greenws_ssl_type; /* _ssl._SSLSocket */
static Py_ssize_t greenws_ssl_offset;  /* of the SSL in it */

/* What the BIO reads from and writes to, during one call of ours. Python's own calls of OpenSSL
   release the GIL; a foreign thread in one of them sees that nothing is here for it. */
static __thread struct {
    const char *in;
    Py_ssize_t in_left;
    char *out;
    Py_ssize_t out_size, out_left;
} greenws_memory;

static int
greenws_bio_read(BIO *bio, char *data, int size)
{
    greenws_ssl.BIO_clear_flags(bio, GREENWS_BIO_FLAGS);
    if (greenws_memory.in_left == 0) {
        greenws_ssl.BIO_set_flags(bio, GREENWS_BIO_READ | GREENWS_BIO_RETRY);
        return -1;
    }
    if (size > greenws_memory.in_left)
        size = (int)greenws_memory.in_left;
    memcpy(data, greenws_memory.in, size);
    greenws_memory.in += size;
    greenws_memory.in_left -= size;
    return size;
}

static int
greenws_bio_write(BIO *bio, const char *data, int size)
{
    greenws_ssl.BIO_clear_flags(bio, GREENWS_BIO_FLAGS);
    if (greenws_memory.out == NULL) {
        greenws_ssl.BIO_set_flags(bio, GREENWS_BIO_WRITE | GREENWS_BIO_RETRY);
        return -1;
    }
    if (size > greenws_memory.out_left)
        return -1; /* a flood of records that OpenSSL itself answers */
    memcpy(greenws_memory.out + greenws_memory.out_size, data, size);
    greenws_memory.out_size += size;
    greenws_memory.out_left -= size;
    return size;
}

static long
greenws_bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == GREENWS_BIO_FLUSH;
}

/* The SSL that this thread made last while we look for it: other threads may open TLS meanwhile. */
static __thread SSL *greenws_new_ssl;

static void
greenws_on_new_ssl(void *ssl, void *ptr, CRYPTO_EX_DATA *data, int index, long number, void *arg)
{
    (void)ptr, (void)data, (void)index, (void)number, (void)arg;
    greenws_new_ssl = ssl;
}

static int
greenws_find_functions(const char *path)
{
    /* Only what is loaded already, with its dependencies. */
    void *library = path == NULL ? dlopen(NULL, RTLD_LAZY) : dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL)
        return 0;
    size_t count = sizeof greenws_ssl_names / sizeof *greenws_ssl_names;
    for (size_t i = 0; i < count; i++) {
        *greenws_ssl_names[i].place = dlsym(library, greenws_ssl_names[i].name);
        if (*greenws_ssl_names[i].place == NULL)
            return 0;
    }
    return 1;
}

/* Whether the SSL of Python's SSL objects can be found. */
static int
greenws_find_ssl(PyObject *make)
{
    int index = greenws_ssl.CRYPTO_get_ex_new_index(GREENWS_EX_SSL, 0, NULL, greenws_on_new_ssl,
                                                    NULL, NULL);
    if (index < 0)
        return 0;
    greenws_new_ssl = NULL;
    PyObject *object = PyObject_CallNoArgs(make);
    greenws_ssl.CRYPTO_free_ex_index(GREENWS_EX_SSL, index);
    if (object == NULL)
        return -1;
    int found = 0;
    SSL *ssl = greenws_new_ssl;
    /* If this is not Python's OpenSSL, it has called nothing. */
    if (ssl != NULL && greenws_ssl.SSL_get_ex_data(ssl, GREENWS_APP_DATA) == object) {
        Py_ssize_t end = Py_TYPE(object)->tp_basicsize - (Py_ssize_t)sizeof ssl;
        for (Py_ssize_t at = sizeof(PyObject); at <= end; at += sizeof ssl) {
            SSL *word;
            memcpy(&word, (char *)object + at, sizeof word);
            if (word == ssl) {
                greenws_ssl_offset = at;
                found++;
            }
        }
        greenws_ssl_type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(object));
    }
    Py_DECREF(object);
    return found == 1;
}

/* Once; afterwards greenws_bio_method tells whether it has worked. */
static int
greenws_tls_load(void)
{
    static int is_loaded;
    if (is_loaded)
        return 0;
    is_loaded = 1;
    PyObject *module = PyImport_ImportModule("greenws.hub.tls");
    PyObject *path = module ? PyObject_GetAttrString(module, "LIBRARY") : NULL;
    PyObject *make = path ? PyObject_GetAttrString(module, "make_object") : NULL;
    const char *library = make && path != Py_None ? PyUnicode_AsUTF8(path) : NULL;
    int found = PyErr_Occurred() ? -1 : greenws_find_functions(library);
    if (found > 0)
        found = greenws_find_ssl(make);
    if (found > 0) {
        BIO_METHOD *method = greenws_ssl.BIO_meth_new(GREENWS_BIO_SOURCE_SINK, "greenws");
        if (method != NULL) {
            greenws_ssl.BIO_meth_set_read(method, greenws_bio_read);
            greenws_ssl.BIO_meth_set_write(method, greenws_bio_write);
            greenws_ssl.BIO_meth_set_ctrl(method, greenws_bio_ctrl);
            greenws_bio_method = method;
        }
    }
    Py_XDECREF(make);
    Py_XDECREF(path);
    Py_XDECREF(module);
    if (found < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* Python's SSL objects do without */
        found = 0;
    }
    return found < 0 ? -1 : 0;
}

static inline int
greenws_tls_available(void)
{
    return greenws_tls_load() < 0 ? -1 : greenws_bio_method != NULL;
}

/* -1 is an error: no address is that. */
static inline size_t
greenws_tls_attach(PyObject *object)
{
    if (greenws_tls_load() < 0)
        return (size_t)-1;
    if (greenws_bio_method == NULL || Py_TYPE(object) != greenws_ssl_type)
        return 0;
    SSL *ssl;
    memcpy(&ssl, (char *)object + greenws_ssl_offset, sizeof ssl);
    if (ssl == NULL || greenws_ssl.SSL_get_ex_data(ssl, GREENWS_APP_DATA) != object
        || !greenws_ssl.SSL_is_init_finished(ssl))
        return 0;
    BIO *writer = greenws_ssl.SSL_get_wbio(ssl), *reader = greenws_ssl.SSL_get_rbio(ssl);
    if (writer == NULL || reader == NULL
        || greenws_ssl.BIO_ctrl(writer, GREENWS_BIO_KTLS_SEND, 0, NULL) > 0
        || greenws_ssl.BIO_ctrl(reader, GREENWS_BIO_KTLS_RECV, 0, NULL) > 0)
        return 0; /* the kernel has the keys */
    BIO *bio = greenws_ssl.BIO_new(greenws_bio_method);
    if (bio == NULL)
        return 0;
    greenws_ssl.BIO_set_init(bio, 1);
    greenws_ssl.SSL_set_bio(ssl, bio, bio);
    return (size_t)ssl;
}

static inline void
greenws_tls_detach(size_t ssl, int fd)
{
    greenws_ssl.SSL_set_fd((SSL *)ssl, fd);
}

static void
greenws_memory_begin(PyObject *out)
{
    greenws_ssl.ERR_clear_error();
    greenws_memory.out = PyByteArray_AS_STRING(out);
    greenws_memory.out_size = 0;
    greenws_memory.out_left = PyByteArray_GET_SIZE(out);
}

static Py_ssize_t
greenws_memory_end(void)
{
    greenws_memory.in = NULL;
    greenws_memory.in_left = 0;
    greenws_memory.out = NULL;
    greenws_ssl.ERR_clear_error();
    return greenws_memory.out_size;
}

static PyObject *
greenws_tls_reason(void)
{
    unsigned long code = greenws_ssl.ERR_peek_last_error();
    const char *reason = code ? greenws_ssl.ERR_reason_error_string(code) : NULL;
    return PyUnicode_FromFormat("TLS: %s", reason ? reason : "protocol error");
}

/* Decrypts the first `size` bytes of `sealed` into `buffer`. */
static inline Py_ssize_t
greenws_tls_open(size_t handle, PyObject *sealed, Py_ssize_t size, PyObject *buffer, PyObject *out,
                 PyObject *state)
{
    SSL *ssl = (SSL *)handle;
    char *plain = PyByteArray_AS_STRING(buffer);
    Py_ssize_t done = 0, room = PyByteArray_GET_SIZE(buffer);
    PyObject *reason = NULL;
    greenws_memory_begin(out);
    greenws_memory.in = PyByteArray_AS_STRING(sealed);
    greenws_memory.in_left = size;
    while (done < room) {
        int count = greenws_ssl.SSL_read(ssl, plain + done,
                                         (int)(room - done < INT_MAX ? room - done : INT_MAX));
        if (count > 0) {
            done += count;
            continue;
        }
        int error = greenws_ssl.SSL_get_error(ssl, count);
        if (error == GREENWS_ZERO_RETURN)
            reason = PyUnicode_FromString("");
        else if (error != GREENWS_WANT_READ)
            reason = greenws_tls_reason();
        else
            break;
        if (reason == NULL) {
            greenws_memory_end();
            return -2;
        }
        break;
    }
    if (reason == NULL && greenws_memory.in_left) /* compression, which Python switches off */
        reason = PyUnicode_FromString("TLS: records that hold more than their size");
    greenws_memory_end();
    if (reason != NULL) {
        int failed = PyList_Append(state, reason);
        Py_DECREF(reason);
        if (failed)
            return -2;
    }
    return done;
}

static inline Py_ssize_t
greenws_tls_replies(void)
{
    return greenws_memory.out_size;
}

/* Encrypts the first `size` bytes of `data` into `out`. */
static inline Py_ssize_t
greenws_tls_seal(size_t handle, PyObject *data, Py_ssize_t size, PyObject *out)
{
    SSL *ssl = (SSL *)handle;
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return -2;
    if (size > view.len)
        size = view.len;
    greenws_memory_begin(out);
    Py_ssize_t done = 0;
    while (done < size) {
        int count = greenws_ssl.SSL_write(ssl, (char *)view.buf + done, (int)(size - done));
        if (count <= 0 && done == 0
            && greenws_ssl.SSL_get_error(ssl, count) == GREENWS_WANT_READ) {
            PyBuffer_Release(&view);
            greenws_memory_end();
            return -1;
        }
        if (count <= 0) {
            PyObject *reason = greenws_tls_reason();
            if (reason != NULL) {
                PyErr_SetObject(PyExc_ConnectionError, reason);
                Py_DECREF(reason);
            }
            greenws_memory_end();
            PyBuffer_Release(&view);
            return -2;
        }
        done += count;
    }
    PyBuffer_Release(&view);
    return greenws_memory_end();
}

/* Makes the close_notify. */
static inline Py_ssize_t
greenws_tls_end(size_t handle, PyObject *out)
{
    greenws_memory_begin(out);
    greenws_ssl.SSL_shutdown((SSL *)handle);
    return greenws_memory_end();
}

#endif
