"""Which traits a data set would train: `screen`."""
