"""How one row of a data set is read: as token ids, and by every cost."""
