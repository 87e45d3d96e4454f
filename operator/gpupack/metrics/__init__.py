"""The edge to what engines and GPUs say of themselves over HTTP: one table of series, scrapes, windows of samples."""
