"""The study of reward against KL: its points, tables and figures."""
