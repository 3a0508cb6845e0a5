"""Pictures of results: curves, matrices, faces with maps over them, and the letters in them."""
