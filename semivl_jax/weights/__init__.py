"""Published weights to the parameter trees of `models`, and the weight files of the project."""
