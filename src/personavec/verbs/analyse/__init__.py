"""How vectors and personas lie to each other, and what writes a vector: `space`, `decompose`."""
