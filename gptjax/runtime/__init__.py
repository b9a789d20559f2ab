"""Runtime services of every program: files, locks, child processes, run directories, storage."""
