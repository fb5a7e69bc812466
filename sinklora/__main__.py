"""`python -m sinklora` is the command line `sinklora`."""

from sinklora.cli import main

if __name__ == "__main__":
    main()
