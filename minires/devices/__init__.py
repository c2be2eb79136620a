"""Devices: facts about this machine, a pretend GPU, a self-test and a stopwatch."""
