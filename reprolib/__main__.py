"""``python -m reprolib`` is the ``repro`` command."""

from reprolib.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
