"""A grown model outside Esper: a plain module, and a file that grows a fresh model."""
