"""RFC 6455 and RFC 7692 without I/O: bytes in, events and bytes out. No gevent, no socket, no
clock."""
