"""HTTP/1.1 requests: parsing heads, and reading them and their bodies from a connection."""
