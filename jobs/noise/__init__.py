"""The parts of jobs/noise_study.py: objectives under flipped labels, on a world and on a model."""
