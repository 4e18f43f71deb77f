"""Who writes the replies of the server: the model in this process, or servers behind it."""
