"""What people do, a room each: a thin shell of options around a function of objects."""
