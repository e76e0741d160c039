"""The job of ``rival_tasks`` as a task of AsyncMQ, registered where its subprocesses look for it."""

from importlib import import_module

from rivals import rival_tasks

add = import_module("asyncmq.tasks").task(queue="bench")(rival_tasks.add)
TASK_ID: str = add.task_id
