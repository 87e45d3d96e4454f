"""The virtual GPU node and the real control plane that it joins: what tests and the demo run instead of a cluster."""
