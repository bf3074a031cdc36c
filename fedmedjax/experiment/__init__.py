"""From a configuration to a study that is ready to run."""
