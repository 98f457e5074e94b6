"""From token outputs to the loss of each pair, ranking or judged completion, one file a kind."""
