"""Checks argument types and tensor shapes of the whole package while tests run."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
