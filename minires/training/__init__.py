"""Training: settings, run folder, loop, and prediction with a trained net."""
