"""The ``repro`` command: runs, checks and builds the book that ``reprolib`` is written with."""
