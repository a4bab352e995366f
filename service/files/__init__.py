"""Files that an operator names: read within bounds, without waiting, with errors that say what is wrong."""
