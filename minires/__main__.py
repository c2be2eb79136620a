"""`python -m minires`: see minires/cli.py."""

from minires.cli import main

if __name__ == "__main__":
    main()
