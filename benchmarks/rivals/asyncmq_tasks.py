"""The job of ``rival_tasks`` as a task of AsyncMQ, where its subprocesses look for it by name."""

from importlib import import_module

from rivals import rival_tasks


def _add(left: int, right: int) -> tuple[int, float]:
    return rival_tasks.add(left, right)


add = import_module("asyncmq.tasks").task(queue="bench")(_add)
TASK_ID: str = add.task_id
