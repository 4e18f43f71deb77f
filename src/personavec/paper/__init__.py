"""The paper's experiments, which compose the verbs into one run."""
