"""The parts of the demo that run_server.py serves beside its echo, and its command line."""
