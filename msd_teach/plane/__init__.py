"""The plane: densities whose every answer is exact, a small network that learns one, and their landscapes."""
