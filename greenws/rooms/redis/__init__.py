"""Rooms over Redis: the log of a room is a Redis Stream."""
