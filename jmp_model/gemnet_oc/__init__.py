"""The GemNet-OC backbone: graphs and geometry in, per-atom and per-edge features out."""
