"""What do people see? The console, the record of a run, and its picture."""
