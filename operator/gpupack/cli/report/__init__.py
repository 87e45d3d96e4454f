"""`gpupack report`: what happened in a pool and why, as one page, from a cluster or from a recorded trace."""
