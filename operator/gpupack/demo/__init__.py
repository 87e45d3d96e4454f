"""The product shown at work: published runs replayed, the loop live on a real Kubernetes API server, and one table."""
