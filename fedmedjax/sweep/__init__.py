"""Many runs of one configuration: a grid of overrides, trained as few programs."""
