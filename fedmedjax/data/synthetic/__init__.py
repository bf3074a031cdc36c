"""Words, patients and sentence frames of the invented cohorts; see cohorts.py."""
