"""The commands of ``python -m greenws``."""
