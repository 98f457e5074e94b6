"""Where prompts and preference data come from, and how they become token ids."""
