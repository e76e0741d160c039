"""A small application: tasks, settings, and a producer."""
