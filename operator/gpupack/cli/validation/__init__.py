"""How far predictions and the twin are from published measurements: the data, the comparison, the page."""
