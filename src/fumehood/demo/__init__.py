"""``fumehood demo``: jobs that misbehave, and real work, on a node that needs no broker."""
