"""gevent and the kernel: which greenlet runs next, system calls, the transport of one socket."""
