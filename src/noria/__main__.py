"""`python -m noria` is the command line."""

from noria.cli.main import main

if __name__ == "__main__":
    main()
