"""One file a task, or a family of tasks; each has TASKS."""
