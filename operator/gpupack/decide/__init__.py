"""What to do: the shape of an engine, where replicas go, when to wait, and the words that explain it. All pure."""
