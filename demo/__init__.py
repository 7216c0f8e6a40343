"""What run_server.py serves beside its echo, and how it is started."""
