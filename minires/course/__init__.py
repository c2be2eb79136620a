"""What the chapters use: exercises and their checks, grading, and drawings of how things work."""
