"""Is a classifier right for the wrong reason? From a folder and a model to a proven finding."""
