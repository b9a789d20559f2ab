"""What stands under every program: files, locks, processes, run directories."""
