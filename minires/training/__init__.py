"""Training: settings, the run folder, the loop, and what a trained net is used for."""
