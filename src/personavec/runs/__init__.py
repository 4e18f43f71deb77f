"""What is kept on disk: run folders, atomic files, fetched packages, progress."""
