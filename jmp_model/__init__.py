"""GemNet-OC models of the JMP family: architecture, weights, training and use."""
