"""What several runs show together: the paper's figures, in miniature."""
