"""A terminal view of pools, GPUs and servings, over any kubeconfig. Reads, never writes, and decides nothing."""
