"""Turn token outputs into the loss of each pair, ranking or judgement, with one file per kind."""
