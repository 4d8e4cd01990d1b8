"""What programs of a run would take on hardware that is not there: `experiments.plan`."""
