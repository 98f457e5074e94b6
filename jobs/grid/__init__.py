"""What studies of many trainings share: points, their runs on one cluster, and rows of results."""
