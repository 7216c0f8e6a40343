"""The WSGI server that upgrades connections."""
