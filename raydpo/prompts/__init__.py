"""Sources of prompts and preference data, and their conversion to token ids."""
