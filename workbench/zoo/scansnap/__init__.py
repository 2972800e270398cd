"""The scan-and-snap laboratory: how one layer of attention picks the tokens that tell."""
