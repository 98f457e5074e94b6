"""The parts of jobs/implicit_reward.py: policies and reward models as judges of held-out pairs."""
