"""The edge to Kubernetes: dicts to nouns and back, what is seen of a cluster, and what is done to it."""
