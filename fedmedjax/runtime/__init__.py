"""What every program needs of the process: flags, progress, signals, devices."""
