"""A task module that imports a library, which imports another, which starts a thread."""
