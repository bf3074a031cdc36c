"""Parts of every program that concern the process: flags, progress, signals, devices."""
