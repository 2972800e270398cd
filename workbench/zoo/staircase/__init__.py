"""The staircase laboratory: linear attention learns one direction after the other."""
