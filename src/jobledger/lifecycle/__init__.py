"""The steps after a move of a status: the end of an attempt, pushes, free slots."""
